SELECT CASE WHEN a.credits - a.debits < 0 THEN format(
    'account %s (kind %s, owner %s, item %s): balance %s, floor 0',
    a.id, a.kind, a.owner, a.item, a.credits - a.debits) END AS violation
FROM guerdon.account a
WHERE a.floor IS NOT NULL OR a.kind IN (3, 6, 7)
