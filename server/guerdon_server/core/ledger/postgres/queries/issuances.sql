-- A page of grants, the newest first.
-- {column} is subject, promotion or reference. It is bounded from both sides and not made equal, so that only its own
-- index has the order that is asked for: with `=` the index of all issuance ids has it too, and a plan that walks that
-- one reads every grant there is to find the few of a small promotion.
-- Inputs: $1 value of the column, $2 issuance id to go on before, $3 rows at most.
-- Output: the fields of core/ledger/model.py: Issuance, in their order.
SELECT r.issuance_id, promotion.promotion_id, entrance.entrance_id, prize.prize_id, subject.user_id, r.request_id,
    coalesce(r.reference, '') AS reference, coalesce(principal.principal, '') AS principal, prize.kind, asset.asset,
    r.value, r.issued_at, r.expires_at
FROM (
    SELECT * FROM guerdon.request q
    WHERE (q.{column}, q.issuance_id) < ($1, $2) AND q.{column} >= $1 AND q.issuance_id IS NOT NULL
    ORDER BY q.{column} DESC, q.issuance_id DESC
    LIMIT $3
) AS r
JOIN guerdon.promotion ON promotion.sid = r.promotion
JOIN guerdon.prize ON prize.sid = r.prize
JOIN guerdon.entrance ON entrance.sid = r.entrance
JOIN guerdon.subject ON subject.sid = r.subject
LEFT JOIN guerdon.principal ON principal.sid = r.principal
LEFT JOIN guerdon.asset ON asset.sid = prize.asset
ORDER BY r.issuance_id DESC
