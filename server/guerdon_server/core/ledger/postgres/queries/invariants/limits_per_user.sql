SELECT CASE WHEN count(*) > max(prize.limit_per_user_highest) THEN format(
    'user %s, prize %s: granted %s, limit at most %s',
    r.subject, max(prize.prize_id), count(*), max(prize.limit_per_user_highest)) END AS violation
FROM guerdon.request r
JOIN guerdon.prize ON prize.sid = r.prize
WHERE r.outcome = 1 AND prize.limit_per_user > 0 AND prize.limit_per_user_highest > 0
GROUP BY r.subject, r.prize
