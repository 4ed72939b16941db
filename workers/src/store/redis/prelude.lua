-- In front of every script: the clock, and how a record is read and written.
-- Fields: s state, g generation, f fence, h holder, x end of the lease in ms, p payload hash, d note.
-- The same transitions stand in transitions.rs; one contract suite holds the two together.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)

local function read(key)
  local v = redis.call('HMGET', key, 's', 'g', 'f', 'h', 'x', 'p', 'd')
  if not v[1] then return nil end
  return {
    s = v[1], g = tonumber(v[2] or '0'), f = tonumber(v[3] or '0'), h = v[4] or '',
    x = tonumber(v[5] or '0'), p = v[6] or '', d = v[7] or '',
  }
end

-- 16 digits at most, never an exponent.
local function int(n) return string.format('%.0f', n) end

local function write(key, r, ttl)
  local a = { 's', r.s, 'f', int(r.f) }
  local function put(name, value) a[#a + 1] = name; a[#a + 1] = value end
  -- What was sent shrinks to what a duplicate is compared with.
  if r.s ~= 'S' then put('g', int(r.g)) end
  if r.h and r.h ~= '' then put('h', r.h); put('x', int(r.x)) end
  if r.p and r.p ~= '' then put('p', r.p) end
  if r.d and r.d ~= '' then put('d', r.d) end
  redis.call('DEL', key)
  redis.call('HSET', key, unpack(a))
  redis.call('PEXPIRE', key, ttl)
end

-- The word by which a record is settled, or nil.
local function settled(r)
  if r.s == 'S' then return 'sent' end
  if r.s == 'H' then return 'held' end
  if r.s == 'F' then return r.d end
  return nil
end

