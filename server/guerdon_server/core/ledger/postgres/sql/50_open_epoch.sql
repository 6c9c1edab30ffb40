-- Opens a new epoch of a promotion's gate, if the current one is still the one to replace. Output: the current epoch
-- and its run id afterwards, and whether this very call opened it.
--
-- The lock is exclusive: commits under the old epoch are over and visible, later ones are refused. So what is read of
-- the ledger after this call is what the new gate starts from.
-- An epoch is (number << 24 | random): the number orders loads, the random part tells epochs of a restored database
-- from those that it has forgotten.
-- A promotion has as many buckets at the gate as p_run_id names processes, separated by commas.
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

-- How many buckets a promotion has, from its gate_run_id.
CREATE OR REPLACE FUNCTION guerdon.gate_buckets(run_id text) RETURNS int
LANGUAGE sql IMMUTABLE
AS $$ SELECT length(run_id) - length(replace(run_id, ',', '')) + 1 $$;

-- Sets how many buckets a promotion has, from the next opening of its gate on: the epoch is replaced by one that is loaded
-- on no process, so that no server goes on with another number. Where it is the same, or p_buckets is null, nothing
-- changes. Output: how many there are now; null: there is no such promotion. Writes promotion.
CREATE OR REPLACE FUNCTION guerdon.set_gate_buckets(p_promotion_id text, p_buckets int) RETURNS int
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    promotion_sid bigint := (SELECT p.sid FROM guerdon.promotion p WHERE p.promotion_id = p_promotion_id);
BEGIN
    PERFORM pg_advisory_xact_lock(promotion_sid);
    UPDATE guerdon.promotion p
    SET gate_epoch = (((p.gate_epoch >> 24) + 1) << 24) | floor(random() * 16777216)::int,
        gate_run_id = repeat(',', p_buckets - 1)
    WHERE p.sid = promotion_sid AND guerdon.gate_buckets(p.gate_run_id) <> p_buckets;
    RETURN (SELECT guerdon.gate_buckets(p.gate_run_id) FROM guerdon.promotion p WHERE p.sid = promotion_sid);
END
$$;
