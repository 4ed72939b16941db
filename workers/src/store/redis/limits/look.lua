-- KEYS: of each scope: hash, ends and shares of transactional mail, ends and shares of bulk mail
-- ARGV: 1 now or '', 2 'lines', or '' for a look that costs the same however many wait and leaves the buckets out as well
local out = { text(now) }
for at = 1, #KEYS, 5 do
  local one
  if ARGV[2] == 'lines' then
    one = { redis.call('HGETALL', KEYS[at]) }
    for offset = 1, 4 do one[#one + 1] = redis.call('ZRANGE', KEYS[at + offset], 0, -1, 'WITHSCORES') end
  else
    local fields = {}
    for i, value in ipairs(redis.call('HMGET', KEYS[at], unpack(FIXED))) do
      if value then fields[#fields + 1] = FIXED[i]; fields[#fields + 1] = value end
    end
    one = { fields, {}, {}, {}, {} }
  end
  out[#out + 1] = one
end
return out
