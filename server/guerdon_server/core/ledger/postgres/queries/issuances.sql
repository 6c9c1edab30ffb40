-- A page of grants, the newest first. {filter} is one of: r.issuance_id = $1, r.subject = $1, r.promotion = $1,
-- r.reference = $1; each has its index.
-- Inputs: $1 as the filter says, $2 issuance id to go on before, $3 rows at most.
-- Output: the fields of core/ledger/model.py: Issuance, in their order.
SELECT r.issuance_id, promotion.promotion_id, entrance.entrance_id, prize.prize_id, subject.user_id, r.request_id,
    coalesce(r.reference, '') AS reference, coalesce(principal.principal, '') AS principal, prize.kind, asset.asset,
    r.value, r.issued_at, r.expires_at
FROM (
    SELECT * FROM guerdon.request r
    WHERE {filter} AND r.issuance_id < $2
    ORDER BY r.issuance_id DESC LIMIT $3
) AS r
JOIN guerdon.promotion ON promotion.sid = r.promotion
JOIN guerdon.prize ON prize.sid = r.prize
JOIN guerdon.entrance ON entrance.sid = r.entrance
JOIN guerdon.subject ON subject.sid = r.subject
LEFT JOIN guerdon.principal ON principal.sid = r.principal
LEFT JOIN guerdon.asset ON asset.sid = prize.asset
ORDER BY r.issuance_id DESC
