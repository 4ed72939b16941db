-- KEYS: of each scope: hash, ends and shares of transactional mail, ends and shares of bulk mail
-- ARGV: 1 now or '', 2 'lines', or '' for a look that costs the same however many wait and leaves the buckets out as well
local function fill(out, names, numbers)
  for i, name in ipairs(names) do out[#out + 1] = name; out[#out + 1] = text(numbers[i]) end
end
local out = { text(now) }
for at = 1, #KEYS, 5 do
  local all, fields, one = ARGV[2] == 'lines', {}, {}
  local found
  if all then
    found = redis.call('HGETALL', KEYS[at])
  else
    local names = { 'u', 'sb', unpack(REST) }
    found = {}
    for i, value in ipairs(redis.call('HMGET', KEYS[at], unpack(names))) do
      if value then found[#found + 1] = names[i]; found[#found + 1] = value end
    end
  end
  for i = 1, #found, 2 do
    local name, value = found[i], found[i + 1]
    if name == 'u' then
      fill(fields, { 'um', 'uc', 'ub' }, { struct.unpack(USED, value) })
    elseif string.sub(name, 1, 2) == 'b:' then
      local bucket = string.sub(name, 3)
      fill(fields, { 't:' .. bucket, 'x:' .. bucket, 'i:' .. bucket, 'o:' .. bucket }, { struct.unpack(BUCKET, value) })
    elseif name ~= 'd' then
      fields[#fields + 1] = name; fields[#fields + 1] = value
    end
  end
  one[1] = fields
  for offset = 1, 4 do one[#one + 1] = all and redis.call('ZRANGE', KEYS[at + offset], 0, -1, 'WITHSCORES') or {} end
  out[#out + 1] = one
end
return out
