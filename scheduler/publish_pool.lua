-- Publish the pool under its id. Follows guard.lua.
--
-- KEYS  3 pools
-- ARGV  3 pool   4 its description as JSON
redis.call('HDEL', KEYS[3], ARGV[3])  -- first, for a Redis at its memory limit
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
return {ours, ARGV[2]}
