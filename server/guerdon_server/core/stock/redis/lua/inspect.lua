#!lua flags=allow-oom
-- What this process holds of the group, whatever its state: for (re-)opening, reconciling and verifying.
--
-- Not flagged no-writes although it writes nothing: then a former primary would answer it that follows another one now,
-- or has lost its replicas (min-replicas-to-write), and what it holds is not what the group is.
--
-- KEYS  the group's four hashes (prelude.lua)
-- ARGV  1 resources (1: also return them)
-- Returns {RUN_ID, EPOCH open here or "", EPOCH being loaded or "", COMPLETE 0|1, OPEN admissions (0 when closed),
--       backfill CURSOR or "", ms since the load or the backfill's last page or "", then RESOURCE CAPACITY VERSION
--       USED NET ...}; NET: what it gave to other buckets, less what it received (0 where there are none)
-- Writes nothing.
local here = run_id()
local meta = redis.pcall('HMGET', KEYS[1], '@', 'run', 'loading', 'complete', 'cursor', 'touched')
local open, loading = '', ''
if meta[1] and not closed(meta[1], here) then
  open = meta[1]
elseif meta[2] == here and meta[3] then
  loading = meta[3]
end
local touched = ''
if meta[6] then
  touched = integer(tonumber(now_ms()) - tonumber(meta[6]))
end
local reply = {
  here, open, loading, meta[4] or '0', integer(open ~= '' and redis.call('HLEN', KEYS[3]) - 1 or 0), meta[5] or '', touched,
}
if ARGV[1] == '1' and open ~= '' then
  local all = redis.call('HGETALL', KEYS[1])
  local held = {}
  for i = 1, #all, 2 do
    held[all[i]] = all[i + 1]
  end
  for field, capacity in pairs(held) do
    local resource = string.match(field, '^c:(%d+)$')
    if resource then
      reply[#reply + 1] = resource
      reply[#reply + 1] = capacity
      reply[#reply + 1] = held['v:' .. resource]
      reply[#reply + 1] = held['u:' .. resource]
      reply[#reply + 1] = held['n:' .. resource] or '0'
    end
  end
end
return reply
