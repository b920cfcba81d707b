-- Write term and ledger at the beginning of a term, whatever the term before was, unless another ledger has the pool.
--
-- KEYS  1 term   2 ledger
-- ARGV  1 our term   2 our ledger
-- Reply {our term, the ledger that counts}
local ledger = redis.call('GET', KEYS[2])
if ledger and ledger ~= ARGV[2] then return {tonumber(ARGV[1]), ledger} end
redis.call('DEL', KEYS[1])  -- first, for a Redis at its memory limit
redis.call('SET', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2])
return {tonumber(ARGV[1]), ARGV[2]}
