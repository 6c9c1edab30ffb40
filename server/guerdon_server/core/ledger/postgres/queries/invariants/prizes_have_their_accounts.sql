SELECT CASE WHEN wrong.field IS NOT NULL
    THEN format('prize %s: %s is not the account of its promotion and item', prize.prize_id, wrong.field) END AS violation
FROM guerdon.prize
LEFT JOIN guerdon.account source ON source.id = prize.stock_source_account
LEFT JOIN guerdon.account stock ON stock.id = prize.stock_account
LEFT JOIN guerdon.account budget ON budget.id = prize.budget_account
LEFT JOIN guerdon.account liability ON liability.id = prize.liability_account
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN (source.kind, source.owner, source.item) IS DISTINCT FROM (1, prize.promotion, prize.sid)
            THEN 'stock source account ' || prize.stock_source_account
        WHEN (stock.kind, stock.owner, stock.item) IS DISTINCT FROM (2, prize.promotion, prize.sid)
            THEN 'stock account ' || prize.stock_account
        WHEN prize.asset IS NOT NULL
            AND (budget.kind, budget.owner, budget.item) IS DISTINCT FROM (5, prize.promotion, prize.asset)
            THEN 'budget account ' || prize.budget_account
        WHEN prize.liability_account IS NOT NULL
            AND (liability.kind, liability.owner, liability.item) IS DISTINCT FROM (7, prize.promotion, prize.asset)
            THEN 'liability account ' || prize.liability_account
    END AS field
) AS wrong
