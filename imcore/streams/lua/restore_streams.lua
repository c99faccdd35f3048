-- Restoring: what `check --repair`, `rebuild` and the reconciliation of an older Redis need beside the rest. A stream takes
-- entries at its end only; so where some are missing, a new stream is made beside it (the shadow) and takes its place.

local function last_id(stream)
  if redis.call('EXISTS', stream) == 0 then
    return '0-0'
  end
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      return info[i + 1]
    end
  end
end

local function is_after(one, other)
  local ms, n = parts_of(one)
  local other_ms, other_n = parts_of(other)
  return ms > other_ms or ms == other_ms and n > other_n
end

-- Make the stream, if it is not there, and let it give ids after this one from now on. `added` is how many entries it has
-- had, as far as lags are counted from it.
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

-- im_restore_copy: copy a page of a stream's entries into its shadow, after those that it has.
-- Keys: stream, shadow. Arguments: first and last id (inclusive), count, 1 if the shadow begins anew.
-- Answer: how many were copied.
local function restore_copy(keys, args)
  if args[4] == '1' then
    redis.call('UNLINK', keys[2])
  end
  local top = last_id(keys[2])
  local first = is_after(args[1], top) and args[1] or '(' .. top
  if is_after(top, args[2]) or top == args[2] then
    return 0
  end
  local entries = redis.call('XRANGE', keys[1], first, args[2], 'COUNT', args[3])
  for _, entry in ipairs(entries) do
    redis.call('XADD', keys[2], entry[1], unpack(entry[2]))
  end
  return #entries
end

-- im_restore_add: add messages to a shadow, after those that it has; what it has already is passed over.
-- Keys: shadow, uncounted. Arguments: 1 if the shadow begins anew, then for each message: msgid, seq, uid, span, client_msgid
-- or '', sent_at in ms or '', 1 if the sender's offset moved with it, content, packed msgid that it recalls or ''.
-- Answer: how many were added.
local function restore_add(keys, args)
  if args[1] == '1' then
    redis.call('UNLINK', keys[1])
  end
  local top, added = last_id(keys[1]), 0
  for i = 2, #args, 9 do
    if is_after(args[i], top) then
      local fields = {'seq', args[i + 1], 'uid', args[i + 2], 'span', args[i + 3], 'cid', args[i + 4], 'sent', args[i + 5],
        'up', args[i + 6], 'text', args[i + 7]}
      local recalls = args[i + 8]
      if recalls ~= '' then
        fields[15], fields[16] = 'recalls', recalls
        local packed = decimal(pack(args[i]))
        redis.call('ZADD', keys[2], recalls, recalls, packed, packed)
      end
      redis.call('XADD', keys[1], args[i], unpack(fields))
      added = added + 1
    end
  end
  return added
end

-- im_restore_uncounted: recalled messages and tombstones are never unread.
-- Keys: uncounted. Arguments: 1 if these are neither, then packed msgids. Answer: how many were not known as what they are.
local function restore_uncounted(keys, args)
  local changed = 0
  for i = 2, #args do
    if args[1] == '1' then
      changed = changed + redis.call('ZREM', keys[1], args[i])
    else
      changed = changed + redis.call('ZADD', keys[1], args[i], args[i])
    end
  end
  return changed
end

-- Call a function with each entry of a stream, from an id on (an XRANGE form).
local function each_entry(stream, first, visit)
  while first do
    local page = redis.call('XRANGE', stream, first, '+', 'COUNT', 1000)
    for _, entry in ipairs(page) do
      visit(entry[1], entry[2])
    end
    first = #page == 1000 and '(' .. page[1000][1]
  end
end

