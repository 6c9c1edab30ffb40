#!lua flags=allow-oom
-- Whether an admission of a request is open. (Not flagged no-writes: inspect.lua says why.)
--
-- KEYS  the group's four hashes (prelude.lua)
-- ARGV  1 epoch, 2 run id, 3 request id
-- Returns "STATUS RUN_ID" unless open, else "OPEN 1" or "OPEN 0".
-- Writes nothing.
local refusal = closed(ARGV[1], ARGV[2])
if refusal then
  return refusal
end
local marker = redis.call('HGET', KEYS[2], ARGV[3])
if marker and marker ~= 'g' then
  return STATUS.OPEN .. ' 1'
end
return STATUS.OPEN .. ' 0'
