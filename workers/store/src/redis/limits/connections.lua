-- decide/limits/connections.rs says the same.
-- KEYS: 1 holders, a hash: worker to "granted wanted spare since until"
-- ARGV: 1 now or '', 2 worker, 3 wanted, 4 spare, 5 in use, 6 total, 7 life
local TURN_US = 10e6
local worker, wanted, spare = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local using, total, life = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local holders, names, sharers = {}, {}, {}
local flat = redis.call('HGETALL', KEYS[1])
for at = 1, #flat, 2 do
  local granted, wants, more, since, till = string.match(flat[at + 1], '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
  -- One that would last for longer was given out before the clock was set back.
  if till and tonumber(till) > now and tonumber(till) <= now + 2 * life then
    holders[flat[at]] = {
      granted = tonumber(granted), wanted = tonumber(wants), spare = tonumber(more), since = tonumber(since), fair = 0,
    }
  else
    redis.call('HDEL', KEYS[1], flat[at])
  end
end
local known = holders[worker] ~= nil
local mine = holders[worker] or { granted = 0, since = now, fair = 0 }
mine.wanted, mine.spare = wanted, spare
holders[worker] = mine
for name in pairs(holders) do names[#names + 1] = name end
table.sort(names)
for _, name in ipairs(names) do
  if total >= #names or holders[name].wanted > 0 then sharers[#sharers + 1] = name end
end
local function turn(held)
  local age = now - held.since
  if held.granted == 0 then return 1, held.since end
  if age >= 0 and age < TURN_US then return 0, held.since end
  return 2, -held.since
end
if total < #sharers then
  table.sort(sharers, function(one, other)
    local class, time = turn(holders[one])
    local other_class, other_time = turn(holders[other])
    if class ~= other_class then return class < other_class end
    if time ~= other_time then return time < other_time end
    return one < other
  end)
end
for rank, name in ipairs(sharers) do
  local fair = math.floor(total / #sharers)
  if rank - 1 < total % #sharers then fair = fair + 1 end
  holders[name].fair = fair
end
local reserved, given = 0, 0
for name, held in pairs(holders) do
  if name ~= worker then
    given = given + held.granted
    reserved = reserved + math.max(held.granted, math.min(held.fair, held.wanted + held.spare))
  end
end
local room = math.max(total - given, 0)
local most = wanted + spare
if not known then most = math.min(most, math.max(using, 1), room) end
local part = math.min(most, math.max(math.max(total - reserved, 0), math.min(mine.fair, room)))
local granted = math.max(part, using)
local since = mine.since
if (granted > 0) ~= (mine.granted > 0) then since = now end
redis.call('HSET', KEYS[1], worker, table.concat({ granted, wanted, spare, text(since), text(now + life) }, ' '))
redis.call('PEXPIRE', KEYS[1], text(math.floor(life / 1000) + 60000))
return part
