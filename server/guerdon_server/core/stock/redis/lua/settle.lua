#!lua flags=allow-oom
-- Settle open admissions, from what was recorded when they were admitted.
--
-- KEYS  the group's four hashes (prelude.lua)
-- ARGV  1 epoch, 2 run id, 3 the items separated by spaces, each a code (SettleCode in model.py) with an admission:
--       g<ADMISSION_ID>                 GRANTED: what it took stays used, its request is marked granted
--       b<ADMISSION_ID>[:COUNT]         GIVEN_BACK: all that it took goes back. With COUNT the count of its limit key
--                                       is raised to at least that, the number that the ledger observed.
--       r<ADMISSION_ID>                 REPLAYED: all that it took goes back, its request is marked granted
-- Returns "STATUS RUN_ID" unless open, else "STATUS SETTLED": how many admissions were open and now are not.
-- An admission without a record has no effect, so a repetition has none.
-- Writes admissions (delete), markers, limits, meta (used, backs). May run out of memory's limit: it frees more than it takes.
local epoch, run = ARGV[1], ARGV[2]
local refusal = closed(epoch, run)
if refusal then
  return refusal
end

local ids, codes, observed = {}, {}, {}
for code, id, count in string.gmatch(ARGV[3], '(%a)(%d+):?(%d*)') do
  if not codes[id] then
    ids[#ids + 1] = id
    codes[id] = code
    observed[id] = tonumber(count) or 0
  end
end
if #ids == 0 then
  return STATUS.OPEN .. ' 0'
end

local records = redis.call('HMGET', KEYS[3], unpack(ids))
local gone, requests, granted, back, limit_order, back_count, floor = {}, {}, {}, {}, {}, {}, {}
local undone = {}
for i = 1, #ids do
  local record = records[i]
  if record then
    local id = ids[i]
    local request, limit_key, claims = string.match(record, '^%d+ (%S+) (%S+)(.*)$')
    gone[#gone + 1] = id
    if codes[id] ~= 'b' then
      granted[#granted + 1] = request
      granted[#granted + 1] = 'g'
    else
      requests[#requests + 1] = request
      undone[#undone + 1] = id
    end
    if codes[id] ~= 'g' then
      for resource, amount in string.gmatch(claims, '(%d+) (%d+)') do
        back[resource] = (back[resource] or 0) + tonumber(amount)
      end
      if limit_key ~= '-' then
        if not back_count[limit_key] then
          limit_order[#limit_order + 1] = limit_key
        end
        back_count[limit_key] = (back_count[limit_key] or 0) + 1
        floor[limit_key] = math.max(floor[limit_key] or 0, observed[id])
      end
    end
  end
end
if #gone == 0 then
  return STATUS.OPEN .. ' 0'
end

local unmarked = {}
if #requests > 0 then
  local held = redis.call('HMGET', KEYS[2], unpack(requests))
  for i = 1, #requests do
    if held[i] == undone[i] then -- not one that was marked granted meanwhile
      unmarked[#unmarked + 1] = requests[i]
    end
  end
end
local limit_writes, limit_gone = {}, {}
if #limit_order > 0 then
  local held = redis.call('HMGET', KEYS[4], unpack(limit_order))
  for i = 1, #limit_order do
    local limit_key = limit_order[i]
    local count = math.max(tonumber(held[i] or '0') - back_count[limit_key], floor[limit_key])
    if count > 0 then
      limit_writes[#limit_writes + 1] = limit_key
      limit_writes[#limit_writes + 1] = integer(count)
    else
      limit_gone[#limit_gone + 1] = limit_key
    end
  end
end
local meta_writes = {}
for resource, amount in pairs(back) do
  local used = tonumber(redis.call('HGET', KEYS[1], 'u:' .. resource))
  meta_writes[#meta_writes + 1] = 'u:' .. resource
  meta_writes[#meta_writes + 1] = integer(used - amount)
end

redis.call('HDEL', KEYS[3], unpack(gone))
if #unmarked > 0 then
  redis.call('HDEL', KEYS[2], unpack(unmarked))
end
if #limit_gone > 0 then
  redis.call('HDEL', KEYS[4], unpack(limit_gone))
end
if #meta_writes > 0 and redis.call('HEXISTS', KEYS[1], 'backs') == 1 then
  redis.call('HINCRBY', KEYS[1], 'backs', 1)
end
set_all(KEYS[2], granted)
set_all(KEYS[4], limit_writes)
set_all(KEYS[1], meta_writes)
return STATUS.OPEN .. ' ' .. #gone
