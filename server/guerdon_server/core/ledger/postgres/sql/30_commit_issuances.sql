-- The authority: commits a batch of admitted requests, or refuses each with its reason. One call, one transaction.
--
-- Inputs: one array element for each item, in arrival order (core/ledger/model.py: CommitItem). A request key appears
-- at most once in a batch; items of a group are adjacent. p_look_again: see 3; what is answered is the same.
-- Output: one row of arrays in the same order (CommitResult), and the instant of the batch.
-- Writes: subject, account, request, transfer, batch.
-- Raises: GD001, or 23505 of request_pkey or account_kind_owner_item_key: another transaction wrote one of the request
-- keys, or opened one of the accounts, after it was looked up, or may have done so. Call again with p_look_again, it
-- will be seen.
--
-- Why this order (deadlocks and stale reads are what it closes; tests/ledger shows each):
--   1. promotion locks, shared, sorted: pausing, new versions and new epochs take them exclusively, so what is read
--      of the promotion in later statements stays true until the commit;
--   2. missing subjects inserted, sorted: an insert waits for a concurrent twin, and nobody who holds an account's lock
--      waits here; and all that is known of promotions and prizes;
--   3. request keys and accounts looked up and sorted out, then all touched accounts that exist locked, sorted by id,
--      and read as they are then. Locks come late because others wait for the stock that we hold. So a key may have
--      been written, and an account opened, since it was looked up. Then neither can be written again, which ends a
--      call that grants. A call that refuses ends itself, unless what it found already says so for ever, or the
--      decision is made anew by the caller. With p_look_again all is looked up once more under those locks. The second
--      locking waits for nobody: whoever locks a holding has its stock, which is ours. Only a new wallet may be held,
--      and should its id not be the highest one, so that a deadlock is possible, PostgreSQL ends it and one of the two
--      is called again;
--   4. *then* the time;
--   5. decided in arrival order with plain accumulators: what an earlier item of the batch took is taken;
--   6. written once: one net update for each account, new accounts with what is in them, and request keys, both sorted
--      and last, so that two transactions can meet on one only when both hold all accounts that they lock.
-- Plans: every look-up is LATERAL (... LIMIT 1), which can only be run as one index look-up per item, and the update's
-- input says ROWS 1. A join that the planner may turn around becomes a scan of the whole table inside a kept plan, when
-- that plan was made while the tables were small.
-- Work: rows that are locked are updated where they are (ctid). A subject that is known is not looked up again (IS NULL
-- inside of a LATERAL is judged before its index is read).
DROP FUNCTION IF EXISTS guerdon.account_deltas(bigint[], bigint[], bigint[]);
CREATE OR REPLACE FUNCTION guerdon.account_deltas(row_places tid[], debits bigint[], credits bigint[])
RETURNS TABLE (row_place tid, debit bigint, credit bigint)
LANGUAGE sql VOLATILE ROWS 1
AS $$ SELECT * FROM unnest(row_places, debits, credits) $$;

