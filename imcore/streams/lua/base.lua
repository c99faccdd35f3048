#!lua name=imcore

-- The Redis functions of imcore: every step that must happen as one.
--
-- Units. A packed msgid is (ms - EPOCH_MS) * 8192 + n for the stream entry id `ms-n`: exact in a double, so it is a
-- sorted-set score and a Lua number. It travels as decimal text. 0 is the position before the first message.
--
-- Keys of one group (all in the slot of its partition's hash tag):
--   meta    hash    seq (of the newest message), last (its packed msgid), trimmed (packed, newest entry trimmed away)
--   stream  stream  one entry a message, one consumer group a current member; its last-delivered-id is the offset
--   acked   zset    span key -> packed offset
--   joined  zset    span key -> newest message at the join
--   left    zset    span key of a closed span -> newest message at the leave
--   once    hash    uid SEP client_msgid -> "msgid seq", and SEP -> "since length seen" (ms): when it was begun, by its own count
--                   of time, for how long what is in it counts, when it was looked at; two of them take turns, so that each
--                   entry lives long enough. They have no time to live: a server that evicts keys with one would forget them.
--   own     list    per member: packed, oldest first; those past their offset are own messages that are not unread for
--                   them. What their offset has passed since is dropped when the next one comes.
--   recalled zset  packed msgids of recalled messages and of the tombstones that recall them: they are never unread
-- Keys of one user in one partition:
--   groups_of set   gids of that partition which they are a member of
--   dirty   zset    gid SEP packed msgid -> version; their messages whose tallies changed and were not confirmed yet
-- Keys of one user in the partition of their uid:
--   sessions zset   session id -> end (ms); and their lengths, see sessions.lua
-- Keys of one partition, beside its journal:
--   online   zset   uid -> when their last session ends (ms)
--   online_ms string the greatest length of any session
--   creating hash   gid -> "token end length" of a group that is being created in steps, and is not there for anybody yet
--   untold   hash   the same, once the group is there, until all its members are told
-- A span key is the uid while the span is open, and uid SEP joined once it is closed.
--
-- Ends. A lease, a hold, a claim, a session and a creation end at a time of the server's clock (ms), which is kept with the length that
-- it was set with. An end that is further ahead than its length was set before the clock was put back: whoever looks at it cuts it
-- back to that length from now. Nothing ends early by that, and nothing lives on for as long as the clock was wrong.
--
-- Errors answer with a code as their first word: NOGROUP, EXISTS, CREATING, ABANDONED, CLOCK. An item of a call for many that fails is
-- answered by a code in its place (NOTMEMBER, NOMSG, FUTURE, TRIMMED), and the others go on.

local VERSION = 6
local EPOCH_MS = 1577836800000
local PER_MS = 8192
local HIGHEST = 9007199254740991  -- of all packed msgids
local SEP = '\31'
local RECORD = '\30'
local READS = {'no-writes'}
local WRITES_LITTLE = {'allow-oom'}

-- Lua's stack ends at some thousands.
local AT_ONCE = 1000

local function decimal(number)
  return string.format('%d', number)  -- half of what %.0f takes
end

local function parts_of(id)
  local ms, n = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(n)
end

local function is_after(one, other)
  local ms, n = parts_of(one)
  local other_ms, other_n = parts_of(other)
  return ms > other_ms or ms == other_ms and n > other_n
end

local function pack(id)
  local ms, n = parts_of(id)
  return (ms - EPOCH_MS) * PER_MS + n
end

local function unpack_id(packed)
  if packed == 0 then
    return '0-0'
  end
  local n = packed % PER_MS
  return string.format('%d-%d', (packed - n) / PER_MS + EPOCH_MS, n)
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- An end as it counts now: not further ahead than its length.
local function end_from(now, ends, length)
  return math.min(tonumber(ends), now + tonumber(length))
end

-- Note in the journal what happened. An entry's id has to be packable like a msgid: when the counter of a millisecond is
-- full (10,000 members at once, or a clock that was put back), go on to the next one.
local function note(journal, ...)
  local id = redis.call('XADD', journal, '*', ...)
  if string.find(id, '-', -4, true) then
    return id  -- a counter of at most three digits
  end
  local ms, n = parts_of(id)
  if n >= PER_MS then
    redis.call('XDEL', journal, id)
    id = redis.call('XADD', journal, string.format('%.0f-0', ms + 1), ...)
  end
  return id
end

local function no_group()
  return redis.error_reply('NOGROUP there is no such group')
end

local function head_of(meta)
  local head = redis.call('HMGET', meta, 'seq', 'last')
  return tonumber(head[1]), tonumber(head[2])
end

local function member_count(acked, left)
  return redis.call('ZCARD', acked) - redis.call('ZCARD', left)
end

-- Whether an entry of a group's stream is a message: by hand anybody may add something else.
local function is_message(entry)
  local fields = entry[2]
  return fields[1] == 'seq' and fields[13] == 'text'
end

-- Messages of a stream, at most so many, in the order of the command (XRANGE or XREVRANGE). What is none is passed over.
local function messages_in(command, stream, from, to, count)
  local found, n, room = {}, 0, tonumber(count)
  while true do
    local page = redis.call(command, stream, from, to, 'COUNT', room - n)
    for _, entry in ipairs(page) do
      if is_message(entry) then
        n = n + 1
        found[n] = entry
      end
    end
    if n == room or #page == 0 then
      return found
    end
    from = '(' .. page[#page][1]
  end
end

-- Before their size is known, so many entries are read at once.
local FIRST_PAGE = 16
-- About so many bytes of entries are answered at once, but one entry in any case.
local PAGE_BYTES = 2 ^ 20

-- How many entries fit into the bytes that are left, if they go on like those so far; not so many that much is read in vain.
local function fitting(entries, bytes, left)
  return math.max(1, math.min(AT_ONCE, entries == 0 and FIRST_PAGE or math.floor(entries * left / (bytes - left + 1))))
end

-- A page of a stream, oldest first: entries, at most so many, and 1 if others may come after these, else 0.
local function page_of(stream, from, to, count)
  local found, n, left, size = {}, 0, PAGE_BYTES, math.min(count, FIRST_PAGE)
  while true do
    local entries = redis.call('XRANGE', stream, from, to, 'COUNT', size)
    for i, entry in ipairs(entries) do
      found[n + i] = entry
      for _, value in ipairs(entry[2]) do
        left = left - #value
      end
    end
    n = n + #entries
    if #entries < size then
      return {found, 0}
    elseif n >= count or left <= 0 then
      return {found, 1}
    end
    from = '(' .. entries[size][1]
    size = math.min(count - n, fitting(n, PAGE_BYTES, left))
  end
end

-- The stream entry of a packed msgid, or nil and why not: NOGROUP, FUTURE, TRIMMED or NOMSG.
local function find(stream, meta, packed)
  local id = unpack_id(packed)
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if entry and is_message(entry) then
    return entry
  end
  local head = redis.call('HMGET', meta, 'last', 'trimmed')
  if not head[1] then
    return nil, 'NOGROUP'
  elseif packed > tonumber(head[1]) then
    return nil, 'FUTURE'
  end
  return nil, packed <= tonumber(head[2] or '0') and 'TRIMMED' or 'NOMSG'
end

-- A user's live sessions listen on the inbox of every partition.
local function tell(inboxes, uid, fields)
  redis.call('SPUBLISH', inboxes .. uid, table.concat(fields, SEP))
end

-- im_version: which version of this library the server holds.
-- Keys: none. Arguments: none. Answer: an integer.
local function version()
  return VERSION
end

-- im_init: fix how many partitions the data has, once.
-- Keys: config. Arguments: partitions, dataset id for new data. Answer: {partitions, dataset id} as they stand.
local function init(keys, args)
  redis.call('HSETNX', keys[1], 'partitions', args[1])
  redis.call('HSETNX', keys[1], 'dataset', args[2])
  return redis.call('HMGET', keys[1], 'partitions', 'dataset')
end

redis.register_function{function_name = 'im_version', callback = version, flags = READS}
redis.register_function{function_name = 'im_init', callback = init}
