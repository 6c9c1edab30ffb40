-- A page of the entries of one account, the newest first.
-- Inputs: $1 account, $2 transfer to go on before, $3 rows at most.
-- Output: the transfer, signed amount, key of the counterpart; and the account's balance in the same snapshot, which is
-- the balance after the newest entry of all.
-- Each side reads its own index backwards: never more than 2 x $3 rows, however long the history.
SELECT entry.id, entry.kind, entry.amount, entry.issuance, batch.booked_at, account.credits - account.debits AS balance,
    other.kind AS other_kind, subject.user_id, promotion.promotion_id, prize.prize_id, asset.asset
FROM (
    (SELECT t.id, t.batch, t.kind, -t.amount AS amount, t.credit AS other, t.issuance
    FROM guerdon.transfer t WHERE t.debit = $1 AND t.id < $2 ORDER BY t.id DESC LIMIT $3)
    UNION ALL
    (SELECT t.id, t.batch, t.kind, t.amount, t.debit, t.issuance
    FROM guerdon.transfer t WHERE t.credit = $1 AND t.id < $2 ORDER BY t.id DESC LIMIT $3)
    ORDER BY id DESC LIMIT $3
) AS entry
JOIN guerdon.account ON account.id = $1
JOIN guerdon.batch ON batch.id = entry.batch
JOIN guerdon.account other ON other.id = entry.other
LEFT JOIN guerdon.subject ON other.kind IN (3, 6) AND subject.sid = other.owner
LEFT JOIN guerdon.promotion ON other.kind NOT IN (3, 6) AND promotion.sid = other.owner
LEFT JOIN guerdon.prize ON other.kind <= 3 AND prize.sid = other.item
LEFT JOIN guerdon.asset ON other.kind > 3 AND asset.sid = other.item
ORDER BY entry.id DESC
