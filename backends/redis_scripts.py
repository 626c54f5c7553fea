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


# What is about to expire may be there without the state, which just did. Anything else was left behind when the state
# was evicted or deleted by hand, and nothing is built on that.
_PARTS = """
local function stays(key, kind)
  return redis.call('PTTL', key) == -1 and redis.call('TYPE', key).ok == kind
end
local function left_behind(history, requests)
  return stays(history, 'stream') or stays(requests, 'list')
end
local TORN = 'TORN the state is gone, and its history or its request ids are not'
"""

COMMIT = _script(
    _PARTS
    + """
-- Compare and set many states at once.
-- KEYS: per write the state, and where it has extras also its history and its requests.
-- ARGV[1], MessagePack: per write the expected stamp ('' for absent), the new value, and its extras:
-- the ttl in milliseconds (0: none), or {ttl, max_history, {version, value, ...}, {request, ...}, bound, whether there
-- is a history, how many requests are remembered}.
-- Returns, for each refused write: its number, 0 and what was found, or 1 and an error.
local call, keys, refused = redis.call, KEYS, {}
local writes = cmsgpack.unpack(ARGV[1])

local function foreign(key, kind)
  local found = call('TYPE', key).ok
  return found ~= 'none' and found ~= kind
end

local function expire(key, ttl)
  if ttl > 0 then call('PEXPIRE', key, ttl) else call('PERSIST', key) end
end

-- Store history and requests. Whatever may be refused is tried before anything is changed; SET first of all, since
-- Redis asks whether there is memory only before the first command that writes.
local function store_extras(key, extras, history, requests)
  local ttl, bound, added, remembered = extras[1], extras[2], extras[3], extras[4]
  if foreign(history, 'stream') or foreign(requests, 'list') then
    error({err = 'WRONGTYPE the key of the history or of the request ids holds another kind of value'})
  end
  call('SET', key, '', call('EXISTS', key) == 1 and 'NX' or 'XX')  -- does nothing, if that is allowed
  if not extras[6] and extras[7] == 0 and not left_behind(history, requests) then
    call('DEL', history, requests)  -- of a state that has expired
  end
  if (call('XLEN', history) > 0) ~= extras[6] or call('LLEN', requests) ~= extras[7] then
    error({err = 'TORN its history or its request ids are not what its last write left'})
  end
  call('LTRIM', requests, 0, -1)
  expire(history, ttl)
  for n = 1, #remembered do call('RPUSH', requests, remembered[n]) end
  local done, failed = pcall(function()
    for n = 1, #added, 2 do
      call('XADD', history, 'MAXLEN', '=', bound, added[n] .. '-0', 'r', added[n + 1])
    end
  end)
  if not done then
    if #remembered > 0 then call('LTRIM', requests, 0, -1 - #remembered) end
    error(failed)
  end
  call('LTRIM', requests, -extras[5], -1)
end

local function store(key, expected, value, extras, history, requests)
  local found = call('GETRANGE', key, 0, 19)
  if found == '' and call('EXISTS', key) == 1 then return '?' end  -- an empty string of somebody else's
  if found ~= expected then return call('GETRANGE', key, 0, 76) end
  local full = history ~= nil
  local ttl = full and extras[1] or extras
  if full then store_extras(key, extras, history, requests) end
  if ttl > 0 then call('SET', key, value, 'PX', ttl) else call('SET', key, value) end
  if full then
    -- After the state, so that they do not expire before it: then they would be missing.
    expire(history, ttl)
    expire(requests, ttl)
  end
  redis.pcall('PUBLISH', key, string.sub(value, 1, 20))
end

local k = 1
for i = 1, #writes, 3 do
  local extras = writes[i + 2]
  local full = type(extras) == 'table'
  local history, requests = full and keys[k + 1] or nil, full and keys[k + 2] or nil
  local done, found = pcall(store, keys[k], writes[i], writes[i + 1], extras, history, requests)
  k = k + (full and 3 or 1)
  if not done or found then
    local n = #refused
    if type(found) == 'table' then found = found.err end
    refused[n + 1], refused[n + 2], refused[n + 3] = (i + 2) / 3, done and 0 or 1, found
  end
end
return refused
"""
)

CLAIM = _script(
    _PARTS
    + """
-- Give a state a new mark, so that no write that builds on the old one can succeed any more, and one more
-- claim. KEYS: the state, its history, its requests. ARGV: the new mark; the value for an absent state; the stamp that
-- must be found ('*': any); the life of an absent state in milliseconds, or 0: whoever claims it keeps it for ever.
-- Returns the value as it is now, or what was found where it may not be claimed.
local key, mark, expected, life = KEYS[1], ARGV[1], ARGV[3], tonumber(ARGV[4])
local value = redis.call('GET', key)
if not value then
  if left_behind(KEYS[2], KEYS[3]) then return redis.error_reply(TORN) end
  if expected ~= '*' and expected ~= '' then return false end
  if life > 0 then redis.call('SET', key, ARGV[2], 'PX', life) else redis.call('SET', key, ARGV[2]) end
  return ARGV[2]
end
if string.sub(value, 1, 4) ~= 'DGR2' or #value < 77 then return value end
if expected ~= '*' and string.sub(value, 1, 20) ~= expected then return value end
local claims = struct.pack('>I8', struct.unpack('>I8', string.sub(value, 21, 28)) + 1)
redis.call('SETRANGE', key, 12, mark .. claims)
if life == 0 then
  for i = 1, 3 do redis.call('PERSIST', KEYS[i]) end
end
return string.sub(value, 1, 12) .. mark .. claims .. string.sub(value, 29)
"""
)

READ = _script("""
-- Return many states in one reply: value, absent (false), or an error for a key of another type.
local values = {}
for i = 1, #KEYS do values[i] = redis.pcall('GET', KEYS[i]) end
return values
""")

LOOK = _script(
    _PARTS
    + """
-- Return a state that was not there a moment ago, or an error where parts of it are.
local value = redis.call('GET', KEYS[1])
if not value and left_behind(KEYS[2], KEYS[3]) then return redis.error_reply(TORN) end
return value
"""
)

HISTORY = _script(
    _PARTS
    + """
-- Return a state and the newest entries of its history, as they are at one moment.
local value = redis.call('GET', KEYS[1])
if not value and left_behind(KEYS[2], KEYS[3]) then return redis.error_reply(TORN) end
return {value, redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', ARGV[1])}
"""
)

REQUESTS = _script("""
-- Return the header of a state and its remembered request ids, as they are at one moment.
return {redis.call('GETRANGE', KEYS[1], 0, 76), redis.call('LRANGE', KEYS[2], 0, -1)}
""")
