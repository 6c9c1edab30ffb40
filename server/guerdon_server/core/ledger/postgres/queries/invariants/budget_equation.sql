SELECT CASE
    WHEN equation.capacity <> equation.remaining + equation.granted OR equation.capacity <> equation.from_source
        OR equation.granted <> equation.transferred
    THEN format(
        'promotion %s, asset %s: initial + top-ups - recalls = %s, its source gave %s; remaining %s + granted %s = %s;'
        ' transferred %s',
        equation.promotion_id, equation.asset, equation.capacity, equation.from_source, equation.remaining,
        equation.granted, equation.remaining + equation.granted, equation.transferred)
    END AS violation
FROM (
    SELECT promotion.promotion_id, asset.asset, coalesce(moved.units, 0) AS capacity,
        coalesce(source.debits - source.credits, 0) AS from_source, budget.credits - budget.debits AS remaining,
        coalesce(granted.units, 0) AS granted, coalesce(transferred.units, 0) AS transferred
    FROM guerdon.account budget
    LEFT JOIN guerdon.promotion ON promotion.sid = budget.owner
    LEFT JOIN guerdon.asset ON asset.sid = budget.item
    LEFT JOIN guerdon.account source ON source.kind = 4 AND source.owner = budget.owner AND source.item = budget.item
    LEFT JOIN (
        SELECT CASE t.kind WHEN 6 THEN t.debit ELSE t.credit END AS account,
            sum(CASE t.kind WHEN 6 THEN -t.amount ELSE t.amount END) AS units
        FROM guerdon.transfer t
        WHERE t.kind IN (4, 5, 6)
        GROUP BY 1
    ) AS moved ON moved.account = budget.id
    LEFT JOIN (
        SELECT r.promotion, prize.asset, sum(r.value) AS units
        FROM guerdon.request r JOIN guerdon.prize ON prize.sid = r.prize
        WHERE r.outcome = 1 AND r.value IS NOT NULL
        GROUP BY r.promotion, prize.asset
    ) AS granted ON granted.promotion = budget.owner AND granted.asset = budget.item
    LEFT JOIN (
        SELECT t.debit AS account, sum(t.amount) AS units FROM guerdon.transfer t WHERE t.kind = 8 GROUP BY t.debit
    ) AS transferred ON transferred.account = budget.id
    WHERE budget.kind = 5
) AS equation
