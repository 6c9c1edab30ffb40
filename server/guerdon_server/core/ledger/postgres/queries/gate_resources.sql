-- What the gate of one promotion must agree with.
-- Inputs: $1 promotion's sid.
-- Output: one row for each limited stock and budget account: id, capacity, issued (= capacity - remaining).
SELECT a.id, source.debits - source.credits AS capacity,
    (source.debits - source.credits) - (a.credits - a.debits) AS issued
FROM guerdon.account a
JOIN guerdon.account source ON source.kind = a.kind - 1 AND source.owner = a.owner AND source.item = a.item
WHERE a.kind IN (2, 5) AND a.owner = $1 AND a.floor IS NOT NULL
