-- name: fetch
-- $1 entrance_id.
SELECT sid, entrance_id, display_name, version, created_at, updated_at
FROM guerdon.entrance WHERE entrance_id = $1

-- name: lock
-- $1 entrance_id. Against another update of the same.
SELECT FROM guerdon.entrance WHERE entrance_id = $1 FOR NO KEY UPDATE

-- name: page
-- $1 the last entrance_id of the page before, $2 limit. By id.
SELECT sid, entrance_id, display_name, version, created_at, updated_at
FROM guerdon.entrance WHERE entrance_id > $1 ORDER BY entrance_id LIMIT $2

-- name: insert
-- $1 entrance_id, $2 display_name. No row if the id is taken.
INSERT INTO guerdon.entrance (entrance_id, display_name, created_at, updated_at)
SELECT $1, $2, clock.at, clock.at FROM (SELECT guerdon.now() AS at) clock
ON CONFLICT (entrance_id) DO NOTHING
RETURNING true

-- name: update
-- $1 entrance_id, $2 display_name. No decision depends on it, so no promotion's version is drawn.
UPDATE guerdon.entrance SET
    display_name = $2, version = nextval('guerdon.catalogue_version'), updated_at = guerdon.now()
WHERE entrance_id = $1
