-- KEYS: 1 the index of scopes, 2 the scope, 3 the disturbed ones
-- ARGV: 1 now or '', 2 name of the scope, 3 order (pause, resume or set), 4 for how long, 5 why, 6 interval, 7 tolerance,
-- 8 bucket
local s = read(KEYS[2], {})
if s.fresh then redis.call('HSET', KEYS[2], 'u', struct.pack(USED, 0, 0, 0)); redis.call('ZADD', KEYS[1], text(now), ARGV[2]) end
if ARGV[3] == 'pause' then
  s.p = now + tonumber(ARGV[4])
  redis.call('HSET', KEYS[2], 'd', '1', 'p', text(s.p), 'w', ARGV[5])
elseif ARGV[3] == 'set' then
  s.su = now + tonumber(ARGV[4])
  redis.call('HSET', KEYS[2], 'd', '1', 'si', ARGV[6], 'so', ARGV[7], 'sb', ARGV[8], 'su', text(s.su), 'ws', ARGV[5])
else
  redis.call('HDEL', KEYS[2], 'p', 'w', 'cl', 'ca', 'cr', 'cs', 'si', 'so', 'sb', 'su', 'ws')
  if not s.gg then redis.call('HDEL', KEYS[2], 'd') end
  s.p, s.su, s.cl = 0, nil, nil
end
keep(s)
disturb(KEYS[3], s, ARGV[2])
return 'ok'
