SELECT CASE
    WHEN b.id IS NULL THEN format(
        'batch %s does not exist, but has %s grants and %s transfers',
        coalesce(g.batch, t.batch), coalesce(g.count, 0), coalesce(t.count, 0))
    WHEN b.issuance_count <> coalesce(g.count, 0) OR b.transfer_count <> coalesce(t.count, 0) THEN format(
        'batch %s: grants %s, says %s; transfers %s, says %s',
        b.id, coalesce(g.count, 0), b.issuance_count, coalesce(t.count, 0), b.transfer_count)
    END AS violation
FROM guerdon.batch b
FULL JOIN (
    SELECT r.batch, count(*) FROM guerdon.request r WHERE r.outcome = 1 AND r.batch IS NOT NULL GROUP BY r.batch
) AS g ON g.batch = b.id
FULL JOIN (
    SELECT t.batch, count(*) FROM guerdon.transfer t GROUP BY t.batch
) AS t ON t.batch = coalesce(b.id, g.batch)
