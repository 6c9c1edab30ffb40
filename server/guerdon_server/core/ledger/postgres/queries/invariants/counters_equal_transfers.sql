SELECT CASE
    WHEN a.id IS NULL THEN format(
        'account %s does not exist, but transfers debit it %s and credit it %s',
        booked.account, booked.debits, booked.credits)
    WHEN a.debits <> coalesce(booked.debits, 0) OR a.credits <> coalesce(booked.credits, 0) THEN format(
        'account %s (kind %s, owner %s, item %s): debits %s, of its transfers %s; credits %s, of its transfers %s',
        a.id, a.kind, a.owner, a.item,
        a.debits, coalesce(booked.debits, 0), a.credits, coalesce(booked.credits, 0))
    END AS violation
FROM guerdon.account a
FULL JOIN (
    SELECT side.account, sum(side.debit) AS debits, sum(side.credit) AS credits
    FROM (
        SELECT t.debit AS account, t.amount AS debit, 0::bigint AS credit FROM guerdon.transfer t
        UNION ALL
        SELECT t.credit, 0, t.amount FROM guerdon.transfer t
    ) AS side
    GROUP BY side.account
) AS booked ON booked.account = a.id
