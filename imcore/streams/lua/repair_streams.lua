-- Repair of streams, for `check --repair`, `rebuild` and reconciliation. A stream takes entries at its end only. So where some
-- are missing, a new stream is built beside it (the shadow) and then replaces it.
--
-- A repair first locks its group, by the token of this one attempt. The hash `group_locks` of the partition holds, by gid,
-- "token end length", followed by "seq last" once the shadow has replaced the stream. Every step checks that the lock is still its
-- own, and renews it; a process that has lost it stops. If a process dies, its lock stays: the group may be inconsistent, and is
-- not trimmed, until a repair of it ends.

local LOCK_MS = 5000

-- Whether the lock of a group is the caller's own. Renews it.
local function owns_lock(locks, gid, token)
  local holder, rest = string.match(redis.call('HGET', locks, gid) or '', '^(%S+) %d+ %d+(.*)$')
  if holder ~= token then
    return false
  end
  set_holder(locks, gid, token, LOCK_MS, rest)
  return true
end

-- Define a function that answers LOST if the lock of its group is not the caller's own.
local function define_locked(name, callback)
  define(name, DENY_OOM, function(keys, args)
    if not owns_lock(keys[1], args[1], args[2]) then
      return redis.error_reply('LOST another process repairs this group')
    end
    return callback(keys, args)
  end)
end

-- im_repair_lock: begin the repair of a group. Drops an earlier shadow.
-- Keys: group_locks, shadow. Arguments: gid, token. Answer: 1, or 0 while another process holds the lock.
define('im_repair_lock', ALLOW_OOM, function(keys, args)
  local holder, is_locked = holder_of(keys[1], args[1])
  if is_locked and holder ~= args[2] then
    return 0
  end
  redis.call('UNLINK', keys[2])
  set_holder(keys[1], args[1], args[2], LOCK_MS)
  return 1
end)

-- im_repair_release: release a lock. Keys: group_locks, shadow. Arguments: gid, token, 1 if the repair is complete. If not, the
-- lock expires at once, but stays. Answer: 1, or 0 if another process holds it.
define('im_repair_release', ALLOW_OOM, function(keys, args)
  if not owns_lock(keys[1], args[1], args[2]) then
    return 0
  end
  redis.call('UNLINK', keys[2])
  if args[3] == '1' then
    redis.call('HDEL', keys[1], args[1])
  else
    redis.call('HSET', keys[1], args[1], args[2] .. ' 0 0')
  end
  return 1
end)

local function last_id(stream)
  local exists = redis.call('EXISTS', stream) == 1
  return exists and fields_of(redis.call('XINFO', 'STREAM', stream))['last-generated-id'] or '0-0'
end

-- Make a stream, if there is none, and let its next ids be after this one. `added` is how many entries it has had, if lags are
-- counted from it.
local function raise_last_id(stream, id, added)
  if redis.call('EXISTS', stream) == 0 then
    redis.call('XGROUP', 'CREATE', stream, SEP, '0', 'MKSTREAM')
    redis.call('XGROUP', 'DESTROY', stream, SEP)
  end
  local top = last_id(stream)
  if is_after(id, top) then
    top = id
  end
  if added then
    added = math.max(added, redis.call('XLEN', stream))
    redis.call('XSETID', stream, top, 'ENTRIESADDED', added, 'MAXDELETEDID', '0-0')
  else
    redis.call('XSETID', stream, top)
  end
end

