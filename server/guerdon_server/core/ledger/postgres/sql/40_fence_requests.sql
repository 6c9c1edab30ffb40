-- Fences requests: whatever admission at or below the given one may still be on its way to a commit, it will be refused.
--
-- Inputs: promotion, request id and the highest admission to fence, sorted by the caller or not.
-- Output: for each, in order of input: the outcome that the key now holds (1 granted, 2 fenced, 3 cancelled) and its
-- admission. Granted: there is nothing to give back. Waits for an uncommitted commit of the same key.
-- Writes: request.
CREATE OR REPLACE FUNCTION guerdon.fence_requests(
    i_promotion bigint[], i_request text[], i_admission bigint[], OUT outcome smallint[], OUT admission bigint[]
)
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
BEGIN
    -- Sorted, as every writer of request keys.
    INSERT INTO guerdon.request AS r (promotion, request_id, outcome, admission)
    SELECT x.promotion, x.request_id, 2, max(x.admission)
    FROM (
        SELECT u.promotion, u.request_id COLLATE "C" AS request_id, u.admission
        FROM unnest(i_promotion, i_request, i_admission) u(promotion, request_id, admission)
    ) x
    GROUP BY x.promotion, x.request_id
    ORDER BY x.promotion, x.request_id
    ON CONFLICT (promotion, request_id) DO UPDATE SET admission = excluded.admission
    WHERE r.outcome = 2 AND r.admission < excluded.admission;
    -- A write in any case: when this call returns, a synchronous standby has all that was committed before it, so that
    -- a grant found here may be acknowledged although the standby had not confirmed it.
    PERFORM pg_logical_emit_message(true, 'guerdon', 'fence');
    -- A later statement: it sees what the insert waited for.
    SELECT array_agg(r.outcome ORDER BY x.ord), array_agg(r.admission ORDER BY x.ord) INTO outcome, admission
    FROM unnest(i_promotion, i_request) WITH ORDINALITY x(promotion, request_id, ord)
    CROSS JOIN LATERAL (
        SELECT * FROM guerdon.request q WHERE q.promotion = x.promotion AND q.request_id = x.request_id LIMIT 1
    ) r;
END
$$;

-- Rules a request out for ever, unless it was granted. Output: the outcome that the key now holds (1 or 3). Writes:
-- request; also where it changes nothing, because a conflicting row is locked, so that a synchronous standby has it.
CREATE OR REPLACE FUNCTION guerdon.cancel_request(p_promotion bigint, p_request text) RETURNS smallint
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    INSERT INTO guerdon.request AS r (promotion, request_id, outcome, admission)
    VALUES (p_promotion, p_request, 3, 0)
    ON CONFLICT (promotion, request_id) DO UPDATE SET outcome = 3 WHERE r.outcome = 2;
    RETURN (SELECT r.outcome FROM guerdon.request r WHERE r.promotion = p_promotion AND r.request_id = p_request);
END
$$;
