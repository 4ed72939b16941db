-- KEYS: 1 the index of scopes; then for each scope: hash, ends of the lane's lines, shares of the lane
-- ARGV: 1 now or '', 2 lane (t or b), 3 tenant, 4 weight, 5 fresh, 6 tokens wanted, 7 queue, 8 hold, then for each scope: its name, the number
-- of its limits, and of each: bucket, interval, tolerance
local urgent, tenant, weight = ARGV[2] == 't', ARGV[3], tonumber(ARGV[4])
local fresh, want, queue = ARGV[5] == '1', tonumber(ARGV[6]), ARGV[7] == '1'
local hold = ARGV[8] == '1'
local AHEAD, PARK_MAX, DEBT, SLACK, SPACING = 250000, 1800000000, 100000, 500000, 5000
local PARK_MAX_CUT, PARK_BACK = 60000000, 0.875
local LENGTH = { s = 1, min = 2, h = 3, d = 4 }
local PACKED, PACKED_MAX, NEAR, NEAR_MIN = 0.02, 10000, 0.1, 1000000

local function ahead_of(is_urgent, interval)
  if is_urgent then return HOLD end
  return math.min(math.max(interval, AHEAD), HOLD)
end

-- The weights of tenants. One that is not noted is 1.
local function weights(scope, names)
  local found = {}
  for from = 1, #names, 1000 do
    local fields = {}
    for at = from, math.min(from + 999, #names) do fields[#fields + 1] = 'g:' .. names[at] end
    for _, one in ipairs(redis.call('HMGET', scope.key, unpack(fields))) do found[#found + 1] = tonumber(one or '1') end
  end
  return found
end

-- Puts a scope that is new into the index, and looks whether the two that were looked at longest ago are still there: what expires leaves the
-- index so, however many there are.
local function enlist(scope)
  redis.call('ZADD', KEYS[1], text(now), scope.name)
  for _, name in ipairs(redis.call('ZRANGE', KEYS[1], 0, 1)) do
    local at = KEYS[1] .. ':'
    local there = redis.pcall('EXISTS', at .. name, at .. 'ends:t:' .. name, at .. 'ends:b:' .. name)
    if there == 0 and name ~= scope.name then
      redis.call('ZREM', KEYS[1], name)
    else
      redis.call('ZADD', KEYS[1], text(now), name)
    end
  end
end

-- The weight of others in a line whose end is after a time.
local function others(scope, line, after)
  if not scope.gg then
    local n = redis.call('ZCOUNT', line, '(' .. text(after), '+inf')
    local own = redis.call('ZSCORE', line, tenant)
    if own and tonumber(own) > after then n = n - 1 end
    return n
  end
  local sum = 0
  local names = redis.call('ZRANGEBYSCORE', line, '(' .. text(after), '+inf')
  for at, one in ipairs(weights(scope, names)) do
    if names[at] ~= tenant then sum = sum + one end
  end
  return sum
end

local function equals(scope, line)
  if not scope.gg then return weight == 1 or redis.call('ZCARD', line) == 0 end
  for _, one in ipairs(weights(scope, redis.call('ZRANGE', line, 0, -1))) do
    if one ~= weight then return false end
  end
  return true
end

local function note_weight(scope)
  if weight == 1 and not scope.gg then return end
  scope.gg = 1
  redis.call('HSET', scope.key, 'd', '1', 'gg', '1')
  -- Those of weight 1 leave nothing behind: there may be any number of them.
  if weight == 1 then
    redis.call('HDEL', scope.key, 'g:' .. tenant)
  else
    redis.call('HSET', scope.key, 'g:' .. tenant, text(weight))
  end
  keep(scope)
end

-- The slot, from now.
local function join(scope, line, at, interval, reach)
  redis.call('ZREMRANGEBYSCORE', line, '-inf', text(now))
  local same = equals(scope, line)
  note_weight(scope)
  local step = interval - math.min(interval * PACKED, PACKED_MAX)
  local start = at - step
  local base = math.max(tonumber(redis.call('ZSCORE', line, tenant) or start), start)
  local above = others(scope, line, base)
  local top = redis.call('ZRANGE', line, -1, -1, 'WITHSCORES')
  local last = math.max(start, tonumber(top[2] or start))
  local slot = math.min(base + step * (above + weight) / weight, last + step)
  if same and last - slot < math.max(NEAR_MIN, (last - now) * NEAR) then slot = last + step end
  if slot - now > reach then
    redis.call('ZADD', line, 'NX', text(now + reach), tenant)
    last = math.max(last, now + reach)
  else
    redis.call('ZADD', line, text(slot), tenant)
    last = math.max(last, slot)
  end
  redis.call('PEXPIRE', line, text(math.floor((last - now) / 1000) + 60000))
  return slot - now
end

-- About so many slots the lane's line gave out behind a pause.
local function slots_after(s)
  local last = tonumber(redis.call('ZRANGE', s.line, -1, -1, 'WITHSCORES')[2] or 0)
  return last >= s.p and 1 + (last - s.p) / SPACING or 0
end

local function is_far(s)
  for _, b in pairs(s.b) do
    if b.t > now + GRACE / 2 then return true end
  end
  return false
end

local at, bind, spacing, step = now, 1, 0, 0
local scopes, charges, paused = {}, {}, false
local place = 9
for index = 1, (#KEYS - 1) / 3 do
  local name, count, limits = ARGV[place], tonumber(ARGV[place + 1]), {}
  place = place + 2
  for _ = 1, count do
    limits[#limits + 1] = { bucket = ARGV[place], interval = tonumber(ARGV[place + 1]), tolerance = tonumber(ARGV[place + 2]) }
    place = place + 3
  end
  local s = read(KEYS[3 * index - 1], limits)
  s.name, s.line, s.share = name, KEYS[3 * index], KEYS[3 * index + 1]
  scopes[index] = s
  if s.p > now then paused = true end
  if s.p > at then at, bind, spacing = s.p, index, 0 end
  local rest = left(s)
  if s.su and s.su > now then
    local taken, kept = LENGTH[redis.call('HGET', s.key, 'sb')] or 0, { { bucket = 'set', interval = s.si, tolerance = s.so } }
    for _, limit in ipairs(limits) do
      if LENGTH[limit.bucket] > taken then kept[#kept + 1] = limit end
    end
    limits = kept
    s.b = read(s.key, limits).b
  elseif s.cl and count == 0 and s.cs > 0 and rest < WHOLE then
    limits = { { bucket = 'seen', interval = s.cs, tolerance = 0 } }
    s.b = read(s.key, limits).b
  end
  for _, limit in ipairs(limits) do
    local b = bucket(s, limit, rest)
    local interval, tolerance = b.i, limit.tolerance
    local all, own, free = math.max(b.t, now, s.p), math.max(b.x, now, s.p), nil
    if urgent then
      local debt = ahead_of(false, interval) + math.max(DEBT, interval)
      free = math.max(own - tolerance, b.t - tolerance - debt, s.p)
    else
      free = math.max(all - tolerance, s.p)
    end
    local has_more = free == s.p and s.p > now and all - tolerance + interval * (1 + slots_after(s)) <= s.p
    if free > now and (free > at or free == at and interval >= spacing) and not has_more then
      at, bind, spacing = free, index, interval
    end
    step = math.max(step, interval)
    charges[#charges + 1] = { s = s, name = limit.bucket, all = all, own = own, b = b }
  end
end
if #charges == 0 and not paused then return { 'free' } end

if spacing <= 0 then spacing = SPACING end
local wait, scope = at - now, scopes[bind]
local ahead = ahead_of(urgent, spacing)
if wait > 0 then
  local most = ahead
  if queue and not hold then
    most = 0
  elseif tonumber(redis.call('ZSCORE', scope.share, tenant) or '0') > now + SLACK then
    most = ahead / 2
  end
  local joins = fresh and queue and tonumber(redis.call('ZSCORE', scope.line, tenant) or '0') > now + ahead
  if wait > most or joins then
    if not queue then return { 'full', text(wait), text(bind - 1) } end
    if scope.fresh then enlist(scope) end
    local reach = PARK_MAX
    if left(scope) < WHOLE then reach = math.min(math.max(scope.p - now, 0) + PARK_MAX_CUT, PARK_MAX) end
    local slot = join(scope, scope.line, at, spacing, reach)
    local park = slot
    if slot > reach then park = reach - math.floor(now) % 1000000 / 1000000 * reach * (1 - PARK_BACK) end
    return { 'park', text(park), text(slot), text(bind - 1) }
  end
end
local room = 1
if step > 0 then room = 1 + math.floor((now + ahead - at) / step) end
local tokens = math.max(math.min(want, room), 1)
if wait > 0 then
  local above = others(scope, scope.line, now)
  if above > 0 then
    local till = math.max(tonumber(redis.call('ZSCORE', scope.share, tenant) or '0'), now)
    redis.call('ZREMRANGEBYSCORE', scope.share, '-inf', text(now))
    till = till + tokens * spacing * (above + weight) / weight
    redis.call('ZADD', scope.share, text(till), tenant)
    -- Others may stand there for longer.
    local life = math.floor((till - now) / 1000) + 60000
    if redis.call('PTTL', scope.share) < life then redis.call('PEXPIRE', scope.share, text(life)) end
  end
end
local minute = math.floor(now / 60000000)
-- What has no limit is not counted, and leaves nothing behind.
for _, c in ipairs(charges) do
  local s = c.s
  if not s.write then
    if s.um ~= minute then
      s.ub = (s.um == minute - 1) and s.uc or 0
      s.um, s.uc, s.turned = minute, 0, true
    end
    s.uc = s.uc + tokens
    s.write = { 'u', struct.pack(USED, s.um, s.uc, s.ub) }
  end
  local w, b = s.write, c.b
  b.t, b.x = c.all + tokens * b.i, c.own
  if urgent then b.x = b.x + tokens * b.i end
  w[#w + 1] = 'b:' .. c.name
  w[#w + 1] = packed(b)
end
for _, s in ipairs(scopes) do
  if s.write then
    redis.call('HSET', s.key, unpack(s.write))
    if s.fresh then enlist(s) end
    -- A life that was set within this minute is long enough for every bucket that is even within half an hour.
    if s.turned or is_far(s) then keep(s) end
  end
end
return { 'go', text(wait), text(tokens), text(step) }
