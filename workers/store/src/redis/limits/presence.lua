-- KEYS: 1 workers, by the end of their life in ms    ARGV: 1 the worker, 2 its life in ms
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
-- Said before the clock was set back.
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('(%.0f', now + 2 * tonumber(ARGV[2])), '+inf')
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
