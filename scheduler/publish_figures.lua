-- Publish the leader's view of the room left, unless a later leader writes. `ledger_room` need not count what
-- waits in the streams: the guard does, and keeps `guard_epoch` and `guard_taken` beside the figures.
--
-- KEYS  1 term   2 admission
-- ARGV  1 our term   2 ledger_room   3 max_entries   4 max_bytes   5 retry_after_s
-- Reply {the term that counts, version of the catalogue mirrored here or '-1'}
local term, ours = tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1])
if term > ours then return {term, '-1'} end
if term < ours then redis.call('SET', KEYS[1], ARGV[1]) end

local time = redis.call('TIME')
local now_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[2], 'ledger_room', ARGV[2], 'max_entries', ARGV[3], 'max_bytes', ARGV[4],
           'retry_after_s', ARGV[5], 'published_ms', now_ms)
return {ours, redis.call('HGET', KEYS[2], 'catalogue_version') or '-1'}
