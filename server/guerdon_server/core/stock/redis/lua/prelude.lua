-- Put in front of every script by scripts.py (Lua in Redis has no include). Not a command of its own.
--
-- A gate group is four hashes with one hash tag, in this order in KEYS:
--   1 meta        @ epoch; run, complete, loading, cursor, touched; per resource c:ID capacity, v:ID version, u:ID used;
--                 of a promotion with several buckets, each a group: backs, and per resource g:ID:BUCKET given to and
--                 r:ID:BUCKET received from another one, n:ID = given - received, over all (give.lua)
--   2 markers     @ epoch; REQUEST_ID -> the open admission's id, or g (granted)
--   3 admissions  @ epoch; ADMISSION_ID -> "TIME_MS REQUEST_ID LIMIT_KEY [RESOURCE AMOUNT]..."
--   4 limits      @ epoch; LIMIT_KEY -> count
-- No id contains "@", so the sentinel can't collide. Whichever structure lost its sentinel closes the whole group:
-- missing means closed, never zero. So does a key of another type, which is why sentinels are read with pcall.
--
-- Every number is an integer below 2^53 (exact in a double) and is written with %.0f, never with tostring, which
-- makes 1e+14 of 100000000000000. Epochs and admission ids are 63-bit: they are compared as strings, never converted.
--
-- Every reply starts with a status (Status in model.py).
local STATUS = { OPEN = '0', CLOSED = '1', SUPERSEDED = '2', NOT_PREPARED = '3', INEXACT = '4' }

-- One call's arguments are pushed on the Lua stack, which holds 8000: longer lists go in pieces.
local STACK_MAX = 7000 -- even: pairs are never torn

local EXACT_MAX = 9007199254740991 -- 2^53 - 1

local function integer(number)
  return string.format('%.0f', number)
end

local function now_ms()
  local clock = redis.call('TIME')
  return integer(tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000))
end

-- It changes with every restart and differs on a replica, so what a former process promised is never taken for ours.
-- Read here and not once a connection: a proxy or a fail-over can change the server behind a living connection.
local function run_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

-- nil if the group is open under `epoch` on the process `run`, else the reply CLOSED RUN_ID.
local function closed(epoch, run)
  local here = run_id()
  local meta = redis.pcall('HMGET', KEYS[1], '@', 'run')
  if here == run and meta[2] == run and meta[1] == epoch
      and redis.pcall('HGET', KEYS[2], '@') == epoch
      and redis.pcall('HGET', KEYS[3], '@') == epoch
      and redis.pcall('HGET', KEYS[4], '@') == epoch then
    return nil
  end
  return STATUS.CLOSED .. ' ' .. here
end

-- `list` is flat: field, value, field, value, ...
local function set_all(key, list)
  for first = 1, #list, STACK_MAX do
    redis.call('HSET', key, unpack(list, first, math.min(first + STACK_MAX - 1, #list)))
  end
end

-- 63-bit decimals without leading zeros: is a > b?
local function later(a, b)
  return #a > #b or (#a == #b and a > b)
end

-- An integer from 0 to 2^53 - 1, in the only spelling that %.0f gives it.
local function exact(text)
  local number = tonumber(text)
  return number and number >= 0 and number <= EXACT_MAX and integer(number) == text
end
