-- decide/limits/connections.rs says the same.
-- KEYS: 1 holders, a hash: worker to "granted wanted until"
-- ARGV: 1 now or '', 2 worker, 3 wanted, 4 in use, 5 total, 6 life
local worker, wanted, using, total = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local holders, names = {}, {}
local flat = redis.call('HGETALL', KEYS[1])
for at = 1, #flat, 2 do
  local granted, more, till = string.match(flat[at + 1], '^(%S+) (%S+) (%S+)$')
  if tonumber(till) > now then
    holders[flat[at]] = { granted = tonumber(granted), wanted = tonumber(more) }
  else
    redis.call('HDEL', KEYS[1], flat[at])
  end
end
local known = holders[worker] ~= nil
holders[worker] = { granted = known and holders[worker].granted or 0, wanted = wanted }
for name in pairs(holders) do names[#names + 1] = name end
table.sort(names)
local reserved, given, own = 0, 0, 0
for rank, name in ipairs(names) do
  local fair = math.floor(total / #names)
  if rank - 1 < total % #names then fair = fair + 1 end
  local held = holders[name]
  if name == worker then
    own = fair
  else
    given = given + held.granted
    reserved = reserved + math.max(held.granted, math.min(fair, held.wanted))
  end
end
local room = math.max(total - given, 0)
local most = wanted
if not known then most = math.min(wanted, math.max(using, 1), room) end
local part = math.min(most, math.max(math.max(total - reserved, 0), math.min(own, room)))
local granted = math.max(part, using)
local life = tonumber(ARGV[6])
redis.call('HSET', KEYS[1], worker, granted .. ' ' .. wanted .. ' ' .. text(now + life))
redis.call('PEXPIRE', KEYS[1], text(math.floor(life / 1000) + 60000))
return part
