-- KEYS: 1 record, 2 epoch of its slot
-- ARGV: 1 hash, 2 generation, 3 redelivered (1 or 0), 4 published in ms or '', 5 holder, 6 lease ms, 7 life of a record ms, 8 skew ms
local r = read(KEYS[1])
local generation, holder = tonumber(ARGV[2]), ARGV[5]
local function take(state, fence, note)
  write(KEYS[1], { s = state, g = generation, f = fence, h = holder, x = now + tonumber(ARGV[6]), p = ARGV[1], d = note }, ARGV[7])
end
if not r then
  local epoch = redis.call('GET', KEYS[2])
  if not epoch then epoch = int(now); redis.call('SET', KEYS[2], epoch) end
  if ARGV[3] == '1' and (ARGV[4] == '' or tonumber(ARGV[4]) <= tonumber(epoch) + tonumber(ARGV[8])) then
    take('U', now)
    return { 'unknown', int(now) }
  end
  take('C', now)
  return { 'go', int(now) }
end
if r.s == 'A' or (r.p ~= '' and r.p ~= ARGV[1]) then return { 'conflict' } end
local reopenable = r.s == 'H' or (r.s == 'F' and settled(r) == 'dead')
local word = settled(r)
if word and not (reopenable and generation ~= r.g) then return { 'settled', word } end
if generation < r.g then return { 'stale' } end
-- Postponed: the copy comes back then.
if r.s == 'P' and r.x > now then return { 'busy', int(r.x - now) } end
if generation > r.g or r.s == 'P' then
  take('C', r.f + 1)
  return { 'go', int(r.f + 1) }
end
-- The same call again (its answer was lost) gets the same right again.
local fence = r.f
if r.h ~= holder then
  if r.x > now then
    -- Given out before the clock was set back: LEASE_MAX_MS of transitions.rs.
    if r.x > now + 600000 then
      r.x = now + 600000
      write(KEYS[1], r, ARGV[7])
    end
    return { 'busy', int(r.x - now) }
  end
  fence = r.f + 1
end
take(r.s, fence, r.d)
if r.s == 'U' then return { 'unknown', int(fence), r.d } end
if r.s == 'D' then return { 'decided', int(fence), r.d } end
return { 'go', int(fence) }
