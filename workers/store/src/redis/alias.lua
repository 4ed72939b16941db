-- KEYS: 1 record of the job id    ARGV: 1 the identity that it stands for, 2 life in ms
local r = read(KEYS[1])
if r and r.s ~= 'A' then return settled(r) or '' end
write(KEYS[1], { s = 'A', g = 0, f = 0, d = ARGV[1] }, ARGV[2])
return ''
