-- The capacity of a prize's stock or of a promotion's budget: initial + top-ups - recalls.
--
-- Each is a pair of accounts: the source (kind 1, 4), whose balance is minus the capacity, and the account itself
-- (kind 2, 5), whose balance is what remains. The kind of the source is one less; so are, counted from the kind of the
-- account, the kinds of transfers: initial = kind - 1, top-up = kind, recall = kind + 1 (TransferKind of the wire).

-- What there is, was issued and remains. `units` and `remaining` are null where unlimited; issued = capacity -
-- remaining holds there too, with a capacity of 0 and a negative balance.
CREATE OR REPLACE VIEW guerdon.capacity AS
SELECT a.id AS account, a.kind, a.owner, a.item, s.id AS source,
    CASE WHEN a.floor IS NOT NULL THEN s.debits - s.credits END AS units,
    (s.debits - s.credits) - (a.credits - a.debits) AS issued,
    CASE WHEN a.floor IS NOT NULL THEN a.credits - a.debits END AS remaining,
    a.capacity_version AS version
FROM guerdon.account a
JOIN guerdon.account s ON s.kind = a.kind - 1 AND s.owner = a.owner AND s.item = a.item
WHERE a.kind IN (2, 5);

-- Opens a pair of accounts with an initial capacity; p_units null: unlimited (no floor, no version, no transfer).
-- p_kind: 2 stock, 5 budget. Writes account, batch, transfer. The caller excludes a concurrent twin (a unique
-- violation otherwise).
CREATE OR REPLACE FUNCTION guerdon.open_capacity(
    p_kind smallint, p_owner bigint, p_item bigint, p_units bigint,
    OUT source bigint, OUT account bigint
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    new_batch bigint;
BEGIN
    ASSERT p_kind IN (2, 5), 'neither stock nor budget';
    ASSERT p_units IS NULL OR p_units BETWEEN 0 AND 9007199254740991, 'capacity out of range';
    INSERT INTO guerdon.account (kind, owner, item, debits)
    VALUES (p_kind - 1, p_owner, p_item, coalesce(p_units, 0)) RETURNING id INTO source;
    INSERT INTO guerdon.account (kind, owner, item, credits, floor, capacity_version)
    VALUES (p_kind, p_owner, p_item, coalesce(p_units, 0),
        CASE WHEN p_units IS NOT NULL THEN 0 END, CASE WHEN p_units IS NOT NULL THEN 1 END)
    RETURNING id INTO account;
    IF p_units > 0 THEN
        INSERT INTO guerdon.batch (kind, booked_at, issuance_count, transfer_count)
        VALUES (2, guerdon.now(), 0, 1) RETURNING id INTO new_batch;
        INSERT INTO guerdon.transfer (batch, kind, debit, credit, amount)
        VALUES (new_batch, p_kind - 1, source, account, p_units);
    END IF;
END
$$;

-- Tops a capacity up (p_delta > 0) or recalls what remains (p_delta < 0), and draws its next version.
--
-- p_promotion: sid, locked shared to the end of the transaction, as the commit does; then both accounts, sorted.
-- p_kind: 2 stock, 5 budget; p_source and p_account must be such a pair.
-- code: 0 adjusted; 1 less remains than is recalled; 2 unlimited; 3 the capacity would pass 2^53 - 1; 4 the accounts
-- have been moved so much that their counters are nearly full (AdjustCode in capacity.py). Nothing is written but for 0.
-- units, issued, remaining, version: afterwards (units and remaining null where unlimited).
-- Writes account, batch, transfer.
CREATE OR REPLACE FUNCTION guerdon.adjust_capacity(
    p_promotion bigint, p_kind smallint, p_source bigint, p_account bigint, p_delta bigint,
    OUT code smallint, OUT units bigint, OUT issued bigint, OUT remaining bigint, OUT version bigint
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    ADJUSTED CONSTANT smallint := 0;
    INSUFFICIENT CONSTANT smallint := 1;
    UNLIMITED CONSTANT smallint := 2;
    CAPACITY_LIMIT CONSTANT smallint := 3;
    LEDGER_LIMIT CONSTANT smallint := 4;
    UNITS_MAX CONSTANT bigint := 9007199254740991; -- 2^53 - 1
    COUNTER_MAX CONSTANT bigint := 4611686018427387904; -- 2^62: no sum of two overflows
    account_floor bigint;
    highest_counter bigint;
    new_batch bigint;
    written int;
BEGIN
    ASSERT p_delta <> 0 AND p_delta BETWEEN -UNITS_MAX AND UNITS_MAX, 'delta out of range';
    PERFORM pg_advisory_xact_lock_shared(p_promotion);
    PERFORM a.id FROM guerdon.account a WHERE a.id IN (p_source, p_account) ORDER BY a.id FOR NO KEY UPDATE;

    -- A later statement, so that it sees what others committed while we waited for the locks.
    SELECT c.units, c.issued, c.remaining, c.version, a.floor, greatest(a.debits, a.credits, s.debits, s.credits)
    INTO units, issued, remaining, version, account_floor, highest_counter
    FROM guerdon.capacity c
    JOIN guerdon.account a ON a.id = c.account
    JOIN guerdon.account s ON s.id = c.source
    WHERE c.account = p_account AND c.source = p_source AND c.kind = p_kind;
    ASSERT FOUND, 'the accounts are no pair of the expected kind';

    code := CASE
        WHEN account_floor IS NULL THEN UNLIMITED
        WHEN remaining + p_delta < account_floor THEN INSUFFICIENT
        WHEN units + p_delta > UNITS_MAX THEN CAPACITY_LIMIT
        WHEN highest_counter > COUNTER_MAX THEN LEDGER_LIMIT
        ELSE ADJUSTED
    END;
    IF code <> ADJUSTED THEN
        RETURN;
    END IF;

    UPDATE guerdon.account a SET
        debits = a.debits + CASE WHEN (a.id = p_source) = (p_delta > 0) THEN abs(p_delta) ELSE 0 END,
        credits = a.credits + CASE WHEN (a.id = p_source) = (p_delta > 0) THEN 0 ELSE abs(p_delta) END,
        capacity_version = a.capacity_version + 1 -- null stays null: the source has none
    WHERE a.id IN (p_source, p_account);
    GET DIAGNOSTICS written = ROW_COUNT;
    ASSERT written = 2, 'not two accounts were moved';

    INSERT INTO guerdon.batch (kind, booked_at, issuance_count, transfer_count)
    VALUES (2, guerdon.now(), 0, 1) RETURNING id INTO new_batch;
    INSERT INTO guerdon.transfer (batch, kind, debit, credit, amount)
    VALUES (new_batch, CASE WHEN p_delta > 0 THEN p_kind ELSE p_kind + 1 END,
        CASE WHEN p_delta > 0 THEN p_source ELSE p_account END,
        CASE WHEN p_delta > 0 THEN p_account ELSE p_source END, abs(p_delta));

    units := units + p_delta;
    remaining := remaining + p_delta;
    version := version + 1;
    ASSERT units = issued + remaining, 'capacity is not issued + remaining';
END
$$;
