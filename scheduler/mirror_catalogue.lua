-- Write a part of the catalogue's mirror: a new one is begun beside the old, which `set_catalogue.lua` then replaces.
-- Follows guard.lua.
--
-- KEYS  3 hash
-- ARGV  3 'new' or ''   4 number of names to take off, then these, then two per adapter: name, entry as JSON
if ARGV[3] == 'new' then redis.call('UNLINK', KEYS[3]) end
local first = 5 + tonumber(ARGV[4])
for name = 5, first - 1 do redis.call('HDEL', KEYS[3], ARGV[name]) end
for entry = first, #ARGV, 2 do
  redis.call('HDEL', KEYS[3], ARGV[entry])  -- first, for a Redis at its memory limit
  redis.call('HSET', KEYS[3], ARGV[entry], ARGV[entry + 1])
end
return {ours, ARGV[2]}
