#!lua
-- Add what other buckets of the promotion have given to this one, and it does not have yet.
--
-- KEYS  the group's four hashes (prelude.lua)
-- ARGV  1 epoch, 2 run id, then per delivery: RESOURCE SOURCE TOTAL, the total that give.lua of the bucket SOURCE told
-- Returns "STATUS RUN_ID" unless open; INEXACT as in load.lua; else "OPEN UNITS": how many were added, over all.
-- Writes meta. Idempotent: a total that is not greater than the last one changes nothing.
local epoch, run = ARGV[1], ARGV[2]
local refusal = closed(epoch, run)
if refusal then
  return refusal
end
for i = 5, #ARGV, 3 do
  if not exact(ARGV[i]) then
    return STATUS.INEXACT .. ' ' .. run
  end
end
local received = 0
for i = 3, #ARGV, 3 do
  local capacity, net, last = 'c:' .. ARGV[i], 'n:' .. ARGV[i], 'r:' .. ARGV[i] .. ':' .. ARGV[i + 1]
  local held = redis.call('HMGET', KEYS[1], capacity, net, last)
  local units = tonumber(ARGV[i + 2]) - tonumber(held[3] or '0')
  if held[1] and units > 0 then
    redis.call('HSET', KEYS[1], capacity, integer(tonumber(held[1]) + units),
      net, integer(tonumber(held[2] or '0') - units), last, ARGV[i + 2])
    received = received + units
  end
end
return STATUS.OPEN .. ' ' .. integer(received)
