-- Give a pool to our ledger, unless a leader of another one still publishes.
--
-- KEYS  1 term   2 ledger   3 admission
-- ARGV  1 our ledger   2 age in ms from which the leader's figures are stale
-- Reply {ledger before or '', when a leader that may still live has published, in ms, or ''}
local ledger = redis.call('GET', KEYS[2]) or ''
if ledger == '' or ledger == ARGV[1] then return {ledger, ''} end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local published = redis.call('HGET', KEYS[3], 'published_ms')
if published and now_ms - tonumber(published) <= tonumber(ARGV[2]) then return {ledger, published} end
redis.call('DEL', KEYS[1])  -- first, for a Redis at its memory limit
redis.call('SET', KEYS[2], ARGV[1])
return {ledger, ''}
