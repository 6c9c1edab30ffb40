-- name: lock_promotion
-- $1 promotion_id. Waits for every commit that is under way (they hold it shared to their end) and keeps new ones out.
-- No row if there is no such promotion.
SELECT pg_advisory_xact_lock(sid) FROM guerdon.promotion WHERE promotion_id = $1

-- name: find_promotion
-- $1 promotion_id. After the lock: whether it is over, how many prizes it has.
SELECT p.sid, guerdon.effective_state(p.state, p.starts_at, p.ends_at, guerdon.now()) >= 5 AS over,
    (SELECT count(*) FROM guerdon.prize z WHERE z.promotion = p.sid) AS prize_count
FROM guerdon.promotion p WHERE p.promotion_id = $1

-- name: find_budget
-- $1 promotion, $2 asset. The asset's sid and the budget's account, if the promotion has a budget in it.
SELECT t.sid AS asset, a.id AS account
FROM guerdon.asset t JOIN guerdon.account a ON a.kind = 5 AND a.owner = $1 AND a.item = t.sid
WHERE t.asset = $2

-- name: draw_sid
-- Before the prize, because its accounts bear it.
SELECT nextval(pg_get_serial_sequence('guerdon.prize', 'sid'))

-- name: open_liability
-- $1 promotion, $2 asset (sid). The account of what is outstanding, one for all prizes; under the exclusive lock.
WITH opened AS (
    INSERT INTO guerdon.account (kind, owner, item) VALUES (7, $1, $2) ON CONFLICT DO NOTHING RETURNING id
)
SELECT id FROM opened
UNION ALL
SELECT id FROM guerdon.account WHERE kind = 7 AND owner = $1 AND item = $2

-- name: insert
-- Columns in the order of the table. No row if the id is taken.
INSERT INTO guerdon.prize (
    sid, prize_id, promotion, display_name, kind, asset, fixed_units, rate_attribute, rate_basis_points,
    rate_floor_units, rate_cap_units, rate_rounding, limit_per_user, limit_per_user_highest, valid_until, valid_days,
    stock_source_account, stock_account, budget_account, liability_account, created_at, updated_at
)
OVERRIDING SYSTEM VALUE
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, clock.at, clock.at
FROM (SELECT guerdon.now() AS at) clock
ON CONFLICT (prize_id) DO NOTHING
RETURNING true

-- name: bump_promotion
-- $1 promotion. Under the exclusive lock: decisions made under the version before are stale from now on.
UPDATE guerdon.promotion SET version = nextval('guerdon.catalogue_version') WHERE sid = $1

-- name: update
-- Under the exclusive lock of the promotion.
UPDATE guerdon.prize SET
    display_name = $2, fixed_units = $3, rate_attribute = $4, rate_basis_points = $5, rate_floor_units = $6,
    rate_cap_units = $7, rate_rounding = $8, limit_per_user = $9, limit_per_user_highest = $10, valid_until = $11,
    valid_days = $12, own_version = own_version + 1, updated_at = guerdon.now()
WHERE sid = $1

-- name: lock_promotion_of
-- $1 prize_id. As lock_promotion; a prize never changes its promotion.
SELECT pg_advisory_xact_lock(promotion) FROM guerdon.prize WHERE prize_id = $1

-- name: fetch
-- $1 prize_ids. By id.
SELECT z.sid, z.promotion, z.prize_id, p.promotion_id, z.display_name, z.kind, t.asset, z.fixed_units,
    z.rate_attribute, z.rate_basis_points, z.rate_floor_units, z.rate_cap_units, z.rate_rounding, c.units AS stock,
    z.limit_per_user, z.limit_per_user_highest, z.valid_until, z.valid_days, z.own_version, z.created_at, z.updated_at
FROM guerdon.prize z
JOIN guerdon.promotion p ON p.sid = z.promotion
LEFT JOIN guerdon.asset t ON t.sid = z.asset
JOIN guerdon.capacity c ON c.account = z.stock_account
WHERE z.prize_id = ANY ($1::text[])
ORDER BY z.prize_id

-- name: page
-- $1 the last prize_id of the page before, $2 limit. prize_ids, sorted.
SELECT prize_id FROM guerdon.prize WHERE prize_id > $1 ORDER BY prize_id LIMIT $2

-- name: page_of_promotion
-- $1 the last prize_id of the page before, $2 limit, $3 promotion_id. prize_ids, sorted.
SELECT z.prize_id
FROM guerdon.promotion p JOIN guerdon.prize z ON z.promotion = p.sid
WHERE p.promotion_id = $3 AND z.prize_id > $1
ORDER BY z.prize_id
LIMIT $2

-- name: stock
-- $1 prize_id.
SELECT z.prize_id, z.promotion, c.source, c.account, c.units, c.issued, c.remaining, c.version
FROM guerdon.prize z JOIN guerdon.capacity c ON c.account = z.stock_account
WHERE z.prize_id = $1

-- name: holdings
-- $1 promotions, $2 user_id ('': nobody). Of each of their prizes what decides whether the user could get it.
SELECT z.prize_id, c.remaining AS stock_remaining,
    CASE WHEN b.floor IS NOT NULL THEN b.credits - b.debits END AS budget_remaining,
    coalesce(h.credits, 0) AS user_granted, clock.at AS read_at
FROM (SELECT guerdon.now() AS at, (SELECT sid FROM guerdon.subject WHERE user_id = $2) AS subject) clock
CROSS JOIN guerdon.prize z
JOIN guerdon.capacity c ON c.account = z.stock_account
LEFT JOIN guerdon.account b ON b.id = z.budget_account
LEFT JOIN guerdon.account h ON h.kind = 3 AND h.owner = clock.subject AND h.item = z.sid
WHERE z.promotion = ANY ($1::bigint[])
