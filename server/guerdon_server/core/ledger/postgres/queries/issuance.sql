-- One grant.
-- Inputs: $1 issuance id.
-- Output: the fields of core/ledger/model.py: Issuance, in their order.
SELECT r.issuance_id, promotion.promotion_id, entrance.entrance_id, prize.prize_id, subject.user_id, r.request_id,
    coalesce(r.reference, '') AS reference, coalesce(principal.principal, '') AS principal, prize.kind, asset.asset,
    r.value, r.issued_at, r.expires_at
FROM guerdon.request r
JOIN guerdon.promotion ON promotion.sid = r.promotion
JOIN guerdon.prize ON prize.sid = r.prize
JOIN guerdon.entrance ON entrance.sid = r.entrance
JOIN guerdon.subject ON subject.sid = r.subject
LEFT JOIN guerdon.principal ON principal.sid = r.principal
LEFT JOIN guerdon.asset ON asset.sid = prize.asset
WHERE r.issuance_id = $1
