-- Begins every script by which a leader writes: nothing is done unless its ledger and its term are those that count.
-- A Redis that knows no ledger, because it was flushed, takes this one's.
--
-- KEYS  1 term   2 ledger   then the script's own
-- ARGV  1 our term   2 our ledger   then the script's own
-- Reply {the term that counts, the ledger that counts}, then the script's own if both are ours
local term, ours = tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1])
local ledger = redis.call('GET', KEYS[2])
if ledger and ledger ~= ARGV[2] then return {term, ledger} end
if term > ours then return {term, ARGV[2]} end
-- Here and in what follows: after a first write that takes no memory, Redis refuses none at its memory limit.
if term < ours then
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[1], ARGV[1])
end
if not ledger then
  redis.call('DEL', KEYS[2])
  redis.call('SET', KEYS[2], ARGV[2])
end
