-- name: find
-- $1 promotion_id. The sid, if there is one.
SELECT sid FROM guerdon.promotion WHERE promotion_id = $1

-- name: lock_exclusive
-- $1 sid. Waits for every commit that is under way (they hold it shared to their end) and keeps new ones out.
SELECT pg_advisory_xact_lock($1)

-- name: lock_shared
-- $1 sid. As a commit does; before the row, in the order of lock_exclusive.
SELECT pg_advisory_xact_lock_shared($1)

-- name: lock_row
-- $1 sid. Against a twin that opens a budget.
SELECT FROM guerdon.promotion WHERE sid = $1 FOR NO KEY UPDATE

-- name: fetch
-- $1 sids. Promotions with entrances and budgets, by id, as they are now.
SELECT p.sid, p.promotion_id, p.display_name, p.state, p.starts_at, p.ends_at, p.own_version, p.created_at,
    p.updated_at, clock.at AS read_at,
    guerdon.effective_state(p.state, p.starts_at, p.ends_at, clock.at) AS state_now,
    ARRAY(
        SELECT e.entrance_id FROM guerdon.promotion_entrance b JOIN guerdon.entrance e ON e.sid = b.entrance
        WHERE b.promotion = p.sid ORDER BY e.entrance_id
    ) AS entrance_ids,
    ARRAY(
        SELECT ROW (a.asset, c.units, c.issued, c.remaining)
        FROM guerdon.capacity c JOIN guerdon.asset a ON a.sid = c.item
        WHERE c.kind = 5 AND c.owner = p.sid ORDER BY a.asset
    ) AS budgets
FROM (SELECT guerdon.now() AS at) clock, guerdon.promotion p
WHERE p.sid = ANY ($1::bigint[])
ORDER BY p.promotion_id

-- name: page
-- $1 states (as they are now), $2 the last promotion_id of the page before, $3 limit. Sids, by id.
SELECT p.sid
FROM (SELECT guerdon.now() AS at) clock, guerdon.promotion p
WHERE p.promotion_id > $2 AND guerdon.effective_state(p.state, p.starts_at, p.ends_at, clock.at) = ANY ($1::smallint[])
ORDER BY p.promotion_id
LIMIT $3

-- name: live_page
-- $1 entrance_id, $2 the last promotion_id of the page before, $3 limit. Sids of what is active there, by id.
SELECT p.sid
FROM (SELECT guerdon.now() AS at) clock, guerdon.entrance e
JOIN guerdon.promotion_entrance b ON b.entrance = e.sid
JOIN guerdon.promotion p ON p.sid = b.promotion
WHERE e.entrance_id = $1 AND p.promotion_id > $2
    AND guerdon.effective_state(p.state, p.starts_at, p.ends_at, clock.at) = 3
ORDER BY p.promotion_id
LIMIT $3

-- name: insert
-- $1 promotion_id, $2 display_name, $3 starts_at, $4 ends_at. A draft; no row if the id is taken.
INSERT INTO guerdon.promotion (promotion_id, display_name, state, starts_at, ends_at, created_at, updated_at)
SELECT $1, $2, 1, $3, $4, clock.at, clock.at FROM (SELECT guerdon.now() AS at) clock
ON CONFLICT (promotion_id) DO NOTHING
RETURNING sid

-- name: update
-- $1 sid, $2 display_name, $3 state, $4 starts_at, $5 ends_at. Under the exclusive lock; draws both versions.
UPDATE guerdon.promotion SET
    display_name = $2, state = $3, starts_at = $4, ends_at = $5, updated_at = guerdon.now(),
    own_version = own_version + 1, version = nextval('guerdon.catalogue_version')
WHERE sid = $1

-- name: find_entrances
-- $1 entrance_ids. Those that exist.
SELECT sid, entrance_id FROM guerdon.entrance WHERE entrance_id = ANY ($1::text[])

-- name: bind_entrances
-- $1 sid, $2 sids of all its entrances from now on.
WITH unbound AS (
    DELETE FROM guerdon.promotion_entrance WHERE promotion = $1 AND entrance <> ALL ($2::bigint[])
)
INSERT INTO guerdon.promotion_entrance (promotion, entrance)
SELECT $1, entrance FROM unnest($2::bigint[]) entrance
ON CONFLICT DO NOTHING

-- name: add_assets
-- $1 assets.
INSERT INTO guerdon.asset (asset)
SELECT asset COLLATE "C" FROM unnest($1::text[]) asset
EXCEPT SELECT asset FROM guerdon.asset
ORDER BY 1
ON CONFLICT DO NOTHING

-- name: find_assets
-- $1 assets.
SELECT sid, asset FROM guerdon.asset WHERE asset = ANY ($1::text[])

-- name: find_budget
-- $1 sid, $2 asset. Its accounts, if there is such a budget.
SELECT c.source, c.account, c.units, c.version
FROM guerdon.capacity c JOIN guerdon.asset a ON a.sid = c.item
WHERE c.kind = 5 AND c.owner = $1 AND a.asset = $2

-- name: count_budgets
-- $1 sid.
SELECT count(*) FROM guerdon.account WHERE kind = 5 AND owner = $1
