SELECT CASE WHEN coalesce(granted.count, 0) <> coalesce(holding.credits, 0) THEN format(
    'user %s, prize %s: granted %s, holding %s (account %s)',
    coalesce(granted.subject, holding.owner), coalesce(granted.prize, holding.item),
    coalesce(granted.count, 0), coalesce(holding.credits, 0), coalesce(holding.id::text, 'none')) END AS violation
FROM (
    SELECT r.subject, r.prize, count(*) FROM guerdon.request r WHERE r.outcome = 1 GROUP BY r.subject, r.prize
) AS granted
FULL JOIN (
    SELECT a.id, a.owner, a.item, a.credits FROM guerdon.account a WHERE a.kind = 3
) AS holding ON holding.owner = granted.subject AND holding.item = granted.prize
