-- KEYS: epochs, all of one slot in a cluster. Each is set once; one that is missing says that the store was emptied.
local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
for _, key in ipairs(KEYS) do redis.call('SET', key, now, 'NX') end
return 'ok'
