SELECT CASE WHEN count(*) > 1 THEN format(
    'issuance %s: %s grants, expected 1; first request %s', r.issuance_id, count(*), min(r.request_id)) END AS violation
FROM guerdon.request r
WHERE r.outcome = 1
GROUP BY r.issuance_id
