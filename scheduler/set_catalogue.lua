-- Say which version the mirror of the catalogue is, and let a new one take the place of the old. Follows guard.lua.
--
-- KEYS  3 catalogue   4 admission   5 the new one
-- ARGV  3 version   4 'new' if there is a new one, which is missing without adapters; else ''
redis.call('HDEL', KEYS[4], 'catalogue_version')  -- first, for a Redis at its memory limit
if ARGV[4] == 'new' then
  redis.call('UNLINK', KEYS[3])
  if redis.call('EXISTS', KEYS[5]) == 1 then redis.call('RENAME', KEYS[5], KEYS[3]) end
end
redis.call('HSET', KEYS[4], 'catalogue_version', ARGV[3])
return {ours, ARGV[2]}
