SELECT CASE
    WHEN equation.capacity <> equation.remaining + equation.issued OR equation.capacity <> equation.from_source
    THEN format(
        'prize %s: initial + top-ups - recalls = %s, its source gave %s; remaining %s + issued %s = %s',
        equation.prize_id, equation.capacity, equation.from_source,
        equation.remaining, equation.issued, equation.remaining + equation.issued)
    END AS violation
FROM (
    SELECT prize.prize_id, coalesce(moved.units, 0) AS capacity, source.debits - source.credits AS from_source,
        stock.credits - stock.debits AS remaining, coalesce(granted.count, 0) AS issued
    FROM guerdon.prize
    JOIN guerdon.account stock ON stock.id = prize.stock_account
    JOIN guerdon.account source ON source.id = prize.stock_source_account
    LEFT JOIN (
        SELECT CASE t.kind WHEN 3 THEN t.debit ELSE t.credit END AS account,
            sum(CASE t.kind WHEN 3 THEN -t.amount ELSE t.amount END) AS units
        FROM guerdon.transfer t
        WHERE t.kind IN (1, 2, 3)
        GROUP BY 1
    ) AS moved ON moved.account = stock.id
    LEFT JOIN (
        SELECT r.prize, count(*) FROM guerdon.request r WHERE r.outcome = 1 GROUP BY r.prize
    ) AS granted ON granted.prize = prize.sid
) AS equation
