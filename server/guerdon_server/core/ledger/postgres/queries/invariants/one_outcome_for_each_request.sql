SELECT CASE WHEN count(*) > 1 THEN format(
    'promotion %s, request %s: %s rows, expected 1; issuances %s',
    r.promotion, r.request_id, count(*), string_agg(coalesce(r.issuance_id::text, '(none)'), ', ')) END AS violation
FROM guerdon.request r
GROUP BY r.promotion, r.request_id
