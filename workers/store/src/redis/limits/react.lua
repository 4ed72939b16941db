-- KEYS: 1 the index of scopes, 2 the scope, 3 the disturbed ones
-- ARGV: 1 now or '', 2 name of the scope, 3 shaping rule, 4 calls it takes, 5 within, 6 pause, 7 keep, 8 floor, 9 recovery, 10 incident,
-- 11 interval that was seen or 0, 12 why
local s = read(KEYS[2], {})
local count = tonumber(ARGV[4])
local pause, kept, floor = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local rest, cut, fired = left(s), false, true
local w, counts = {}, 0
local function put(name, value) w[#w + 1] = name; w[#w + 1] = value end
if s.fresh then put('u', struct.pack(USED, 0, 0, 0)); redis.call('ZADD', KEYS[1], text(now), ARGV[2]) end
if count > 1 then
  local v = redis.call('HMGET', KEYS[2], 'n:' .. ARGV[3], 's:' .. ARGV[3])
  local n, since = tonumber(v[1] or '0'), tonumber(v[2] or now)
  if now - since > tonumber(ARGV[5]) or now < since then n, since = 0, now end
  counts = since + tonumber(ARGV[5])
  n = n + 1
  if n < count then
    fired = false
    put('n:' .. ARGV[3], text(n)); put('s:' .. ARGV[3], text(since))
  else
    redis.call('HDEL', KEYS[2], 'n:' .. ARGV[3], 's:' .. ARGV[3])
  end
end
if fired then
  put('d', '1')
  -- A pause that outlasts this one, of an operator as a rule, keeps its reason.
  if s.p <= now + pause then put('w', ARGV[12]) end
  if pause > 0 then
    s.p = math.max(s.p, now + pause)
    put('p', text(s.p))
  end
  if kept < WHOLE and not (s.cl and now >= s.ca and now - s.ca <= tonumber(ARGV[10])) then
    local seen = tonumber(ARGV[11])
    if s.cl and rest < WHOLE and s.cs > 0 then seen = s.cs end
    rest = math.max(math.floor(rest * kept / WHOLE), math.min(floor, rest))
    cut = true
    s.cl, s.ca, s.cr, s.cs = rest, now, tonumber(ARGV[9]), seen
    put('cl', text(s.cl)); put('ca', text(s.ca)); put('cr', text(s.cr)); put('cs', text(s.cs))
  end
end
if #w > 0 then redis.call('HSET', KEYS[2], unpack(w)) end
keep(s, counts)
disturb(KEYS[3], s, ARGV[2])
return { fired and '1' or '0', cut and '1' or '0', text(rest), text(math.max(s.p - now, 0)) }
