-- Append jobs to the intake streams of one pool while the backlog has room; stop at the first without.
--
-- KEYS  1 intake-bytes   2 admission   3 quotas   4 quota-use   5.. intake streams, most urgent first
-- ARGV  1 max entries and 2 max bytes if the leader published none   3 age in ms from which its figures
--       are stale   4 retry_after_s if it published none   5 the client's release   6 seconds of its tokens per second
--       that a tenant may submit at once; then two per job: 'stream-number tokens tenant', and its body
-- Reply {entry ids of the jobs appended}, and for a refusal: reason, figure, limit, retry_after_s, tenant
local first_stream, first_job = 5, 7

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
for stream = first_stream, #KEYS do
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

-- Quotas hold while no leader publishes, too: what a tenant has queued does not become less without one.
local tenants = {}

local function quota_of(name)
  if tenants[name] ~= nil then return tenants[name] end
  local quota = redis.call('HGET', KEYS[3], name)
  if not quota then
    tenants[name] = false
    return false
  end
  local most, room, retry, rate = string.match(quota, '^(%S+) (%S+) (%S+) (%S+)$')
  local use = redis.call('HGET', KEYS[4], name) or '- 0 - 0'
  local epoch, let_in, level, level_ms = string.match(use, '^(%S+) (%S+) (%S+) (%S+)$')
  local one = {most = tonumber(most), room = tonumber(room), retry = retry, rate = tonumber(rate)}
  -- Of what was let in before this publication, no more can be missing in it than waits in the streams.
  one.let_in = epoch == (published or '') and tonumber(let_in) or math.min(tonumber(let_in), entries)
  if one.rate then
    local full = one.rate * tonumber(ARGV[6])
    local since_s = math.max(0, now_ms - tonumber(level_ms)) / 1000
    one.level = math.min(full, (tonumber(level) or full) + one.rate * since_s)
  end
  tenants[name] = one
  return one
end

local function quota_refusal(one)
  if one.room and one.let_in >= one.room then
    return 'tenant_jobs', one.most - one.room + one.let_in, one.most, one.retry
  end
  -- A job is let in at any size while there is something left, and the rest of it is a debt.
  if one.rate and one.level <= 0 then
    return 'tenant_tokens', one.rate, one.rate, string.format('%.3f', (1 - one.level) / one.rate)
  end
  return nil
end

local ids = {}
local reason, figure, limit, refused
for job = first_job, #ARGV, 2 do
  local number, tokens, name = string.match(ARGV[job], '^(%d+) (%d+) (.*)$')
  local body = ARGV[job + 1]
  local one = quota_of(name)
  reason, figure, limit = refusal(#body)
  if not reason and one then
    local retry
    reason, figure, limit, retry = quota_refusal(one)
    if reason then refused, retry_after_s = name, retry end
  end
  if reason then break end
  local stream = KEYS[first_stream - 1 + tonumber(number)]
  ids[#ids + 1] = redis.call('XADD', stream, '*', 'body', body, 'writer', ARGV[5])
  entries, bytes, taken = entries + 1, bytes + #body, taken + 1
  if one then
    one.let_in = one.let_in + 1
    one.level = one.level and one.level - tonumber(tokens)
    one.changed = true
  end
end

if #ids > 0 then
  redis.call('SET', KEYS[1], string.format('%.0f', bytes))
  if fresh then
    redis.call('HSET', KEYS[2], 'guard_epoch', published, 'guard_taken', taken)
  end
end
for name, one in pairs(tenants) do
  if one and one.changed then
    local level = one.level and string.format('%.3f', one.level) or '-'
    local use = string.format('%s %d %s %.0f', published or '-', one.let_in, level, now_ms)
    redis.call('HSET', KEYS[4], name, use)
  end
end
if reason then return {ids, reason, tostring(figure), tostring(limit), retry_after_s, refused or ''} end
return {ids}
