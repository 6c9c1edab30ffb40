#!lua
-- Bring resources up to the ledger's newer version, and add those that the gate does not hold yet.
--
-- A resource that the gate does not hold has had no admission under this epoch, and commits under earlier epochs are
-- refused since this one was opened. So the used that the ledger gave *after the epoch was opened* can't have moved, and
-- adding it loses nothing. Of one that is held only the capacity is taken: its used counts open admissions, too.
-- A bucket that has given units to others has so many less; after a recall that may be less than nothing: it owes them.
--
-- KEYS  the group's four hashes (prelude.lua)
-- ARGV  1 epoch, 2 run id, then per resource: RESOURCE CAPACITY VERSION USED|-      (-: don't add it)
-- Returns "STATUS RUN_ID" unless open; INEXACT as in load.lua; else "OPEN CHANGED": how many were added or overwritten.
-- Writes meta. Idempotent: an equal or older version changes nothing.
local epoch, run = ARGV[1], ARGV[2]
local refusal = closed(epoch, run)
if refusal then
  return refusal
end
local writes, changed = {}, 0
for i = 3, #ARGV, 4 do
  local resource, capacity, version, used = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if not (exact(capacity) and exact(version) and (used == '-' or exact(used))) then
    return STATUS.INEXACT .. ' ' .. run
  end
  local held, net = unpack(redis.call('HMGET', KEYS[1], 'v:' .. resource, 'n:' .. resource))
  if (held and tonumber(version) > tonumber(held)) or (not held and used ~= '-') then
    writes[#writes + 1] = 'c:' .. resource
    writes[#writes + 1] = integer(tonumber(capacity) - tonumber(net or '0'))
    writes[#writes + 1] = 'v:' .. resource
    writes[#writes + 1] = version
    if not held then
      writes[#writes + 1] = 'u:' .. resource
      writes[#writes + 1] = used
    end
    changed = changed + 1
  end
end
set_all(KEYS[1], writes)
return STATUS.OPEN .. ' ' .. changed
