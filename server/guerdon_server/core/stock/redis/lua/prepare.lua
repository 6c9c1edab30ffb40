#!lua
-- Close the group and reserve it for one load under a new epoch. The first half of a rebuild: it comes before the
-- ledger is read, so that a load which was delayed or repeated after the group was opened and flushed again finds no
-- reservation and changes nothing.
--
-- KEYS  the group's four hashes (prelude.lua)
-- ARGV  1 epoch, 2 run id
-- Returns "STATUS RUN_ID": OPEN = reserved; CLOSED = another process than expected; SUPERSEDED = this process holds a
--       later epoch, or has opened this one already.
-- Writes meta; empties markers, admissions, limits but for a sentinel that is no epoch: a cluster runs a script that names
-- several keys on a slot which is being moved only if all of them exist.
local epoch, run = ARGV[1], ARGV[2]
local here = run_id()
if here ~= run then
  return STATUS.CLOSED .. ' ' .. here
end
local meta = redis.pcall('HMGET', KEYS[1], 'run', '@', 'loading')
if meta[1] == run then
  if (meta[2] and not later(epoch, meta[2])) or (meta[3] and later(meta[3], epoch)) then
    return STATUS.SUPERSEDED .. ' ' .. here
  end
end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
redis.call('HSET', KEYS[1], 'run', run, 'loading', epoch)
for i = 2, 4 do
  redis.call('HSET', KEYS[i], '@', '-')
end
return STATUS.OPEN .. ' ' .. here
