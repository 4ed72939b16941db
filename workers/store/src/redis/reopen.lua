-- KEYS: 1 record    ARGV: 1 generation of the copy at rest, 2 life in ms
local r = read(KEYS[1])
local generation = tonumber(ARGV[1])
if r then
  if r.s == 'S' then return 'sent' end
  if r.s == 'F' and settled(r) == 'cancelled' then return 'cancelled' end
  if r.s == 'P' and r.g == generation + 1 then return 'go' end
  local at_rest = r.s == 'H' or r.s == 'D' or (r.s == 'F' and settled(r) == 'dead')
  local given_up = (r.s == 'C' or r.s == 'U') and r.x <= now
  if r.g > generation or not (at_rest or given_up) then return 'other' end
end
write(KEYS[1], { s = 'P', g = generation + 1, f = r and r.f or 0, p = r and r.p or '' }, ARGV[2])
return 'go'
