#!lua
-- Open the prepared group with what the ledger holds. The second half of a rebuild.
--
-- KEYS  the group's four hashes (prelude.lua)
-- ARGV  1 epoch, 2 run id, 3 complete (1: no request was granted before this epoch; 0: markers must be backfilled),
--       then per resource: RESOURCE CAPACITY VERSION USED
-- Returns "STATUS RUN_ID": OPEN (also when this epoch is open already: a repetition changes nothing);
--       CLOSED = another process than expected; NOT_PREPARED = this epoch has no reservation here; INEXACT = a number
--       is no integer below 2^53.
-- Writes all four hashes.
local epoch, run = ARGV[1], ARGV[2]
if not closed(epoch, run) then
  return STATUS.OPEN .. ' ' .. run
end
local here = run_id()
if here ~= run then
  return STATUS.CLOSED .. ' ' .. here
end
local meta = redis.pcall('HMGET', KEYS[1], 'run', 'loading')
if meta[1] ~= run or meta[2] ~= epoch then
  return STATUS.NOT_PREPARED .. ' ' .. here
end
-- The backfill counts as alive from now on: it is the loader's to do.
local writes = { '@', epoch, 'run', run, 'complete', ARGV[3], 'touched', now_ms() }
for i = 4, #ARGV, 4 do
  if not (exact(ARGV[i + 1]) and exact(ARGV[i + 2]) and exact(ARGV[i + 3])) then
    return STATUS.INEXACT .. ' ' .. here
  end
  local resource = ARGV[i]
  writes[#writes + 1] = 'c:' .. resource
  writes[#writes + 1] = ARGV[i + 1]
  writes[#writes + 1] = 'v:' .. resource
  writes[#writes + 1] = ARGV[i + 2]
  writes[#writes + 1] = 'u:' .. resource
  writes[#writes + 1] = ARGV[i + 3]
end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
redis.call('HSET', KEYS[2], '@', epoch)
redis.call('HSET', KEYS[3], '@', epoch)
redis.call('HSET', KEYS[4], '@', epoch)
set_all(KEYS[1], writes)
return STATUS.OPEN .. ' ' .. here
