-- decide/limits/charge.rs says the same.
-- KEYS: 1 the index of scopes, then the scopes
-- ARGV: 1 now or '', then for each scope: its name, the number of its charges, and of each: bucket, interval, tolerance, messages
local place = 2
for index = 2, #KEYS do
  local name, count, limits = ARGV[place], tonumber(ARGV[place + 1]), {}
  place = place + 2
  for n = 1, count do
    limits[n] = { bucket = ARGV[place], interval = tonumber(ARGV[place + 1]), tolerance = tonumber(ARGV[place + 2]) }
    limits[n].messages = tonumber(ARGV[place + 3])
    place = place + 4
  end
  local s = read(KEYS[index], limits)
  local rest, w = left(s), {}
  if s.fresh then
    w = { 'u', struct.pack(USED, 0, 0, 0) }
    redis.call('ZADD', KEYS[1], text(now), name)
  end
  for _, limit in ipairs(limits) do
    local b = bucket(s, limit, rest)
    local more, most = limit.messages * b.i, now + limit.tolerance + HOLD
    b.t = math.max(b.t, math.min(math.max(b.t, now) + more, most))
    b.x = math.max(b.x, math.min(math.max(b.x, now) + more, most))
    w[#w + 1] = 'b:' .. limit.bucket
    w[#w + 1] = packed(b)
  end
  redis.call('HSET', KEYS[index], unpack(w))
  keep(s)
end
return #KEYS - 1
