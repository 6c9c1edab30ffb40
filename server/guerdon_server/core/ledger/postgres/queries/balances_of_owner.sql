-- A page of the accounts of one owner, kind by kind, each kind by item.
-- Inputs: $1 kinds in their order, $2 owner's sid, $3 place (from 1) of the kind to go on with, $4 item to go on after,
-- $5 rows at most.
-- Output: place, kind, item, debits, credits, prize_id, asset.
SELECT kinds.place, page.kind, page.item, page.debits, page.credits, prize.prize_id, asset.asset
FROM unnest($1::smallint[]) WITH ORDINALITY AS kinds (kind, place)
CROSS JOIN LATERAL (
    SELECT a.kind, a.item, a.debits, a.credits
    FROM guerdon.account a
    WHERE a.kind = kinds.kind AND a.owner = $2
        AND a.item > CASE WHEN kinds.place = $3 THEN $4::bigint ELSE 0 END
    ORDER BY a.item
    LIMIT $5
) AS page
LEFT JOIN guerdon.prize ON page.kind <= 3 AND prize.sid = page.item
LEFT JOIN guerdon.asset ON page.kind > 3 AND asset.sid = page.item
WHERE kinds.place >= $3
ORDER BY kinds.place, page.item
LIMIT $5
