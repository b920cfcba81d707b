-- Append jobs to the intake streams of one pool while the backlog has room; stop at the first without.
--
-- KEYS  1 intake-bytes   2 admission   3.. intake streams, most urgent first
-- ARGV  1 max entries and 2 max bytes if the leader published none   3 age in ms from which its figures
--       are stale   4 retry_after_s if it published none   5 the client's release; then two per job: stream number, body
-- Reply {entry ids of the jobs appended}, and for a refusal: reason, figure, limit, retry_after_s
local first_job = 6

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local figures = redis.call('HMGET', KEYS[2], 'ledger_room', 'max_entries', 'max_bytes', 'retry_after_s',
                           'published_ms', 'guard_epoch', 'guard_taken')
local max_entries = tonumber(figures[2] or ARGV[1])
local max_bytes = tonumber(figures[3] or ARGV[2])
local retry_after_s = figures[4] or ARGV[4]
local published = figures[5]
local fresh = published and figures[1] and now_ms - tonumber(published) <= tonumber(ARGV[3])

local entries = 0
for stream = 3, #KEYS do
  entries = entries + redis.call('XLEN', KEYS[stream])
end
-- An empty intake holds no bytes: a counter that drifted is put right here.
local bytes = entries > 0 and math.max(0, tonumber(redis.call('GET', KEYS[1]) or 0)) or 0

-- The leader's figure stands still between two publications, so what was taken from it is counted here:
-- at its first use all that waits in the streams, then every job appended since.
local taken = entries
if fresh and figures[6] == published then
  taken = math.max(entries, tonumber(figures[7]))
end
local ledger_room = tonumber(figures[1] or 0)

local function refusal(size)
  if entries >= max_entries then return 'entries', entries, max_entries end
  if bytes + size > max_bytes then return 'bytes', bytes + size, max_bytes end
  if fresh and taken >= ledger_room then return 'ledger', taken, ledger_room end
  return nil
end

local ids = {}
local reason, figure, limit
for job = first_job, #ARGV, 2 do
  local body = ARGV[job + 1]
  reason, figure, limit = refusal(#body)
  if reason then break end
  ids[#ids + 1] = redis.call('XADD', KEYS[2 + tonumber(ARGV[job])], '*', 'body', body, 'writer', ARGV[5])
  entries, bytes, taken = entries + 1, bytes + #body, taken + 1
end

if #ids > 0 then
  redis.call('SET', KEYS[1], string.format('%.0f', bytes))
  if fresh then
    redis.call('HSET', KEYS[2], 'guard_epoch', published, 'guard_taken', taken)
  end
end
if reason then return {ids, reason, tostring(figure), tostring(limit), retry_after_s} end
return {ids}
