-- One account by what it is for, in one snapshot.
-- Inputs: $1 kind, $2 user id, $3 promotion id, $4 prize id, $5 asset (empty where the kind has no need of it).
-- Output: one row: the sids of promotion and prize (null: unknown); id, debits, credits (null: never used).
SELECT promotion.sid AS promotion, prize.sid AS prize, account.id, account.debits, account.credits
FROM (VALUES (1)) AS one_row
LEFT JOIN guerdon.subject ON subject.user_id = $2
LEFT JOIN guerdon.promotion ON promotion.promotion_id = $3
LEFT JOIN guerdon.prize ON prize.prize_id = $4
LEFT JOIN guerdon.asset ON asset.asset = $5
LEFT JOIN guerdon.account ON account.kind = $1::smallint
    AND account.owner = CASE
        WHEN $1::smallint IN (3, 6) THEN subject.sid
        WHEN $1::smallint IN (1, 2) THEN prize.promotion
        ELSE promotion.sid
    END
    AND account.item = CASE WHEN $1::smallint <= 3 THEN prize.sid ELSE asset.sid END
