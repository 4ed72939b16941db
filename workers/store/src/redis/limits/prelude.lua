-- In front of every script of the limiter: the clock, and how a scope is read. decide/limits says the same in Rust; one contract suite
-- holds the two together, so operations stand in the same order here and there.
-- A scope is a hash. What every message touches is packed into as few fields as may be, doubles as they are: u minute, messages in it, before
-- it; b:B of a bucket B all, urgent, interval, tolerance; d tells that there may be more of these: p paused until, w why;
-- cl, ca, cr, cs: what a cut left, when, its recovery, the interval that was seen; si, so, sb, su, ws: set by an operator, in place of
-- which bucket, until, why; gg: tenants have weights, g:T that of tenant T.
-- Read by name where they are wanted: n:R, s:R calls for shaping rule R, since.
-- Beside it, for each lane, the ends of the tenants' lines and until when each one has had its share: two sorted sets.
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end
local WHOLE, HOLD = 1000000, 1000000
-- What is over lives on for an hour, so that a quiet scope keeps its counts.
local GRACE = 3600000000

local function text(n) return string.format('%.17g', n) end

local REST = { 'p', 'cl', 'ca', 'cr', 'cs', 'si', 'so', 'su', 'gg' }
local BUCKET, USED = '<dddd', '<ddd'

local function read(key, limits)
  local names = { 'd', 'u' }
  for i, limit in ipairs(limits) do names[i + 2] = 'b:' .. limit.bucket end
  local v = redis.call('HMGET', key, unpack(names))
  local s = { key = key, fresh = not v[2], b = {} }
  if v[2] then s.um, s.uc, s.ub = struct.unpack(USED, v[2]) end
  for i, limit in ipairs(limits) do
    local one = { t = 0, x = 0, i = 0, o = 0 }
    if v[i + 2] then one.t, one.x, one.i, one.o = struct.unpack(BUCKET, v[i + 2]) end
    s.b[limit.bucket] = one
  end
  if v[1] then
    local rest = redis.call('HMGET', key, unpack(REST))
    for i, name in ipairs(REST) do s[name] = tonumber(rest[i] or nil) end
  end
  s.p = s.p or 0
  return s
end

local function left(s)
  if not s.cl then return WHOLE end
  return math.min(WHOLE, s.cl + s.cr * math.max(now - s.ca, 0) / 1000000)
end

local function packed(b) return struct.pack(BUCKET, b.t, b.x, b.i, b.o) end

-- A bucket in terms of a limit, with the interval that a cut left of it now. What a clock that was ahead of this one left behind is set right.
local function bucket(s, limit, rest)
  local b, interval, from = s.b[limit.bucket], limit.interval * 1000000 / rest, math.max(now, s.p)
  local most, is_mended = from + 2 * (HOLD + interval), false
  for _, time in ipairs({ 't', 'x' }) do
    local room = b[time] - b.o
    if b.i > 0 and b.i ~= interval and room > from then room = from + (room - from) * interval / b.i end
    if room > most then room, is_mended = most, true end
    b[time] = room + limit.tolerance
  end
  b.i, b.o = interval, limit.tolerance
  if is_mended then redis.call('HSET', s.key, 'b:' .. limit.bucket, packed(b)) end
  return b
end

-- For so long must the hash be kept, in ms: for what is read of it, and until `more`.
local function life(s, more)
  local last = math.max(now, s.p, s.su or 0, more or 0)
  if s.cl then last = math.max(last, s.ca + (WHOLE - s.cl) / math.max(s.cr, 1) * 1000000) end
  for _, b in pairs(s.b) do last = math.max(last, b.t) end
  return text(math.floor((last - now + GRACE) / 1000))
end

-- Notes in the set of disturbed scopes until when this one is paused, cut or held to an operator's rate.
local function disturb(set, s, name)
  local till = math.max(s.p, s.su or 0)
  if s.cl then till = math.max(till, s.ca + (WHOLE - s.cl) / math.max(s.cr, 1) * 1000000) end
  if till > now then redis.call('ZADD', set, text(till), name) else redis.call('ZREM', set, name) end
end

-- Never shortens a life.
local function keep(s, more)
  local wanted, is = tonumber(life(s, more)), redis.call('PTTL', s.key)
  if wanted > is then redis.call('PEXPIRE', s.key, text(wanted)) end
end
