-- KEYS: 1 record
-- ARGV: 1 step, 2 holder, 3 fence, 4 generation, 5 hash, 6 lease ms, 7 life of the new record ms, 8 note: the decision, the call, a text for people, or the final word and a text behind it
local r = read(KEYS[1])
local step, note = ARGV[1], ARGV[8]
local word = string.match(note, '^%S+')
local fence, generation = tonumber(ARGV[3]), tonumber(ARGV[4])
local hash = ARGV[5]
if r and r.p ~= '' then hash = r.p end
local function running(state, decision)
  write(KEYS[1], { s = state, g = generation, f = fence, h = ARGV[2], x = now + tonumber(ARGV[6]), p = hash, d = decision }, ARGV[7])
  return 'ok'
end
local function parked(g)
  write(KEYS[1], { s = 'P', g = g, f = fence, p = hash, d = note }, ARGV[7])
  return 'ok'
end
local function final()
  local one = { s = 'F', g = generation, f = fence, p = hash, d = note }
  if word == 'sent' then one.s = 'S'; one.d = nil end
  if word == 'held' then one.s = 'H' end
  write(KEYS[1], one, ARGV[7])
  return 'ok'
end
if not r then
  if step == 'submitting' then return running('U', note) end
  if step == 'renew' or step == 'withdraw' then return running('U') end
  if step == 'decide' then return running('D', note) end
  if step == 'parked' then return parked(generation + 1) end
  if step == 'finish' then return final() end
  return 'lost'
end
if r.s == 'S' then
  if step ~= 'finish' then return 'lost' end
  if word == 'sent' and r.f == fence then return 'ok' end
  return 'sent'
end
if step == 'finish' and word == 'sent' then return final() end
if step == 'finish' and settled(r) == word and r.f == fence and r.g == generation then return 'ok' end
if step == 'parked' and r.s == 'P' and r.f == fence and r.g == generation + 1 then return 'ok' end
if r.h ~= ARGV[2] or r.f ~= fence or not (r.s == 'C' or r.s == 'U' or r.s == 'D') then return 'lost' end
if step == 'submitting' or step == 'withdraw' then
  if r.s == 'D' then return 'lost' end
  if step == 'withdraw' then return running('C') end
  return running('U', note)
end
if step == 'decide' then return running('D', note) end
if step == 'parked' then return parked(generation + 1) end
if step == 'finish' then return final() end
if step == 'renew' then return running(r.s, r.d) end
-- release
if r.s == 'C' then return parked(generation) end
write(KEYS[1], { s = r.s, g = r.g, f = r.f, p = r.p, d = r.d }, ARGV[7])
return 'ok'