-- Acks of messages at or after `lost` that the journal tells and `persist` has not done: they are taken back.
local function withdraw_acks(journal, gid, undone, lost)
  local kinds = {}
  for _, fields in ipairs(redis.call('XINFO', 'GROUPS', journal)) do
    kinds[#kinds + 1] = fields[2]
  end
  each_entry(journal, undone, function(id, fields)
    local passed = false
    if fields[2] == 'ack' and fields[4] == gid then
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

-- Whether the journal tells, since an id, that members of a group came or went.
local function has_changed(journal, since, gid)
  local changed = false
  each_entry(journal, '(' .. since, function(_, fields)
    changed = changed or fields[4] == gid and fields[2] ~= 'msg' and fields[2] ~= 'ack'
  end)
  return changed
end

-- Give a shadow the consumer groups of the members, at their offsets.
local function follow_offsets(shadow, acked, trimmed, trimmed_seq)
  local seqs = {['0'] = 0, [trimmed] = tonumber(trimmed_seq)}
  local found = redis.call('ZRANGE', acked, 0, -1, 'WITHSCORES')
  for i = 1, #found, 2 do
    local uid, offset = found[i], found[i + 1]
    if not string.find(uid, SEP, 1, true) then
      local id = unpack_id(tonumber(offset))
      if not seqs[offset] then
        local entry = redis.call('XRANGE', shadow, id, id)[1]
        seqs[offset] = entry and tonumber(entry[2][2])
      end
      if seqs[offset] then
        redis.call('XGROUP', 'CREATE', shadow, uid, id, 'ENTRIESREAD', seqs[offset])
      else
        redis.call('XGROUP', 'CREATE', shadow, uid, id)
      end
    end
  end
end

-- im_restore_swap: a shadow takes the place of a group's stream, and the group is there from now on, if it was not.
-- Messages that came since the caller looked follow in the shadow, with seqs that go on from there. Offsets that have
-- passed messages which were missing go back to before these, unless SQL knows better; the journal says where they are.
-- Keys: meta, stream, shadow, acked, uncounted, journal, groups.
-- Arguments: gid, start of the inbox channels, last id of the journal when the caller looked, newest id of the stream that it
-- saw, newest id of the shadow and its seq, trim point (packed) and its seq, id after which ids are given, where the
-- entries begin that `persist` has not done ('' if there are none), packed msgid of the first message that was missing ('' if
-- there is none), then, if there is one, for each span: span key, the first missing message that SQL does not know it to have
-- passed (or a higher number than any), its offset before that, where it joined, the offset that SQL knows.
-- Answer: {seq, packed msgid} of the newest, or CHANGED if members came or went meanwhile, or ids do not fit.
local function restore_swap(keys, args)
  local meta, stream, shadow, acked, journal = keys[1], keys[2], keys[3], keys[4], keys[6]
  local gid, newest, seq, trimmed, trimmed_seq, lost = args[1], args[5], tonumber(args[6]), args[7], args[8], args[11]
  local tail = redis.call('XRANGE', stream, '(' .. args[4], '+')
  if has_changed(journal, args[3], gid) or tail[1] and not is_after(tail[1][1], newest) then
    return 'CHANGED'
  end
  for _, entry in ipairs(tail) do
    local fields = entry[2]
    seq, newest = seq + 1, entry[1]
    fields[2], fields[12] = seq, lost == '' and fields[12] or '0'
    redis.call('XADD', shadow, newest, unpack(fields))
  end
  local moves = {}
  for i = 12, #args, 5 do
    local span, known = args[i], args[i + 4]
    local offset = redis.call('ZSCORE', acked, span)
    if offset and tonumber(offset) >= tonumber(args[i + 1]) then
      offset = args[i + 2]
      redis.call('ZADD', acked, offset, span)
    end
    if offset and tonumber(offset) > tonumber(known) then
      moves[#moves + 1] = table.concat({args[i + 3], known, offset, string.match(span, '^[^' .. SEP .. ']+')}, SEP)
    end
  end
  if lost ~= '' and args[10] ~= '' then
    withdraw_acks(journal, gid, args[10], tonumber(lost))
  end
  for first = 1, #moves, 1000 do
    local some = table.concat(moves, RECORD, first, math.min(first + 999, #moves))
    note(journal, 'kind', 'ack', 'gid', gid, 'moves', some)
  end
  raise_last_id(shadow, args[9], seq)
  follow_offsets(shadow, acked, trimmed, trimmed_seq)
  redis.call('RENAME', shadow, stream)
  local last = newest == '0-0' and '0' or decimal(pack(newest))
  redis.call('HSET', meta, 'seq', seq, 'last', last, 'trimmed', trimmed)
  redis.call('SADD', keys[7], gid)
  return {seq, last}
end

redis.register_function{function_name = 'im_restore_copy', callback = restore_copy}
redis.register_function{function_name = 'im_restore_add', callback = restore_add}
redis.register_function{function_name = 'im_restore_uncounted', callback = restore_uncounted}
redis.register_function{function_name = 'im_restore_swap', callback = restore_swap}
