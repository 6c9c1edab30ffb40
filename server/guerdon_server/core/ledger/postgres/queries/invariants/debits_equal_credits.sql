SELECT CASE WHEN sums.debits <> sums.credits THEN format(
    '%s: debits %s, credits %s',
    CASE WHEN sums.of_asset THEN coalesce('asset ' || asset.asset, 'unknown asset ' || sums.item)
        ELSE coalesce('prize ' || prize.prize_id, 'unknown prize ' || sums.item) END,
    sums.debits, sums.credits) END AS violation
FROM (
    SELECT a.kind > 3 AS of_asset, a.item, sum(a.debits) AS debits, sum(a.credits) AS credits
    FROM guerdon.account a
    GROUP BY 1, 2
) AS sums
LEFT JOIN guerdon.asset ON sums.of_asset AND asset.sid = sums.item
LEFT JOIN guerdon.prize ON NOT sums.of_asset AND prize.sid = sums.item
