-- Takes scopes out of the index that are gone: one that came back since somebody looked keeps its place there.
-- KEYS: 1 the index of scopes, then of each scope: hash, ends of transactional mail, ends of bulk mail    ARGV: the names of the scopes
local gone = {}
for index, name in ipairs(ARGV) do
  local at = 3 * index - 1
  if redis.call('EXISTS', KEYS[at], KEYS[at + 1], KEYS[at + 2]) == 0 then gone[#gone + 1] = name end
end
if #gone == 0 then return 0 end
return redis.call('ZREM', KEYS[1], unpack(gone))