DROP FUNCTION IF EXISTS guerdon.commit_issuances(
    bigint[], bigint[], bigint[], bigint[], text[], text[], bigint[], bigint[], bigint[], bigint[], text[], int[], int[],
    bigint
);
CREATE OR REPLACE FUNCTION guerdon.commit_issuances(
    i_promotion bigint[], i_version bigint[], i_epoch bigint[], i_admission bigint[], i_request text[],
    i_user text[], i_prize bigint[], i_entrance bigint[], i_basis bigint[], i_value bigint[],
    i_reference text[], i_principal int[], i_group int[], p_worker bigint, p_look_again boolean DEFAULT false,
    OUT code smallint[], OUT issuance bigint[], OUT expires_at timestamptz[], OUT observed bigint[],
    OUT threshold bigint[], OUT booked_at timestamptz
)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    GRANTED CONSTANT smallint := 0;
    EXISTS_ALREADY CONSTANT smallint := 1;
    CANCELLED CONSTANT smallint := 2;
    FENCED CONSTANT smallint := 3;
    STALE_EPOCH CONSTANT smallint := 4;
    STALE_VERSION CONSTANT smallint := 5;
    NOT_STARTED CONSTANT smallint := 6;
    PAUSED CONSTANT smallint := 7;
    ENDED CONSTANT smallint := 8;
    VALIDITY_PASSED CONSTANT smallint := 9;
    LIMIT_REACHED CONSTANT smallint := 10;
    SOLD_OUT CONSTANT smallint := 11;
    BUDGET_EXHAUSTED CONSTANT smallint := 12;
    ACCOUNT_LIMIT CONSTANT smallint := 13;
    GROUP_NOT_GRANTED CONSTANT smallint := 14;
    BALANCE_MAX CONSTANT bigint := 4611686018427387904; -- 2^62: no sum of two overflows

    n int := cardinality(i_request);
    c smallint;
    -- Of each item.
    subjects bigint[];
    new_subjects bigint[]; -- made here, and taken away again where nothing came of it
    stock_accounts bigint[];
    holding_accounts bigint[]; -- of one that is new: minus the first item that it is of
    budget_accounts bigint[];
    liability_accounts bigint[]; -- where the value goes to one
    credit_accounts bigint[]; -- wallet or liability; of a wallet that is new: minus n, minus the first item
    wallet_assets bigint[]; -- where the value goes to a wallet
    limits bigint[];
    untils timestamptz[];
    days int[];
    rate_attributes text[];
    places int[]; -- of the accounts of each item in the arrays below: stock, holding, budget, credit, n of each
    known_outcomes smallint[];
    known_admissions bigint[];
    epochs bigint[];
    versions bigint[];
    states smallint[]; -- as they are kept: what holds now follows from it, from the times and from the instant
    starts timestamptz[];
    ends timestamptz[];
    state smallint;
    -- Of each touched account, by id; the new ones, with no row yet, are negative and come first.
    account_ids bigint[];
    account_rows tid[];
    new_accounts bigint[];
    new_count int := 0;
    credits_before bigint[];
    balances bigint[];
    floors bigint[];
    debit_sums bigint[];
    credit_sums bigint[];
    requests guerdon.request[];
    -- Counts.
    granted_count int := 0;
    transfer_count int := 0;
    batch_id bigint;
    written int;
    moved int;
    moved_expected int;
    missing int;
    place int;
    group_start int;
    group_failed boolean;
    debit_total numeric;
    credit_total numeric;
    transferred numeric;
    v bigint;
    stock_place int;
    holding_place int;
    budget_place int;
    credit_place int;