-- Remove text and meta of the recalled messages in a page of a stream.
local function remove_recalled(page, recalled)
  local is_recalled = {}
  local range = page[1] and {decimal(pack(page[1][1])), decimal(pack(page[#page][1]))} or {1, 0}
  for _, packed in ipairs(redis.call('ZRANGEBYSCORE', recalled, range[1], range[2])) do
    is_recalled[unpack_id(tonumber(packed))] = true
  end
  for _, entry in ipairs(page) do
    if is_recalled[entry[1]] and is_message(entry) and entry[2][15] ~= 'recalls' then
      entry[2] = {unpack(entry[2], 1, 14)}
      entry[2][14] = ''
    end
  end
end

-- Copy a page of a stream's entries up to an id into its shadow, after those it has, without recalled texts, and without names and
-- texts of those whom `erased` names. Returns whether more may follow.
local function copy_entries(stream, shadow, recalled, erased, last, count)
  local page, more = read_page('XRANGE', stream, '(' .. last_id(shadow), last, count, PAGE_BYTES, true)
  remove_recalled(page, recalled)
  hide_erased(page, erased)
  for _, entry in ipairs(page) do
    redis.call('XADD', shadow, entry[1], unpack(entry[2]))
  end
  return more
end

-- im_repair_copy: copy a page of a stream's entries into its shadow, after those it has; recalled ones without their texts.
-- Keys: group_locks, shadow, stream, recalled, meta. Arguments: gid, token, last id (inclusive), count.
-- Answer: how many entries the shadow has now. Errors: LOST.
define_locked('im_repair_copy', function(keys, args)
  if is_after(args[3], last_id(keys[2])) then
    copy_entries(keys[3], keys[2], keys[4], redis.call('HGET', keys[5], 'erased'), args[3], tonumber(args[4]))
  end
  return redis.call('XLEN', keys[2])
end)

-- im_repair_add: add messages to a shadow, after those it has; earlier ones are skipped.
-- Keys: group_locks, shadow, recalled. Arguments: gid, token, then for each message: msgid, seq, uid, span, client_msgid or '',
-- sent_at in ms or '', 1 if the sender was caught up, content, packed msgid that it recalls or '', meta as JSON or ''.
-- Answer: how many entries the shadow has now. Errors: LOST.
define_locked('im_repair_add', function(keys, args)
  local top = last_id(keys[2])
  for i = 3, #args, 10 do
    if is_after(args[i], top) then
      local fields = {'seq', args[i + 1], 'uid', args[i + 2], 'span', args[i + 3], 'cid', args[i + 4], 'sent', args[i + 5],
        'caught_up', args[i + 6], 'text', args[i + 7]}
      local recalls, meta = args[i + 8], args[i + 9]
      if recalls ~= '' then
        fields[15], fields[16] = 'recalls', recalls
        local packed = decimal(pack(args[i]))
        redis.call('ZADD', keys[3], recalls, recalls, packed, packed)
      elseif meta ~= '' then
        fields[15], fields[16] = 'meta', meta
      end
      redis.call('XADD', keys[2], args[i], unpack(fields))
    end
  end
  return redis.call('XLEN', keys[2])
end)

-- Call a function with each entry of a stream from an id on (an XRANGE form; nil: with none).
local function each_entry(stream, first, visit)
  while first do
    local page = redis.call('XRANGE', stream, first, '+', 'COUNT', 1000)
    for _, entry in ipairs(page) do
      visit(entry[1], entry[2])
    end
    first = #page == 1000 and '(' .. page[1000][1]
  end
end

-- A score as Python reads it: one that is no packed msgid was written by hand, and counts as IMPOSSIBLE.
local function clean_score(score)
  local number = score and math.max(tonumber(score), 0)
  if number and (number > HIGHEST or number ~= math.floor(number)) then
    number = HIGHEST + 1
  end
  return number and decimal(number)
end

-- Up to where messages have arrived in a span, if that is past its offset, else 0.
local function arrived_in(ahead, span)
  return tonumber(clean_score(redis.call('ZSCORE', ahead, span)) or '0')
end

-- Delete from the journal's entries that `persist` has not done those by which messages at or after `lost` were acked or arrived.
local function delete_acks(journal, gid, undone, lost)
  local kinds = {}
  for _, fields in ipairs(redis.call('XINFO', 'GROUPS', journal)) do
    kinds[#kinds + 1] = fields[2]
  end
  each_entry(journal, undone, function(id, fields)
    local passed = false
    if (fields[2] == 'ack' or fields[2] == 'delivered') and fields[4] == gid then
      for to in string.gmatch(RECORD .. fields[6], RECORD .. '%d+' .. SEP .. '%d+' .. SEP .. '(%d+)') do
        passed = passed or tonumber(to) >= lost
      end
    end
    if passed then
      redis.call('XDEL', journal, id)
      for _, kind in ipairs(kinds) do
        redis.call('XACK', journal, kind, id)
      end
    end
  end)
end

local function call_xgroup(command, stream, uid, id, seq)
  redis.call('XGROUP', command, stream, uid, id, unpack(seq and {'ENTRIESREAD', seq} or {}))
end

-- Create the consumer groups of the members in a shadow, at their offsets.
local function create_consumer_groups(shadow, acked, trimmed, trimmed_seq)
  local seqs = {['0'] = 0, [trimmed] = tonumber(trimmed_seq)}
  local scores = redis.call('ZRANGE', acked, 0, -1, 'WITHSCORES')
  for i = 1, #scores, 2 do
    local uid, offset = scores[i], scores[i + 1]
    if not string.find(uid, SEP, 1, true) then
      local id = unpack_id(math.min(tonumber(offset), HIGHEST))  -- by hand it may be anything
      if not seqs[offset] then
        local entry = redis.call('XRANGE', shadow, id, id)[1]
        seqs[offset] = entry and tonumber(entry[2][2])
      end
      call_xgroup('CREATE', shadow, uid, id, seqs[offset])
    end
  end
end

-- The key of a span that was open at `began` when the caller looked: it may be closed by now, and another one of the uid open.
local function key_of_span(joined, span, began)
  if string.find(span, SEP, 1, true) or redis.call('ZSCORE', joined, span) == began then
    return span
  end
  return span .. SEP .. began
end

-- Move the positions of a span back where they have passed a missing message. Returns its key, the offset, and up to where messages
-- have arrived; nil if the span is gone. Positions go back from `lost` on: these are a message and where to go back to.
local function rewind_span(keys, span, began, lost, arrived_lost)
  local key = key_of_span(keys[6], span, began)
  local offset = tonumber(redis.call('ZSCORE', keys[5], key))
  if offset then
    local arrived = math.max(offset, arrived_in(keys[11], key))
    if offset >= lost[1] then
      offset = lost[2]
      redis.call('ZADD', keys[5], decimal(offset), key)
    end
    arrived = math.max(offset, arrived >= arrived_lost[1] and arrived_lost[2] or arrived)
    set_ahead(keys[11], keys[12], key, arrived, offset)
    return key, offset, arrived
  end
end

-- Let a member's private position go back likewise; the bookmark then belongs to the span that goes on.
local function rewind_bookmark(bookmarks, uid, joined, offset, lost, changes)
  local private, mark = parse_bookmark(redis.call('HGET', bookmarks, uid))
  local back = private >= lost[1] and lost[2] or private
  back = back > offset and back or 0
  if back ~= private then
    change_bookmark(bookmarks, joined, uid, back, mark, changes)
  end
end

-- Append the moves of offsets, or of how far messages have arrived, to the journal.
local function append_moves(journal, kind, gid, moves)
  for first = 1, #moves, 1000 do
    local some = table.concat(moves, RECORD, first, math.min(first + 999, #moves))
    append_entry(journal, 'kind', kind, 'gid', gid, 'moves', some)
  end
end

-- im_repair_swap: let a shadow replace a group's stream, and make the group visible if it was missing.
-- Messages that were sent since the caller looked are appended to the shadow, with the next seqs. Positions that have passed
-- missing messages move back before these, unless SQL knows better; the journal gets entries about them.
-- The same call again is answered as the first time.
-- Keys: group_locks, shadow, meta, stream, acked, joined, journal, groups, creating, deleting, ahead, ahead_acked, bookmarks.
-- Arguments: gid, token, newest id of the stream and trim point as the caller saw them (packed; '' for a missing group), how
-- many entries the shadow has, its newest id and seq, trim point (packed) and its seq, id that the next ids must exceed, id of
-- the first entry that `persist` has not done ('' without one), packed msgid of the first missing message ('' without one),
-- then, if there is one, for each span: span key, where it began in Redis, where it begins according to SQL and the journal, the
-- offset in SQL, up to where messages have arrived according to SQL, then for the offset, for what has arrived and for the private
-- position: the first missing message that SQL does not know it to have passed (or HIGHEST), and the position before that.
-- Answer: {seq, packed msgid} of the newest, or CHANGED if the stream differs from what the caller saw, or ids do not fit, or a
-- creation of the group has begun, or a deletion.
-- Errors: LOST.
define_locked('im_repair_swap', function(keys, args)
  local done_seq, done_last = string.match(redis.call('HGET', keys[1], args[1]), '^%S+ %d+ %d+ (%d+) (%d+)$')
  if done_seq then
    return {tonumber(done_seq), done_last}
  end
  local shadow, meta, stream, acked, journal = keys[2], keys[3], keys[4], keys[5], keys[7]
  local gid, newest, seq, trimmed, trimmed_seq, lost = args[1], args[6], tonumber(args[7]), args[8], args[9], args[12]
  local head = redis.call('HMGET', meta, 'seq', 'trimmed')
  local tail = redis.call('XRANGE', stream, '(' .. args[3], '+')
  if (head[1] and (head[2] or '0') or '') ~= args[4] or redis.call('XLEN', shadow) ~= tonumber(args[5])
      or tail[1] and not is_after(tail[1][1], newest)
      or not head[1] and (is_being_created(keys[9], gid) or is_being_deleted(keys[10], gid)) then
    return 'CHANGED'
  end
  for _, entry in ipairs(tail) do
    if not is_message(entry) then
      return 'CHANGED'
    end
  end
  for _, entry in ipairs(tail) do
    local fields = entry[2]
    seq, newest = seq + 1, entry[1]
    fields[2], fields[12] = seq, lost == '' and fields[12] or '0'
    redis.call('XADD', shadow, newest, unpack(fields))
  end
  local moves, deliveries, changes = {}, {}, {}
  for i = 13, #args, 11 do
    local n = {}
    for j = 3, 10 do
      n[j] = tonumber(args[i + j])
    end
    local began, joined = args[i + 1], args[i + 2]
    local key, offset, arrived = rewind_span(keys, args[i], began, {n[5], n[6]}, {n[7], n[8]})
    if key then
      local uid = string.match(key, '^[^' .. SEP .. ']+')
      if offset > n[3] then
        moves[#moves + 1] = table.concat({joined, args[i + 3], decimal(offset), uid}, SEP)
      end
      if arrived > math.max(n[4], offset) then
        deliveries[#deliveries + 1] = table.concat({joined, args[i + 4], decimal(arrived), uid}, SEP)
      end
      if key == uid then
        rewind_bookmark(keys[13], uid, joined, offset, {n[9], n[10]}, changes)
      end
    end
  end
  if lost ~= '' and args[11] ~= '' then
    delete_acks(journal, gid, args[11], tonumber(lost))
  end
  append_moves(journal, 'ack', gid, moves)
  append_moves(journal, 'delivered', gid, deliveries)
  append_bookmarks(journal, gid, changes)
  raise_last_id(shadow, args[10], seq)
  create_consumer_groups(shadow, acked, trimmed, trimmed_seq)
  redis.call('UNLINK', stream)  -- a stream that is renamed over is freed before the next call, however large it is
  redis.call('RENAME', shadow, stream)
  local last = newest == '0-0' and '0' or decimal(pack(newest))
  redis.call('HSET', meta, 'seq', seq, 'last', last, 'trimmed', trimmed)
  redis.call('HSETNX', meta, 'born', decimal(math.max(0, pack(last_id(journal)))))
  redis.call('SADD', keys[8], gid)
  redis.call('HDEL', keys[9], gid)
  set_holder(keys[1], gid, args[2], LOCK_MS, ' ' .. seq .. ' ' .. last)
  return {seq, last}
end)
