-- Replace the mirror of the catalogue, unless a later leader writes.
--
-- KEYS  1 term   2 catalogue   3 admission
-- ARGV  1 our term   2 version, then two per adapter: name, entry as JSON
-- Reply: the term that counts
local term, ours = tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1])
if term > ours then return term end
if term < ours then redis.call('SET', KEYS[1], ARGV[1]) end

redis.call('DEL', KEYS[2])
for entry = 3, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[entry], ARGV[entry + 1])
end
redis.call('HSET', KEYS[3], 'catalogue_version', ARGV[2])
return ours
