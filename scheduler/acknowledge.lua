-- Take finished entries off one stream and their bytes off the intake's count. Follows guard.lua.
--
-- KEYS  3 intake-bytes   4 stream
-- ARGV  3 group, then two per entry: id, bytes to take off (0 for streams that are not counted)
local freed = 0
for entry = 4, #ARGV, 2 do
  redis.call('XACK', KEYS[4], ARGV[3], ARGV[entry])
  -- Only an entry that was still there is taken off, so that a repeated call counts nothing twice.
  if redis.call('XDEL', KEYS[4], ARGV[entry]) == 1 then freed = freed + tonumber(ARGV[entry + 1]) end
end
if freed > 0 then
  local left = tonumber(redis.call('GET', KEYS[3]) or '0') - freed
  redis.call('SET', KEYS[3], string.format('%.0f', math.max(0, left)))
end
return {ours, ARGV[2]}
