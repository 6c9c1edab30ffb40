-- Which open admissions the ledger has granted already.
-- Inputs: $1 promotion's sid, $2 request ids, $3 admissions, of the same length.
-- Output: admission.
SELECT r.admission
FROM unnest($2::text[], $3::bigint[]) AS open (request_id, admission)
JOIN guerdon.request r
    ON r.promotion = $1 AND r.request_id = open.request_id AND r.outcome = 1 AND r.admission = open.admission
