-- KEYS: 1 circuit    ARGV: 1 ask (open, probe, close, fail, release), 2 reason, 3 wait ms, 4 longest wait ms, 5 length of a probe ms,
-- 6 life of the record ms, 7 the probe that fails or is released
-- The same transitions stand in circuit.rs.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function int(n) return string.format('%.0f', n) end
local v = redis.call('HMGET', KEYS[1], 'o', 'u', 'n', 'p', 'r')
local c = nil
if v[1] then c = { o = tonumber(v[1]), u = tonumber(v[2]), n = tonumber(v[3]), p = tonumber(v[4]), r = v[5] } end
-- Written before the clock was set back: over.
if c and c.u > now + tonumber(ARGV[4]) then c.u = 0 end
if c and c.p > now + tonumber(ARGV[5]) then c.p = 0 end
local function told(word, one) return { word, int(one.o), int(one.u), int(one.n), int(one.p), one.r } end
local function write(one)
  redis.call('HSET', KEYS[1], 'o', int(one.o), 'u', int(one.u), 'n', int(one.n), 'p', int(one.p), 'r', one.r)
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
end
local function longer()
  local doubled = math.min(tonumber(ARGV[3]) * 2 ^ math.min(c.n, 16), tonumber(ARGV[4]))
  c = { o = c.o, u = now + doubled, n = c.n + 1, p = 0, r = ARGV[2] }
  write(c)
end
local ask = ARGV[1]
if ask == 'open' then
  if not c then
    c = { o = now, u = now + math.min(tonumber(ARGV[3]), tonumber(ARGV[4])), n = 1, p = 0, r = ARGV[2] }
    write(c)
    return told('opened', c)
  end
  if c.u <= now then longer() end
  return told('open', c)
end
if not c then return { 'closed' } end
if ask == 'close' then
  redis.call('DEL', KEYS[1])
  return told('healed', c)
end
if ask == 'fail' or ask == 'release' then
  if int(c.p) == ARGV[7] then
    if ask == 'fail' then
      longer()
    else
      c.p = 0
      write(c)
    end
  end
  return told('open', c)
end
if math.max(c.u, c.p) > now then return told('open', c) end
c.p = now + tonumber(ARGV[5])
write(c)
return { 'probe', int(c.p) }
