#!lua
-- Give free units of this bucket to another bucket of the same promotion, and tell how this one stands.
--
-- What was given is a total that only grows, and receive.lua adds what it lacks of it. So a lost reply, a repetition or a
-- crash between the two leaves units on their way, to be delivered by whoever looks next; it never makes any.
--
-- KEYS  the group's four hashes (prelude.lua)
-- ARGV  1 epoch, 2 run id, 3 how many buckets there are, 4 the target, from 0, then per resource: RESOURCE WANTED
--       (0: give nothing). Gives at least WANTED and at least an equal share, if it has that.
-- Returns {"STATUS RUN_ID"} unless open, else {OPEN, BACKS, then per resource CAPACITY VERSION USED, the totals GIVEN to
--       each bucket, the totals RECEIVED from each}: afterwards; zeros for a resource that the bucket does not hold.
--       BACKS: how many calls of settle.lua have given something back since this was first asked.
-- Writes meta.
local epoch, run, buckets, target = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local refusal = closed(epoch, run)
if refusal then
  return { refusal }
end
redis.call('HSETNX', KEYS[1], 'backs', '0')
local reply = { STATUS.OPEN, redis.call('HGET', KEYS[1], 'backs') }
local writes = {}
for i = 5, #ARGV, 2 do
  local resource, wanted = ARGV[i], tonumber(ARGV[i + 1])
  local fields = { 'c:' .. resource, 'v:' .. resource, 'u:' .. resource, 'n:' .. resource }
  for bucket = 0, buckets - 1 do
    fields[5 + bucket] = 'g:' .. resource .. ':' .. bucket
    fields[5 + buckets + bucket] = 'r:' .. resource .. ':' .. bucket
  end
  local held = redis.call('HMGET', KEYS[1], unpack(fields))
  for at = 1, #fields do
    held[at] = tonumber(held[at] or '0')
  end
  local free, given = held[1] - held[3], held[5 + target]
  if wanted > 0 and free > 0 then
    local units = math.min(free, math.max(wanted, math.floor(free / buckets)), EXACT_MAX - given)
    held[1], held[4], held[5 + target] = held[1] - units, held[4] + units, given + units
    for _, at in ipairs({ 1, 4, 5 + target }) do
      writes[#writes + 1] = fields[at]
      writes[#writes + 1] = integer(held[at])
    end
  end
  for at = 1, #fields do
    if at ~= 4 then
      reply[#reply + 1] = integer(held[at])
    end
  end
end
set_all(KEYS[1], writes)
return reply
