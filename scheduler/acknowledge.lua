-- Take finished entries off one stream and their bytes off the intake's count, then send what Redis had no room for
-- before: the deletions make room, and after them it refuses nothing here. Follows guard.lua.
--
-- KEYS  3 intake-bytes   4 stream
-- ARGV  3 group   4 number of entries, then two per entry: id, bytes to take off (0 for streams that are not counted)
--       then per command to send: number of its words, the words (its keys are not declared: no cluster is served)
local entries = tonumber(ARGV[4])
local freed = 0
for entry = 5, 3 + 2 * entries, 2 do
  redis.call('XACK', KEYS[4], ARGV[3], ARGV[entry])
  -- Only an entry that was still there is taken off, so that a repeated call counts nothing twice.
  if redis.call('XDEL', KEYS[4], ARGV[entry]) == 1 then freed = freed + tonumber(ARGV[entry + 1]) end
end
if freed > 0 then
  local left = tonumber(redis.call('GET', KEYS[3]) or '0') - freed
  redis.call('SET', KEYS[3], string.format('%.0f', math.max(0, left)))
end
local word = 5 + 2 * entries
while word <= #ARGV do
  local last = word + tonumber(ARGV[word])
  redis.pcall(unpack(ARGV, word + 1, last))  -- whoever misses one looks it up
  word = last + 1
end
return {ours, ARGV[2]}
