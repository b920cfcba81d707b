-- Replace the mirror of the catalogue. Follows guard.lua.
--
-- KEYS  3 catalogue   4 admission
-- ARGV  3 version, then two per adapter: name, entry as JSON
redis.call('DEL', KEYS[3])
for entry = 4, #ARGV, 2 do
  redis.call('HSET', KEYS[3], ARGV[entry], ARGV[entry + 1])
end
redis.call('HSET', KEYS[4], 'catalogue_version', ARGV[3])
return {ours, ARGV[2]}
