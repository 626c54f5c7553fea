"""The programs that run inside the Redis server: each is atomic, and touches only the keys it is given.

Redis runs a script alone. It asks once, before the first write of a script, whether writing is allowed at all
(memory, disk, role); so a script that was refused has written nothing, and one that began is written whole,
as one transaction of the append-only file and of the replication.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1


@dataclass(frozen=True)
class Script:
    """A Lua program and the name under which the server caches it."""

    source: str
    sha: str


def _script(source: str) -> Script:
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest())


COMMIT = _script("""
-- Compare and set many states at once.
-- KEYS: per write the state, and where it has extras also its history and its requests.
-- ARGV[1], MessagePack: per write the expected stamp ('' for absent), the new value, and its extras:
-- the ttl in milliseconds (0: none), or {ttl, max_history, {version, value, ...}, {request, ...}, bound}.
-- Returns, for each refused write: its number, 0 and what was found, or 1 and an error.
local call, pcall, keys, refused = redis.call, redis.pcall, KEYS, {}
local writes = cmsgpack.unpack(ARGV[1])

local function refuse(i, kind, text)
  local n = #refused
  refused[n + 1], refused[n + 2], refused[n + 3] = (i + 2) / 3, kind, text
end

local function foreign(key, kind)
  local found = call('TYPE', key).ok
  return found ~= 'none' and found ~= kind
end

-- Store history and requests; return an error before anything was written, or nil.
local function store_extras(expected, extras, history, requests)
  if foreign(history, 'stream') or foreign(requests, 'list') then
    return 'WRONGTYPE the key of the history or of the request ids holds another kind of value'
  end
  local added, bound = extras[3], extras[2]
  for n = 1, #added, 2 do
    local done = pcall('XADD', history, 'MAXLEN', '=', bound, added[n] .. '-0', 'r', added[n + 1])
    if type(done) == 'table' and done.err and string.find(done.err, 'equal or smaller', 1, true) then
      -- The history is of a life that was lost: the state went back, or expired.
      call('DEL', history)
      done = pcall('XADD', history, 'MAXLEN', '=', bound, added[n] .. '-0', 'r', added[n + 1])
    end
    if type(done) == 'table' and done.err then return done.err end
  end
  if #extras[4] > 0 then
    if expected == '' then
      local done = pcall('DEL', requests)
      if type(done) == 'table' then return done.err end
    end
    for n = 1, #extras[4] do
      local done = pcall('RPUSH', requests, extras[4][n])
      if type(done) == 'table' then return done.err end
    end
    call('LTRIM', requests, -extras[5], -1)
  end
  if extras[1] > 0 then
    call('PEXPIRE', history, extras[1])
    call('PEXPIRE', requests, extras[1])
  end
end

local k = 1
for i = 1, #writes, 3 do
  local key, expected, value, extras = keys[k], writes[i], writes[i + 1], writes[i + 2]
  local full = type(extras) == 'table'
  local history, requests = keys[k + 1], keys[k + 2]
  k = k + (full and 3 or 1)
  local found = pcall('GETRANGE', key, 0, 19)
  if type(found) == 'table' then
    refuse(i, 1, found.err)
  elseif found == '' and call('EXISTS', key) == 1 then
    refuse(i, 0, '?')  -- an empty string of somebody else's
  elseif found ~= expected then
    refuse(i, 0, call('GETRANGE', key, 0, 60))
  else
    local ttl, failed = extras, nil
    if full then
      ttl = extras[1]
      failed = store_extras(expected, extras, history, requests)
    end
    if not failed then
      local done
      if ttl > 0 then done = pcall('SET', key, value, 'PX', ttl) else done = pcall('SET', key, value) end
      failed = done.err
    end
    if failed then
      refuse(i, 1, failed)
    else
      pcall('PUBLISH', key, string.sub(value, 1, 20))
    end
  end
end
return refused
""")

CLAIM = _script("""
-- Give a state a new mark, so that no write that builds on the old one can succeed any more, and one more
-- claim. KEYS: the state. ARGV: the new mark; the value for an absent state; the stamp that must be found
-- ('*': any); the life of an absent state in milliseconds (0: for ever). Returns the value as it is now, or
-- what was found where it may not be claimed.
local key, mark, expected = KEYS[1], ARGV[1], ARGV[3]
local value = redis.call('GET', key)
if not value then
  if expected ~= '*' and expected ~= '' then return false end
  redis.call('SET', key, ARGV[2])
  if tonumber(ARGV[4]) > 0 then redis.call('PEXPIRE', key, ARGV[4]) end
  return ARGV[2]
end
if string.sub(value, 1, 4) ~= 'DGR1' or #value < 61 then return value end
if expected ~= '*' and string.sub(value, 1, 20) ~= expected then return value end
local claims = struct.pack('>I8', struct.unpack('>I8', string.sub(value, 21, 28)) + 1)
redis.call('SETRANGE', key, 12, mark .. claims)
return string.sub(value, 1, 12) .. mark .. claims .. string.sub(value, 29)
""")

READ = _script("""
-- Return many states in one reply: value, absent (false), or an error for a key of another type.
local values = {}
for i = 1, #KEYS do values[i] = redis.pcall('GET', KEYS[i]) end
return values
""")

HISTORY = _script("""
-- Return a state and the newest entries of its history, as they are at one moment.
return {redis.call('GET', KEYS[1]), redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', ARGV[1])}
""")
