#!lua name=imcore

-- The Redis functions of imcore: each step that must be atomic.
--
-- Units. A packed msgid is (ms - EPOCH_MS) * 8192 + n for the stream entry id `ms-n`. It is exact in a double, so it can be a
-- sorted-set score and a Lua number. It travels as decimal text. 0 is the position before the first message.
--
-- Keys of one group (all in the slot of its partition's hash tag):
--   meta    hash    seq (of the newest message), last (its packed msgid), trimmed (packed msgid of the newest trimmed entry);
--                   receipts (`names`, `counts` or `off`; without: `names`), asked_by (`sender` or `members`; without: `sender`);
--                   born (packed id of a journal entry: all later ones about this gid are about this group)
--                   term1 to term4 (newest first): which processes have stored messages (see terms.lua)
--                   erased: users whose messages in the stream still have names and texts, with what they are called from now on
--                   (uid SEP alias, RECORD between two); last_erasure: what no other erasure in the group has (see erasure.lua)
--   stream  stream  one entry per message, one consumer group per current member; its last-delivered-id is the offset
--   acked   zset    span key -> packed offset
--   joined  zset    span key -> newest message at the join
--   left    zset    span key of a closed span -> newest message at the leave
--   idempotency_newer, idempotency_older  hashes that rotate, so that each entry lives long enough: uid SEP client_msgid ->
--                   "msgid seq", and SEP -> "since length seen" (ms): when the table began by its own count of time, for how
--                   long its entries count, when it was last looked at. Without a TTL: a server may evict keys that have one.
--   own_unacked list  per member, packed, oldest first. Entries past the offset or a mark before it are own messages, which
--                   are not unread. Entries that both have passed are dropped when the next one is appended.
--   ahead   zset    span key -> packed position up to which messages have arrived, for spans where that is past the offset
--   ahead_acked zset the same span keys -> packed offset
--   bookmarks hash  uid of a member -> "private mark" (packed; 0 for neither): read in private up to `private`, which is past the
--                   offset; marked unread after `mark`, the position just before the marked message. The user's own: no other
--                   user's answer may differ by it.
--   recalled zset   packed msgids of recalled messages and of the tombstones that recall them: never unread
-- Keys of one user in one partition:
--   groups_of set   gids of the user's groups in that partition
--   dirty   zset    gid SEP packed msgid -> version; the user's messages whose tallies changed and are not confirmed yet
-- Keys of one user in the partition of their uid:
--   sessions zset   session id -> end (ms), and their lengths (see sessions.lua)
-- Keys of one partition, beside its journal:
--   online   zset   uid -> end of the user's last session (ms)
--   online_ms string the greatest length of any session
--   receipts_off set uids who read in private only; every partition has all of them
--   last_seen zset  uid -> when the user's last session ended (ms), for users of this partition without one
--   ended_sessions set ids of sessions of erased users, for a week; they do not begin again
--   creating hash   gid -> "token end length" of a group that is being created in steps and does not exist yet
--   unnotified hash the same for a group that exists, until all its members are notified
--   deleting hash   gid -> "messages entry" of a group that is being deleted (see deletion.lua)
--   rewrites zset   gid -> time (ms) since when a recalled text of the group waits to leave its stream (see rewrite.lua)
--   erasing  hash   uid -> alias of users who are being erased: nobody of that uid may join; every partition has all of them
--   dead     stream dead letters; dead_shadow: the same while an erasure makes it anew
-- A span key is the uid while the span is open, and uid SEP joined once it is closed.
--
-- Ends. A lease, a lock, a session and a creation end at a time of the server's clock (ms), which is stored with the length.
-- An end that is further ahead than its length was set before the clock was put back. Every reader then cuts it to that length
-- from now. So nothing ends early, and nothing outlives its length because the clock was wrong.
--
-- Errors begin with a code: NOGROUP, CREATING, ABANDONED, DELETING, CLOCK, LOST, ERASING, ERASED, ENDED. In a call for many items, an item that fails
-- is answered with a code (NOTMEMBER, NOMSG, FUTURE, TRIMMED), and the others are carried out.

local VERSION = 17
local EPOCH_MS = 1577836800000
local PER_MS = 8192
local HIGHEST = 9007199254740991  -- of all packed msgids
local SEP = '\31'
local RECORD = '\30'
local MAX_UNPACKED = 1000  -- Lua's stack ends at some thousands

local READ_ONLY = {'no-writes'}
local ALLOW_OOM = {'allow-oom'}
local DENY_OOM = {}

local function define(name, flags, callback)
  redis.register_function{function_name = name, callback = callback, flags = flags}
end

local function decimal(number)
  return string.format('%d', number)  -- twice as fast as %.0f
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
  if string.byte(id, 14) == 45 then  -- '-': it is of the years 2001 to 2286, and takes half the time
    return (tonumber(string.sub(id, 1, 13)) - EPOCH_MS) * PER_MS + tonumber(string.sub(id, 15))
  end
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

-- An end, cut to its length from now.
local function end_from(now, ends, length)
  return math.min(tonumber(ends), now + tonumber(length))
end

-- Let a process hold a lock for a time from now: the value of a hash field becomes "token end length", perhaps with a rest.
local function set_holder(hash, field, token, length, rest)
  redis.call('HSET', hash, field, table.concat({token, decimal(now_ms() + length), decimal(length)}, ' ') .. (rest or ''))
end

-- The token of the process that holds a lock, or has held it last, and whether it has not ended. Nil without one.
local function holder_of(hash, field)
  local token, ends, length, rest = string.match(redis.call('HGET', hash, field) or '', '^(%S+) (%d+) (%d+)(.*)$')
  if token then
    local now = now_ms()
    local cut = end_from(now, ends, length)
    if cut < tonumber(ends) then
      redis.call('HSET', hash, field, table.concat({token, decimal(cut), length}, ' ') .. rest)
    end
    return token, cut > now
  end
end

-- Append an entry to the journal. Its id must be packable like a msgid: when the counter of a millisecond is full (10,000
-- members at once, or a clock that was put back), take an id of the next millisecond.
local function append_entry(journal, ...)
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

-- The answers of a command that answers one value per argument, for any number of arguments from `first` on.
local function call_for_all(command, key, args, first)
  if #args < MAX_UNPACKED then
    return args[first] and redis.call(command, key, unpack(args, first)) or {}
  end
  local answers, n = {}, 0
  for from = first, #args, MAX_UNPACKED do
    for _, value in ipairs(redis.call(command, key, unpack(args, from, math.min(from + MAX_UNPACKED - 1, #args)))) do
      n = n + 1
      answers[n] = value
    end
  end
  return answers
end

-- A map as XINFO answers it: fields and values in turn.
local function fields_of(info)
  local fields = {}
  for i = 1, #info, 2 do
    fields[info[i]] = info[i + 1]
  end
  return fields
end

local function no_group()
  return redis.error_reply('NOGROUP there is no such group')
end

local function head_of(meta)
  local head = redis.call('HMGET', meta, 'seq', 'last')
  return tonumber(head[1]), tonumber(head[2])
end

-- Define a function about a group, whose first key is meta; the callback gets seq, last, the trim point and the field `erased`, too.
-- Without a group: NOGROUP. im_send reads meta itself, since it needs less of it and runs most often.
local function define_for_group(name, flags, callback)
  define(name, flags, function(keys, args)
    local meta = redis.call('HMGET', keys[1], 'seq', 'last', 'trimmed', 'erased')
    if not meta[1] then
      return no_group()
    end
    return callback(keys, args, tonumber(meta[1]), tonumber(meta[2]), meta[3] or '0', meta[4])
  end)
end

local function member_count(acked, left)
  return redis.call('ZCARD', acked) - redis.call('ZCARD', left)
end

-- Whether an entry of a group's stream is a message: anybody may add other entries by hand.
local function is_message(entry)
  local fields = entry[2]
  return fields[1] == 'seq' and fields[13] == 'text'
end

-- The first message of a stream in the order of the command (XRANGE or XREVRANGE), nil without one.
local function first_message(command, stream, from, to)
  local entry
  repeat
    entry = redis.call(command, stream, from, to, 'COUNT', 1)[1]
    from = entry and '(' .. entry[1]
  until not entry or is_message(entry)
  return entry
end

-- A message ends with its text and at most one more field: the sender's `meta` (JSON), or what it `recalls` (packed msgid) if it
-- is a tombstone. In the answers for members, a recalled message has the field `recalled` there.
local function bytes_of_text(values)
  return #values[14] + #(values[16] or '')
end

local FIRST_PAGE_SIZE = 16  -- entries read at once before their sizes are known
local PAGE_BYTES = 2 ^ 20   -- soft limit for the entries of one answer; a single entry may exceed it

-- How many entries to read next: as many as fit into the bytes left if they are as long as those so far.
local function next_page_size(entries, bytes, left)
  return math.max(1, math.min(MAX_UNPACKED, entries == 0 and FIRST_PAGE_SIZE or math.floor(entries * left / (bytes - left + 1))))
end

local function bytes_of_values(entry)
  local bytes = 0
  for _, value in ipairs(entry[2]) do
    bytes = bytes + #value
  end
  return bytes
end

-- At most `count` messages from a position on, in the order of the command (XRANGE or XREVRANGE), and at most `limit` bytes of
-- text and meta, but one message in any case. And whether more may follow. With `all_kinds`: entries, and bytes of all their values.
local function read_page(command, stream, from, to, count, limit, all_kinds)
  local entries, n, left, size = {}, 0, limit, math.min(count, FIRST_PAGE_SIZE)
  while true do
    local part = redis.call(command, stream, from, to, 'COUNT', size)
    for _, entry in ipairs(part) do
      if all_kinds or is_message(entry) then
        left = left - (all_kinds and bytes_of_values(entry) or bytes_of_text(entry[2]))
        if n == count or (left < 0 and n > 0) then
          return entries, true
        end
        n = n + 1
        entries[n] = entry
      end
    end
    if #part < size or n == count then
      return entries, n == count
    end
    from = '(' .. part[#part][1]
    size = math.min(count - n, next_page_size(n, limit, left))
  end
end

-- The message with a packed msgid, or nil and the reason: FUTURE, TRIMMED or NOMSG.
local function find_message(stream, packed, last, trimmed)
  local id = unpack_id(packed)
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if entry and is_message(entry) then
    return entry
  elseif packed > last then
    return nil, 'FUTURE'
  end
  return nil, packed <= tonumber(trimmed) and 'TRIMMED' or 'NOMSG'
end

-- The aliases in a field `erased`, by uid.
local function aliases_of(erased)
  local aliases = {}
  for uid, alias in string.gmatch(erased or '', '([^' .. SEP .. RECORD .. ']+)' .. SEP .. '([^' .. RECORD .. ']+)') do
    aliases[uid] = alias
  end
  return aliases
end

-- Remove what erased users have written from entries: text, meta and client_msgid. They are called by their aliases.
local function hide_erased(entries, erased)
  local aliases = erased and aliases_of(erased) or {}
  for _, entry in ipairs(next(aliases) and entries or {}) do
    local values = entry[2]
    local alias = is_message(entry) and aliases[values[4]]
    if alias then
      values[4], values[8], values[14] = alias, '', ''
      if values[15] == 'meta' then
        values[15], values[16] = nil, nil
      end
    end
  end
  return entries
end

-- The error if one of some uids (arguments from `first` on) is being erased.
local function erasing_error(erasing, args, first)
  if redis.call('EXISTS', erasing) == 1 then
    for _, alias in ipairs(call_for_all('HMGET', erasing, args, first)) do
      if alias then
        return redis.error_reply('ERASING a user of that name is being erased')
      end
    end
  end
end

-- Publish to a user's live sessions: they are subscribed to the inbox of every partition.
local function notify(inboxes, uid, fields)
  redis.call('SPUBLISH', inboxes .. uid, table.concat(fields, SEP))
end

-- im_version: the version of the loaded library.
-- Keys: none. Arguments: none. Answer: an integer.
define('im_version', READ_ONLY, function()
  return VERSION
end)

-- im_check_writes: change nothing. A server that takes no writes refuses it like any write: a replica, one that cannot save to its
-- disk, one with too few replicas.
-- Keys: none. Arguments: none. Answer: 0.
define('im_check_writes', ALLOW_OOM, function()
  return 0
end)

-- im_init: fix the number of partitions of the data, once.
-- Keys: config. Arguments: partitions, dataset id for new data. Answer: {partitions, dataset id} as stored.
define('im_init', DENY_OOM, function(keys, args)
  redis.call('HSETNX', keys[1], 'partitions', args[1])
  redis.call('HSETNX', keys[1], 'dataset', args[2])
  return redis.call('HMGET', keys[1], 'partitions', 'dataset')
end)
