#!lua
-- Mark requests whose grants were found in the ledger (the backfill after a rebuild), or declare the markers complete.
--
-- KEYS  the group's four hashes (prelude.lua)
-- ARGV  1 epoch, 2 run id, 3 complete (1 after the last page, else 0), then the request ids of one page, in order
-- Returns "STATUS RUN_ID" unless open, else "OPEN".
-- Writes markers; meta (complete, cursor = the last request id, touched = now in ms), so that another worker can see
-- whether a backfill is alive and go on where it stopped.
local epoch, run = ARGV[1], ARGV[2]
local refusal = closed(epoch, run)
if refusal then
  return refusal
end
local marks = {}
for i = 4, #ARGV do
  marks[#marks + 1] = ARGV[i]
  marks[#marks + 1] = 'g'
end
local meta = { 'touched', now_ms() }
if #ARGV > 3 then
  meta[3], meta[4] = 'cursor', ARGV[#ARGV]
end
if ARGV[3] == '1' then
  meta[#meta + 1], meta[#meta + 2] = 'complete', '1'
end
set_all(KEYS[2], marks)
set_all(KEYS[1], meta)
return STATUS.OPEN
