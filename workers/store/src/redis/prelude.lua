-- In front of every script: the clock, and how a record is read and written.
-- A record is one text: state|generation|fence|holder|end of the lease in ms|payload hash|note. One command reads it and one writes it.
-- The same transitions stand in transitions.rs; one contract suite holds the two together.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)

local function read(key)
  local text = redis.call('GET', key)
  if not text then return nil end
  local s, g, f, h, x, p, d = string.match(text, '^(%u)|(%d*)|(%d*)|([^|]*)|(%d*)|([^|]*)|(.*)$')
  if not s then error('not a record of this version') end
  return { s = s, g = tonumber(g) or 0, f = tonumber(f) or 0, h = h, x = tonumber(x) or 0, p = p, d = d }
end

-- 16 digits at most, never an exponent.
local function int(n) return string.format('%.0f', n) end

local function write(key, r, ttl)
  local generation, holder, ends = '', '', ''
  -- What was sent shrinks to what a duplicate is compared with.
  if r.s ~= 'S' then generation = int(r.g) end
  if r.h and r.h ~= '' then holder, ends = r.h, int(r.x) end
  redis.call('SET', key, table.concat({ r.s, generation, int(r.f), holder, ends, r.p or '', r.d or '' }, '|'), 'PX', math.max(tonumber(ttl), 1))
end

-- The word by which a record is settled, or nil.
local function settled(r)
  if r.s == 'S' then return 'sent' end
  if r.s == 'H' then return 'held' end
  -- Behind the word stands what its owner noted for people.
  if r.s == 'F' then return string.match(r.d, '^%S+') end
  return nil
end
