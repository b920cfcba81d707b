-- Take finished entries off one stream and their bytes off the intake's count, unless a later leader writes.
--
-- KEYS  1 term   2 intake-bytes   3 stream
-- ARGV  1 our term   2 group, then two per entry: id, bytes to take off (0 for streams that are not counted)
-- Reply: the term that counts; another than ours means that nothing was done
local term, ours = tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1])
if term > ours then return term end
if term < ours then redis.call('SET', KEYS[1], ARGV[1]) end

local freed = 0
for entry = 3, #ARGV, 2 do
  redis.call('XACK', KEYS[3], ARGV[2], ARGV[entry])
  -- Only an entry that was still there is taken off, so that a repeated call counts nothing twice.
  if redis.call('XDEL', KEYS[3], ARGV[entry]) == 1 then freed = freed + tonumber(ARGV[entry + 1]) end
end
if freed > 0 then
  local left = tonumber(redis.call('GET', KEYS[2]) or '0') - freed
  redis.call('SET', KEYS[2], string.format('%.0f', math.max(0, left)))
end
return ours