BEGIN
    -- 1. Promotions.
    FOR v IN SELECT DISTINCT p FROM unnest(i_promotion) p ORDER BY p LOOP
        PERFORM pg_advisory_xact_lock_shared(v);
    END LOOP;

    -- 2. Subjects, prizes, promotions.
    SELECT array_agg(s.sid ORDER BY u.ord), count(*) FILTER (WHERE s.sid IS NULL)
    INTO subjects, missing
    FROM unnest(i_user) WITH ORDINALITY u(user_id, ord)
    LEFT JOIN LATERAL (SELECT sid FROM guerdon.subject t WHERE t.user_id = u.user_id LIMIT 1) s ON true;
    IF missing > 0 THEN
        WITH inserted AS (
            INSERT INTO guerdon.subject (user_id)
            SELECT DISTINCT u.user_id
            FROM unnest(i_user, subjects) u(user_id, sid) WHERE u.sid IS NULL ORDER BY u.user_id
            ON CONFLICT (user_id) DO NOTHING RETURNING sid
        )
        SELECT array_agg(sid) INTO new_subjects FROM inserted;
        SELECT array_agg(coalesce(u.sid, s.sid) ORDER BY u.ord) INTO subjects
        FROM unnest(i_user, subjects) WITH ORDINALITY u(user_id, sid, ord)
        LEFT JOIN LATERAL (
            SELECT sid FROM guerdon.subject t WHERE u.sid IS NULL AND t.user_id = u.user_id LIMIT 1
        ) s ON true;
    END IF;

    SELECT array_agg(p.stock_account ORDER BY x.ord), array_agg(p.budget_account ORDER BY x.ord),
        array_agg(p.liability_account ORDER BY x.ord),
        array_agg(CASE WHEN p.liability_account IS NULL THEN p.asset END ORDER BY x.ord),
        array_agg(p.limit_per_user ORDER BY x.ord), array_agg(p.valid_until ORDER BY x.ord),
        array_agg(p.valid_days ORDER BY x.ord), array_agg(p.rate_attribute ORDER BY x.ord)
    INTO stock_accounts, budget_accounts, liability_accounts, wallet_assets, limits, untils, days, rate_attributes
    FROM unnest(i_prize) WITH ORDINALITY x(prize, ord)
    CROSS JOIN LATERAL (SELECT * FROM guerdon.prize z WHERE z.sid = x.prize LIMIT 1) p;
    ASSERT cardinality(stock_accounts) = n, 'a prize does not exist';

    SELECT array_agg(p.gate_epoch ORDER BY x.ord), array_agg(p.version ORDER BY x.ord),
        array_agg(p.state ORDER BY x.ord), array_agg(p.starts_at ORDER BY x.ord), array_agg(p.ends_at ORDER BY x.ord)
    INTO epochs, versions, states, starts, ends
    FROM unnest(i_promotion) WITH ORDINALITY x(promotion, ord)
    CROSS JOIN LATERAL (SELECT * FROM guerdon.promotion q WHERE q.sid = x.promotion LIMIT 1) p;

    -- 3. Requests and accounts.
    FOR look IN 1..1 + p_look_again::int LOOP
        SELECT array_agg(r.outcome ORDER BY x.ord), array_agg(r.admission ORDER BY x.ord)
        INTO known_outcomes, known_admissions
        FROM unnest(i_promotion, i_request) WITH ORDINALITY x(promotion, request_id, ord)
        LEFT JOIN LATERAL (
            SELECT outcome, admission FROM guerdon.request q
            WHERE q.promotion = x.promotion AND q.request_id = x.request_id LIMIT 1
        ) r ON true;

        SELECT array_agg(y.id ORDER BY y.ord) INTO holding_accounts
        FROM (
            SELECT x.ord, coalesce(a.id, - min(x.ord) OVER (PARTITION BY x.subject, x.prize)) AS id
            FROM unnest(subjects, i_prize) WITH ORDINALITY x(subject, prize, ord)
            LEFT JOIN LATERAL (
                SELECT id FROM guerdon.account b
                WHERE b.kind = 3 AND b.owner = x.subject AND b.item = x.prize LIMIT 1
            ) a ON true
        ) y;
        SELECT array_agg(y.id ORDER BY y.ord) INTO credit_accounts
        FROM (
            SELECT x.ord, CASE WHEN x.asset IS NULL THEN x.liability
                ELSE coalesce(a.id, - n - min(x.ord) OVER (PARTITION BY x.subject, x.asset)) END AS id
            FROM unnest(subjects, wallet_assets, liability_accounts) WITH ORDINALITY x(subject, asset, liability, ord)
            LEFT JOIN LATERAL (
                SELECT id FROM guerdon.account b
                WHERE b.kind = 6 AND b.owner = x.subject AND b.item = x.asset LIMIT 1
            ) a ON true
        ) y;
        SELECT array_agg(DISTINCT x ORDER BY x) FILTER (WHERE x < 0), array_agg(DISTINCT x) FILTER (WHERE x > 0)
        INTO new_accounts, account_ids
        FROM unnest(stock_accounts || holding_accounts || budget_accounts || credit_accounts) x;

        -- `places` says where in the sorted list the four accounts of each item are.
        SELECT array_agg(x.place ORDER BY x.ord)
        INTO places
        FROM (
            SELECT u.ord, (dense_rank() OVER (ORDER BY u.id))::int AS place
            FROM unnest(stock_accounts || holding_accounts || budget_accounts || credit_accounts)
                WITH ORDINALITY u(id, ord)
        ) x;

        SELECT array_agg(a.id), array_agg(a.ctid), array_agg(a.credits), array_agg(a.credits - a.debits), array_agg(a.floor)
        INTO account_ids, account_rows, credits_before, balances, floors
        FROM (
            SELECT b.id, b.ctid, b.credits, b.debits, b.floor FROM guerdon.account b
            WHERE b.id = ANY (account_ids) ORDER BY b.id FOR NO KEY UPDATE
        ) a;
    END LOOP;

    new_count := coalesce(cardinality(new_accounts), 0);
    IF new_count > 0 THEN
        account_ids := new_accounts || account_ids;
        account_rows := array_fill(NULL::tid, ARRAY[new_count]) || account_rows;
        credits_before := array_fill(0::bigint, ARRAY[new_count]) || credits_before;
        balances := array_fill(0::bigint, ARRAY[new_count]) || balances;
        floors := array_fill(NULL::bigint, ARRAY[new_count]) || floors;
    END IF;

    -- 4. What is true now.
    booked_at := guerdon.now();
    debit_sums := array_fill(0::bigint, ARRAY[cardinality(account_ids)]);
    credit_sums := debit_sums;

    -- 5. Decide.
    code := array_fill(GRANTED, ARRAY[n]);
    issuance := array_fill(NULL::bigint, ARRAY[n]);
    expires_at := array_fill(NULL::timestamptz, ARRAY[n]);
    observed := issuance;
    threshold := issuance;
    FOR i IN 1..n LOOP
        IF i_group[i] = 0 OR i = 1 OR i_group[i] <> i_group[i - 1] THEN
            group_start := i;
            group_failed := false;
        END IF;
        IF i = 1 OR i_promotion[i] <> i_promotion[i - 1] THEN
            state := guerdon.effective_state(states[i], starts[i], ends[i], booked_at);
        END IF;
        stock_place := places[i];
        holding_place := places[n + i];
        c := CASE
            WHEN known_outcomes[i] = 1 THEN EXISTS_ALREADY
            WHEN known_outcomes[i] = 3 THEN CANCELLED
            WHEN known_outcomes[i] = 2 AND known_admissions[i] >= i_admission[i] THEN FENCED
            WHEN epochs[i] <> i_epoch[i] THEN STALE_EPOCH
            WHEN versions[i] <> i_version[i] THEN STALE_VERSION
            WHEN state <= 2 THEN NOT_STARTED
            WHEN state = 4 THEN PAUSED
            WHEN state >= 5 THEN ENDED
            WHEN untils[i] <= booked_at THEN VALIDITY_PASSED
            WHEN limits[i] > 0 AND credits_before[holding_place] + credit_sums[holding_place] >= limits[i]
                THEN LIMIT_REACHED
            WHEN balances[stock_place] - debit_sums[stock_place] - 1 < floors[stock_place] THEN SOLD_OUT
            WHEN balances[stock_place] - debit_sums[stock_place] <= -BALANCE_MAX THEN ACCOUNT_LIMIT
            ELSE GRANTED
        END;
        IF c = GRANTED AND budget_accounts[i] IS NOT NULL THEN
            budget_place := places[2 * n + i];
            credit_place := places[3 * n + i];
            IF balances[budget_place] - debit_sums[budget_place] - i_value[i] < floors[budget_place] THEN
                c := BUDGET_EXHAUSTED;
            ELSIF balances[budget_place] - debit_sums[budget_place] - i_value[i] <= -BALANCE_MAX
                OR balances[credit_place] + credit_sums[credit_place] + i_value[i] >= BALANCE_MAX THEN
                c := ACCOUNT_LIMIT;
            ELSE
                debit_sums[budget_place] := debit_sums[budget_place] + i_value[i];
                credit_sums[credit_place] := credit_sums[credit_place] + i_value[i];
            END IF;
        END IF;
        code[i] := c;
        IF c = GRANTED THEN
            debit_sums[stock_place] := debit_sums[stock_place] + 1;
            credit_sums[holding_place] := credit_sums[holding_place] + 1;
        ELSIF c = FENCED THEN
            observed[i] := known_admissions[i];
            threshold[i] := i_admission[i];
        ELSIF c = LIMIT_REACHED THEN
            observed[i] := credits_before[holding_place] + credit_sums[holding_place];
            threshold[i] := limits[i];
        ELSIF c = SOLD_OUT THEN
            observed[i] := balances[stock_place] - debit_sums[stock_place];
            threshold[i] := 1;
        ELSIF c = BUDGET_EXHAUSTED THEN
            observed[i] := balances[budget_place] - debit_sums[budget_place];
            threshold[i] := i_value[i];
        END IF;
        IF i_group[i] <> 0 THEN
            -- One that exists, too: whether it is the same request is not known here, and the others wait for that.
            group_failed := group_failed OR c <> GRANTED;
            IF group_failed AND (i = n OR i_group[i + 1] <> i_group[i]) THEN
                FOR j IN group_start..i LOOP
                    CONTINUE WHEN code[j] <> GRANTED;
                    code[j] := GROUP_NOT_GRANTED;
                    debit_sums[places[j]] := debit_sums[places[j]] - 1;
                    credit_sums[places[n + j]] := credit_sums[places[n + j]] - 1;
                    IF budget_accounts[j] IS NOT NULL THEN
                        debit_sums[places[2 * n + j]] := debit_sums[places[2 * n + j]] - i_value[j];
                        credit_sums[places[3 * n + j]] := credit_sums[places[3 * n + j]] - i_value[j];
                    END IF;
                END LOOP;
            END IF;
        END IF;
    END LOOP;
    FOR i IN 1..n LOOP
        IF code[i] = GRANTED THEN
            granted_count := granted_count + 1;
            transfer_count := transfer_count + 1 + (budget_accounts[i] IS NOT NULL)::int;
            issuance[i] := nextval('guerdon.issuance_id');
            IF holding_accounts[i] < 0 THEN
                place := places[n + i];
                IF account_ids[place] < 0 THEN
                    account_ids[place] := nextval('guerdon.account_id_seq');
                END IF;
                holding_accounts[i] := account_ids[place];
            END IF;
            IF credit_accounts[i] < 0 THEN
                place := places[3 * n + i];
                IF account_ids[place] < 0 THEN
                    account_ids[place] := nextval('guerdon.account_id_seq');
                END IF;
                credit_accounts[i] := account_ids[place];
            END IF;
            expires_at[i] := coalesce(untils[i], booked_at + days[i] * interval '24 hours');
        END IF;
    END LOOP;
    IF granted_count < n THEN
        IF NOT p_look_again AND (SELECT max(x) FROM unnest(code) x) > STALE_VERSION THEN
            RAISE EXCEPTION 'what is refused may have been granted meanwhile' USING ERRCODE = 'GD001';
        END IF;
        -- A refusal changes nothing: what was made for it goes (nobody else has seen it).
        DELETE FROM guerdon.subject s
        WHERE s.sid = ANY (new_subjects) AND NOT EXISTS (
            SELECT FROM unnest(subjects, issuance) x(sid, issuance) WHERE x.sid = s.sid AND x.issuance IS NOT NULL
        );
    END IF;
    IF granted_count = 0 THEN
        RETURN;
    END IF;

    -- 6. Write.
    INSERT INTO guerdon.batch (kind, booked_at, issuance_count, transfer_count, worker)
    VALUES (1, booked_at, granted_count, transfer_count, p_worker) RETURNING id INTO batch_id;

    INSERT INTO guerdon.transfer (batch, kind, debit, credit, amount, issuance)
    SELECT batch_id, 7, x.stock, x.holding, 1, x.issuance
    FROM unnest(stock_accounts, holding_accounts, issuance) x(stock, holding, issuance)
    WHERE x.issuance IS NOT NULL
    UNION ALL
    SELECT batch_id, 8, x.budget, x.credit, x.value, x.issuance
    FROM unnest(budget_accounts, credit_accounts, i_value, issuance) x(budget, credit, value, issuance)
    WHERE x.issuance IS NOT NULL AND x.budget IS NOT NULL;
    GET DIAGNOSTICS written = ROW_COUNT;
    ASSERT written = transfer_count, 'transfers written are not those decided';

    UPDATE guerdon.account a SET debits = a.debits + x.debit, credits = a.credits + x.credit
    FROM guerdon.account_deltas(account_rows, debit_sums, credit_sums) x
    WHERE a.ctid = x.row_place AND (x.debit <> 0 OR x.credit <> 0);
    GET DIAGNOSTICS moved = ROW_COUNT;
    IF new_count > 0 THEN
        INSERT INTO guerdon.account (id, kind, owner, item, credits) OVERRIDING SYSTEM VALUE
        SELECT x.id, CASE WHEN x.number >= - n THEN 3 ELSE 6 END, subjects[(- x.number - 1) % n + 1],
            CASE WHEN x.number >= - n THEN i_prize[- x.number] ELSE wallet_assets[- x.number - n] END, x.credit
        FROM unnest(new_accounts, account_ids[:new_count], credit_sums[:new_count]) x(number, id, credit)
        WHERE x.credit > 0
        ORDER BY 2, 3, 4;
        GET DIAGNOSTICS written = ROW_COUNT;
        moved := moved + written;
    END IF;

    SELECT array_agg(ROW(x.promotion, x.request_id, 1, x.admission, x.issuance, batch_id, x.subject, x.prize, x.entrance,
        x.basis, x.value, x.reference, x.principal, booked_at, x.expires_at, x.rate_attribute)::guerdon.request
        ORDER BY x.promotion, x.request_id COLLATE "C")
    INTO requests
    FROM unnest(i_promotion, i_request, i_admission, issuance, subjects, i_prize, i_entrance, i_basis, i_value,
        i_reference, i_principal, expires_at, rate_attributes)
        x(promotion, request_id, admission, issuance, subject, prize, entrance, basis, value, reference, principal,
            expires_at, rate_attribute)
    WHERE x.issuance IS NOT NULL;
    IF 2 = ANY (known_outcomes) THEN
        INSERT INTO guerdon.request AS r SELECT * FROM unnest(requests)
        ON CONFLICT (promotion, request_id) DO UPDATE SET
            outcome = 1, admission = excluded.admission, issuance_id = excluded.issuance_id, batch = excluded.batch,
            subject = excluded.subject, prize = excluded.prize, entrance = excluded.entrance, basis = excluded.basis,
            basis_attribute = excluded.basis_attribute,
            value = excluded.value, reference = excluded.reference, principal = excluded.principal,
            issued_at = excluded.issued_at, expires_at = excluded.expires_at
        WHERE r.outcome = 2 AND r.admission < excluded.admission;
    ELSE
        INSERT INTO guerdon.request SELECT * FROM unnest(requests);
    END IF;
    GET DIAGNOSTICS written = ROW_COUNT;
    IF written <> granted_count THEN
        RAISE EXCEPTION 'a request key was taken while its batch was decided' USING ERRCODE = 'GD001';
    END IF;

    SELECT sum(d), sum(k), count(*) FILTER (WHERE d <> 0 OR k <> 0) INTO debit_total, credit_total, moved_expected
    FROM unnest(debit_sums, credit_sums) x(d, k);
    SELECT granted_count + coalesce(sum(x.value), 0) INTO transferred
    FROM unnest(i_value, issuance, budget_accounts) x(value, issuance, budget)
    WHERE x.issuance IS NOT NULL AND x.budget IS NOT NULL;
    ASSERT debit_total = credit_total AND debit_total = transferred, 'debits and credits of a batch differ';
    ASSERT moved = moved_expected, 'accounts written are not those decided';
END
$$;
