SELECT CASE
    WHEN promotion.sid IS NULL THEN format('issuance %s: promotion %s does not exist', r.issuance_id, r.promotion)
    WHEN prize.sid IS NULL
        THEN format('issuance %s: prize %s does not exist', r.issuance_id, coalesce(r.prize::text, '(none)'))
    WHEN prize.promotion <> r.promotion THEN format(
        'issuance %s: prize %s is of promotion %s, the grant of promotion %s',
        r.issuance_id, prize.prize_id, prize.promotion, r.promotion)
    WHEN subject.sid IS NULL
        THEN format('issuance %s: user %s does not exist', r.issuance_id, coalesce(r.subject::text, '(none)'))
    WHEN entrance.sid IS NULL
        THEN format('issuance %s: entrance %s does not exist', r.issuance_id, coalesce(r.entrance::text, '(none)'))
    WHEN principal.sid IS NULL
        THEN format('issuance %s: principal %s does not exist', r.issuance_id, coalesce(r.principal::text, '(none)'))
    WHEN batch.id IS NULL
        THEN format('issuance %s: batch %s does not exist', r.issuance_id, coalesce(r.batch::text, '(none)'))
    WHEN r.issued_at IS DISTINCT FROM batch.booked_at THEN format(
        'issuance %s: issued at %s, its batch %s was booked at %s',
        r.issuance_id, coalesce(r.issued_at::text, '(none)'), r.batch, batch.booked_at)
    WHEN r.expires_at <= r.issued_at
        THEN format('issuance %s: issued at %s, expires at %s', r.issuance_id, r.issued_at, r.expires_at)
    END AS violation
FROM guerdon.request r
LEFT JOIN guerdon.promotion ON promotion.sid = r.promotion
LEFT JOIN guerdon.prize ON prize.sid = r.prize
LEFT JOIN guerdon.subject ON subject.sid = r.subject
LEFT JOIN guerdon.entrance ON entrance.sid = r.entrance
LEFT JOIN guerdon.principal ON principal.sid = r.principal
LEFT JOIN guerdon.batch ON batch.id = r.batch
WHERE r.outcome = 1
