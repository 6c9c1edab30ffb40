-- Sums over all accounts, in one snapshot. Reads every account.
-- Output: asset (null: units of prizes), kind, account_count, debits, credits.
SELECT asset.asset, sums.kind, sums.account_count, sums.debits, sums.credits
FROM (
    SELECT CASE WHEN a.kind > 3 THEN a.item END AS item, a.kind, count(*) AS account_count,
        sum(a.debits) AS debits, sum(a.credits) AS credits
    FROM guerdon.account a
    GROUP BY 1, 2
) AS sums
LEFT JOIN guerdon.asset ON asset.sid = sums.item
ORDER BY asset.asset NULLS FIRST, sums.kind
