-- Make the consumer group of each stream that has none, from the first entry on. Follows guard.lua.
--
-- KEYS  3.. streams
-- ARGV  3 group
redis.call('DEL', KEYS[1])  -- first, for a Redis at its memory limit
redis.call('SET', KEYS[1], ARGV[1])
for stream = 3, #KEYS do
  local made = redis.pcall('XGROUP', 'CREATE', KEYS[stream], ARGV[3], '0', 'MKSTREAM')
  if type(made) == 'table' and made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
end
return {ours, ARGV[2]}
