-- In front of every script of the limiter: the clock, and how a scope is read. decide/limits says the same in Rust; one contract suite
-- holds the two together, so operations stand in the same order here and there.
-- A scope is a hash. Of a bucket B: t:B (all), x:B (urgent), i:B (interval), o:B (tolerance). p paused until, w why;
-- cl, ca, cr, cs: what a cut left, when, its recovery, the interval that was seen; si, so, su: set by an operator, until;
-- n:R, s:R: calls for reaction R, since; um, uc, ub: minute, messages in it, before it; g:T weight of a tenant, gg: there are such.
-- Beside it, for each lane, the ends of the tenants' lines and until when each one has had its share: two sorted sets.
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end
local WHOLE = 1000000
-- What is over lives on for an hour, so that a quiet scope keeps its counts.
local GRACE = 3600000000

local function text(n) return string.format('%.17g', n) end

local FIXED = { 'p', 'cl', 'ca', 'cr', 'cs', 'si', 'so', 'su', 'um', 'uc', 'ub', 'gg' }

local function read(key, limits)
  local names = { unpack(FIXED) }
  for _, limit in ipairs(limits) do
    for _, field in ipairs({ 't:', 'x:', 'i:', 'o:' }) do names[#names + 1] = field .. limit.bucket end
  end
  local v = redis.call('HMGET', key, unpack(names))
  local s = { key = key, fresh = not v[9], b = {} }
  for i, name in ipairs(FIXED) do s[name] = tonumber(v[i] or nil) end
  for i, limit in ipairs(limits) do
    local at = #FIXED + 4 * (i - 1)
    s.b[limit.bucket] = { t = tonumber(v[at + 1] or '0'), x = tonumber(v[at + 2] or '0'), i = tonumber(v[at + 3] or '0'), o = tonumber(v[at + 4] or '0') }
  end
  s.p = s.p or 0
  return s
end

local function left(s)
  if not s.cl then return WHOLE end
  return math.min(WHOLE, s.cl + s.cr * math.max(now - s.ca, 0) / 1000000)
end

-- For so long must the hash be kept, in ms.
local function life(s)
  local last = math.max(now, s.p, s.su or 0)
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
local function keep(s)
  local wanted, is = tonumber(life(s)), redis.call('PTTL', s.key)
  if wanted > is then redis.call('PEXPIRE', s.key, text(wanted)) end
end
