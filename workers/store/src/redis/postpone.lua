-- KEYS: 1 record    ARGV: 1 until when, in ms, 2 a note for people, 3 life in ms
local r = read(KEYS[1])
if r then
  if r.s == 'A' then return { 'alias', r.d } end
  local word = settled(r)
  if word then return { 'settled', word } end
  if r.s ~= 'P' then return { 'in-hand' } end
end
write(KEYS[1], {
  s = 'P', g = r and r.g or 0, f = r and r.f or now, h = 'postponed', x = tonumber(ARGV[1]), p = r and r.p or '', d = ARGV[2],
}, ARGV[3])
return { 'done' }
