-- KEYS: 1 record    ARGV: 1 life of the tombstone in ms
local r = read(KEYS[1])
if r then
  if r.s == 'A' then return { 'alias', r.d } end
  if r.s == 'U' then return { 'being-sent' } end
  local word = settled(r)
  if word then return { 'settled', word } end
end
write(KEYS[1], { s = 'F', g = r and r.g or 0, f = r and r.f or 0, p = r and r.p or '', d = 'cancelled' }, ARGV[1])
return { 'now' }
