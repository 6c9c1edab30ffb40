#!lua
-- Admit a batch of requests: all-or-nothing per request, later ones see what earlier ones took.
--
-- KEYS  the group's four hashes (prelude.lua)
-- ARGV  1 epoch, 2 run id, 3 the items, all words separated by single spaces, per item:
--       ADMISSION_ID REQUEST_ID LIMIT_KEY|- LIMIT_MAX CLAIMS (RESOURCE AMOUNT){CLAIMS}      CLAIMS from 0 to 3
-- Returns "STATUS RUN_ID" unless open, else "STATUS COMPLETE ANSWER..." with one answer per item, in order:
--       1                        ADMITTED; also when this very admission is open already (a repeated call)
--       2:ADMISSION_ID           PENDING: another admission of this request is open; nothing taken
--       3                        GRANTED_BEFORE: the request has its grant; nothing taken
--       4:COUNT                  LIMIT_REACHED: COUNT are counted for the limit key
--       5:RESOURCE:REMAINING     REFUSED: REMAINING is what is left of that resource
--       6:RESOURCE               UNKNOWN_RESOURCE: the gate holds no such resource
--       COMPLETE is 1 when the markers know every granted request, so that a refusal can't hide a replay.
-- Writes markers, admissions, limits, meta (used), after everything has been decided. Idempotent by admission id.
-- Refused as a whole, before it starts, when memory is at its limit (no allow-oom flag).
local ADMITTED, PENDING, GRANTED_BEFORE, LIMIT_REACHED, REFUSED, UNKNOWN_RESOURCE = '1', '2:', '3', '4:', '5:', '6:'

local epoch, run = ARGV[1], ARGV[2]
local words, last = {}, 0
for word in string.gmatch(ARGV[3], '%S+') do
  last = last + 1
  words[last] = word
end

-- Read everything that the batch names, each structure once, its sentinel first.
local requests, limit_keys, meta_fields = { '@' }, { '@' }, { '@', 'run', 'complete' }
local seen_limit, seen_resource, resources = {}, {}, {}
local at = 1
while at <= last do
  requests[#requests + 1] = words[at + 1]
  local limit_key = words[at + 2]
  if limit_key ~= '-' and not seen_limit[limit_key] then
    seen_limit[limit_key] = true
    limit_keys[#limit_keys + 1] = limit_key
  end
  local claims_end = at + 4 + 2 * tonumber(words[at + 4])
  for claim = at + 5, claims_end, 2 do
    local resource = words[claim]
    if not seen_resource[resource] then
      seen_resource[resource] = true
      resources[#resources + 1] = resource
      meta_fields[#meta_fields + 1] = 'c:' .. resource
      meta_fields[#meta_fields + 1] = 'u:' .. resource
    end
  end
  at = claims_end + 1
end

local here = run_id()
local meta = redis.pcall('HMGET', KEYS[1], unpack(meta_fields))
local marker_values = redis.pcall('HMGET', KEYS[2], unpack(requests))
local limit_values = redis.pcall('HMGET', KEYS[4], unpack(limit_keys))
if here ~= run or meta[2] ~= run or meta[1] ~= epoch or marker_values[1] ~= epoch or limit_values[1] ~= epoch
    or redis.pcall('HGET', KEYS[3], '@') ~= epoch then
  return STATUS.CLOSED .. ' ' .. here
end

local marker, count, capacity, used = {}, {}, {}, {}
for i = 2, #requests do
  marker[requests[i]] = marker_values[i]
end
for i = 2, #limit_keys do
  count[limit_keys[i]] = tonumber(limit_values[i] or '0')
end
for i = 1, #resources do
  local held = meta[2 + 2 * i]
  if held then
    capacity[resources[i]] = tonumber(held)
    used[resources[i]] = tonumber(meta[3 + 2 * i])
  end
end

-- Decide, in order of arrival.
local answers = { STATUS.OPEN, meta[3] }
local marked, admitted, counted, taken = {}, {}, {}, {}
local now = nil
at = 1
while at <= last do
  local admission, request, limit_key = words[at], words[at + 1], words[at + 2]
  local claims_end = at + 4 + 2 * tonumber(words[at + 4])
  local held = marker[request]
  local answer = nil
  if held == admission then
    answer = ADMITTED
  elseif held == 'g' then
    answer = GRANTED_BEFORE
  elseif held then
    answer = PENDING .. held
  elseif limit_key ~= '-' and count[limit_key] >= tonumber(words[at + 3]) then
    answer = LIMIT_REACHED .. integer(count[limit_key])
  else
    for claim = at + 5, claims_end, 2 do
      local resource = words[claim]
      if not capacity[resource] then
        answer = UNKNOWN_RESOURCE .. resource
        break
      end
      -- The difference of two exact integers is exact; used + amount might not be.
      local left = capacity[resource] - used[resource]
      if tonumber(words[claim + 1]) > left then
        answer = REFUSED .. resource .. ':' .. integer(math.max(left, 0))
        break
      end
    end
    if not answer then
      if not now then
        now = now_ms()
      end
      local record = now .. ' ' .. request .. ' ' .. limit_key
      for claim = at + 5, claims_end, 2 do
        local resource = words[claim]
        used[resource] = used[resource] + tonumber(words[claim + 1])
        taken[resource] = true
        record = record .. ' ' .. resource .. ' ' .. words[claim + 1]
      end
      if limit_key ~= '-' then
        count[limit_key] = count[limit_key] + 1
        counted[limit_key] = true
      end
      marker[request] = admission
      marked[#marked + 1] = request
      marked[#marked + 1] = admission
      admitted[#admitted + 1] = admission
      admitted[#admitted + 1] = record
      answer = ADMITTED
    end
  end
  answers[#answers + 1] = answer
  at = claims_end + 1
end

-- Write, once per structure.
if now then
  local meta_writes, limit_writes = {}, {}
  for resource in pairs(taken) do
    meta_writes[#meta_writes + 1] = 'u:' .. resource
    meta_writes[#meta_writes + 1] = integer(used[resource])
  end
  for limit_key in pairs(counted) do
    limit_writes[#limit_writes + 1] = limit_key
    limit_writes[#limit_writes + 1] = integer(count[limit_key])
  end
  set_all(KEYS[2], marked)
  set_all(KEYS[3], admitted)
  set_all(KEYS[4], limit_writes)
  set_all(KEYS[1], meta_writes)
end
return table.concat(answers, ' ')
