-- KEYS: 1 the disturbed scopes, by the end of it    ARGV: 1 now or ''
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(now))
return redis.call('ZRANGE', KEYS[1], 0, -1)
