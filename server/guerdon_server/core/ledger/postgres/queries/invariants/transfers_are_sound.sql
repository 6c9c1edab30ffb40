SELECT CASE
    WHEN t.amount <= 0 THEN format('transfer %s: amount %s, expected above 0', t.id, t.amount)
    WHEN d.id IS NULL OR c.id IS NULL
        THEN format('transfer %s: debits account %s, credits account %s; one does not exist', t.id, t.debit, t.credit)
    WHEN NOT CASE t.kind
            WHEN 1 THEN d.kind = 1 AND c.kind = 2
            WHEN 2 THEN d.kind = 1 AND c.kind = 2
            WHEN 3 THEN d.kind = 2 AND c.kind = 1
            WHEN 4 THEN d.kind = 4 AND c.kind = 5
            WHEN 5 THEN d.kind = 4 AND c.kind = 5
            WHEN 6 THEN d.kind = 5 AND c.kind = 4
            WHEN 7 THEN d.kind = 2 AND c.kind = 3
            WHEN 8 THEN d.kind = 5 AND c.kind IN (6, 7)
        END
        THEN format('transfer %s of kind %s: from an account of kind %s to one of kind %s', t.id, t.kind, d.kind, c.kind)
    WHEN d.item <> c.item
        THEN format('transfer %s of kind %s: from item %s to item %s', t.id, t.kind, d.item, c.item)
    WHEN d.owner <> c.owner AND c.kind NOT IN (3, 6)
        THEN format('transfer %s of kind %s: from promotion %s to promotion %s', t.id, t.kind, d.owner, c.owner)
    END AS violation
FROM guerdon.transfer t
LEFT JOIN guerdon.account d ON d.id = t.debit
LEFT JOIN guerdon.account c ON c.id = t.credit
