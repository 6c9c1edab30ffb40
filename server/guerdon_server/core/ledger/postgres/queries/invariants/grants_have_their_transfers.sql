SELECT CASE
    WHEN r.issuance_id IS NULL THEN format(
        'issuance %s is no grant, but has %s unit transfers and %s value transfers (first: transfer %s)',
        coalesce(chain.issuance::text, '(none)'), chain.units, chain.values, chain.first)
    WHEN chain.issuance IS NULL THEN format('issuance %s: no transfers, expected %s', r.issuance_id,
        1 + (r.value IS NOT NULL)::int)
    WHEN chain.others > 0 THEN format(
        'issuance %s: %s transfers of another kind than of an issuance, expected 0', r.issuance_id, chain.others)
    WHEN (chain.units, chain.unit_amount, chain.unit_debit, chain.unit_credit, chain.unit_batch)
        IS DISTINCT FROM (1, 1, prize.stock_account, holding.id, r.batch) THEN format(
        'issuance %s: unit transfers %s x %s from account %s to %s in batch %s, expected 1 x 1 from %s to %s in batch %s',
        r.issuance_id, chain.units, chain.unit_amount, chain.unit_debit, chain.unit_credit, chain.unit_batch,
        prize.stock_account, holding.id, r.batch)
    WHEN (r.value IS NULL) <> (prize.asset IS NULL) OR r.value <= 0 THEN format(
        'issuance %s: value %s, but the asset of prize %s is %s', r.issuance_id, coalesce(r.value::text, 'none'),
        prize.prize_id, coalesce(prize.asset::text, 'none'))
    WHEN r.value IS NULL AND chain.values > 0 THEN format(
        'issuance %s: value transfers %s x %s, expected none', r.issuance_id, chain.values, chain.value_amount)
    WHEN r.value IS NOT NULL
        AND (chain.values, chain.value_amount, chain.value_debit, chain.value_credit, chain.value_batch)
        IS DISTINCT FROM (1, r.value, prize.budget_account, coalesce(prize.liability_account, wallet.id), r.batch)
        THEN format(
        'issuance %s: value transfers %s x %s from account %s to %s in batch %s, expected 1 x %s from %s to %s in batch %s',
        r.issuance_id, chain.values, chain.value_amount, chain.value_debit, chain.value_credit, chain.value_batch,
        r.value, prize.budget_account, coalesce(prize.liability_account, wallet.id), r.batch)
    END AS violation
FROM (
    -- The least of one is the one; of several the count differs anyway.
    SELECT t.issuance, min(t.id) AS first,
        count(*) FILTER (WHERE t.kind = 7) AS units,
        min(t.amount) FILTER (WHERE t.kind = 7) AS unit_amount,
        min(t.debit) FILTER (WHERE t.kind = 7) AS unit_debit,
        min(t.credit) FILTER (WHERE t.kind = 7) AS unit_credit,
        min(t.batch) FILTER (WHERE t.kind = 7) AS unit_batch,
        count(*) FILTER (WHERE t.kind = 8) AS values,
        min(t.amount) FILTER (WHERE t.kind = 8) AS value_amount,
        min(t.debit) FILTER (WHERE t.kind = 8) AS value_debit,
        min(t.credit) FILTER (WHERE t.kind = 8) AS value_credit,
        min(t.batch) FILTER (WHERE t.kind = 8) AS value_batch,
        count(*) FILTER (WHERE t.kind NOT IN (7, 8)) AS others
    FROM guerdon.transfer t
    WHERE t.kind IN (7, 8) OR t.issuance IS NOT NULL
    GROUP BY t.issuance
) AS chain
FULL JOIN (SELECT * FROM guerdon.request WHERE outcome = 1) AS r ON r.issuance_id = chain.issuance
LEFT JOIN guerdon.prize ON prize.sid = r.prize
LEFT JOIN guerdon.account holding ON holding.kind = 3 AND holding.owner = r.subject AND holding.item = r.prize
LEFT JOIN guerdon.account wallet
    ON wallet.kind = 6 AND wallet.owner = r.subject AND wallet.item = prize.asset AND prize.liability_account IS NULL
