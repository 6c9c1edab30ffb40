#!lua flags=allow-oom
-- One page of the open admissions. (Not flagged no-writes: inspect.lua says why.)
--
-- KEYS  the group's four hashes (prelude.lua)
-- ARGV  1 epoch, 2 run id, 3 HSCAN cursor (0 begins), 4 HSCAN count
-- Returns {"STATUS RUN_ID"} unless open, else {"OPEN", next cursor (0: the last page), TOTAL, NOW_MS,
--       ADMISSION_ID, RECORD, ...}; a record is "TIME_MS REQUEST_ID LIMIT_KEY [RESOURCE AMOUNT]...". Pages may repeat
--       an admission; one that is open throughout is on at least one page.
-- Writes nothing.
local refusal = closed(ARGV[1], ARGV[2])
if refusal then
  return { refusal }
end
local page = redis.call('HSCAN', KEYS[3], ARGV[3], 'COUNT', ARGV[4])
local reply = {
  STATUS.OPEN, page[1], integer(redis.call('HLEN', KEYS[3]) - 1), now_ms(),
}
for i = 1, #page[2], 2 do
  if page[2][i] ~= '@' then
    reply[#reply + 1] = page[2][i]
    reply[#reply + 1] = page[2][i + 1]
  end
end
return reply
