-- Opens a new epoch of a promotion's gate, if the current one is still the one to replace. Output: the current epoch
-- and its run id afterwards, and whether this very call opened it.
--
-- The lock is exclusive: commits under the old epoch are over and visible, later ones are refused. So what is read of
-- the ledger after this call is what the new gate starts from.
-- An epoch is (number << 24 | random): the number orders loads, the random part tells epochs of a restored database
-- from those that it has forgotten.
CREATE OR REPLACE FUNCTION guerdon.open_epoch(
    p_promotion bigint, p_replacing bigint, p_random int, p_run_id text,
    OUT epoch bigint, OUT run_id text, OUT won boolean
)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(p_promotion);
    UPDATE guerdon.promotion p
    SET gate_epoch = (((p.gate_epoch >> 24) + 1) << 24) | (p_random & 16777215), gate_run_id = p_run_id
    WHERE p.sid = p_promotion AND p.gate_epoch = p_replacing;
    won := FOUND;
    SELECT p.gate_epoch, p.gate_run_id INTO epoch, run_id FROM guerdon.promotion p WHERE p.sid = p_promotion;
END
$$;
