-- Publish the leader's view of the room left. `ledger_room` need not count what waits in the streams: the submit
-- guard does, and keeps `guard_epoch` and `guard_taken` beside the figures. Follows guard.lua.
--
-- KEYS  3 admission   4 quotas
-- ARGV  3 ledger_room   4 max_entries   5 max_bytes   6 retry_after_s   7 items put aside in this term
--       then two per tenant with a quota: name, 'max_queued_jobs room retry_after_s max_tokens_per_s', '-' for no limit
-- Replies further: version of the catalogue mirrored here or '-1'
local time = redis.call('TIME')
local now_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HDEL', KEYS[3], 'published_ms')  -- first, for a Redis at its memory limit
redis.call('HSET', KEYS[3], 'ledger_room', ARGV[3], 'max_entries', ARGV[4], 'max_bytes', ARGV[5],
           'retry_after_s', ARGV[6], 'published_ms', now_ms, 'items_put_aside', ARGV[7])
redis.call('DEL', KEYS[4])
for tenant = 8, #ARGV, 2 do
  redis.call('HSET', KEYS[4], ARGV[tenant], ARGV[tenant + 1])
end
return {ours, ARGV[2], redis.call('HGET', KEYS[3], 'catalogue_version') or '-1'}
