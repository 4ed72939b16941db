-- KEYS: of each scope: hash, ends and shares of transactional mail, ends and shares of bulk mail
-- ARGV: 1 now or ''
local out = { text(now) }
for at = 1, #KEYS, 5 do
  local one = { redis.call('HGETALL', KEYS[at]) }
  for offset = 1, 4 do one[#one + 1] = redis.call('ZRANGE', KEYS[at + offset], 0, -1, 'WITHSCORES') end
  out[#out + 1] = one
end
return out
