-- Restoring: what `check --repair`, `rebuild` and the reconciliation of an older Redis need beside the rest. A stream takes
-- entries at its end only; so where some are missing, a new stream is made beside it (the shadow) and takes its place.
--
-- Whoever mends a group claims it first, by a token of this one attempt. In the hash `mending` of its partition stands, by gid,
-- "token end", and behind it "seq last" once the shadow has taken the stream's place. Every step looks whether the claim
-- is still its own, and renews it; who has lost it stops. Where somebody died the claim stays: the group may not be as it
-- should be, and is not trimmed, until somebody has mended it to the end.

local CLAIM_MS = 5000

-- Whether the claim of a group is the caller's own.
local function is_claimed(mending, gid, token)
  local holder, rest = string.match(redis.call('HGET', mending, gid) or '', '^(%S+) %d+(.*)$')
  if holder ~= token then
    return false
  end
  redis.call('HSET', mending, gid, token .. ' ' .. decimal(now_ms() + CLAIM_MS) .. rest)
  return true
end

local function lost_claim()
  return redis.error_reply('LOST another process mends this group')
end

-- im_restore_claim: begin to mend a group. What is left of an earlier shadow goes.
-- Keys: mending, shadow. Arguments: gid, token. Answer: 1, or 0 while the claim of somebody else lives.
local function restore_claim(keys, args)
  local now = now_ms()
  local holder, ends, rest = string.match(redis.call('HGET', keys[1], args[1]) or '', '^(%S+) (%d+)(.*)$')
  if holder and holder ~= args[2] and tonumber(ends) > now then
    local cut = end_from(now, ends, CLAIM_MS)
    if cut < tonumber(ends) then
      redis.call('HSET', keys[1], args[1], holder .. ' ' .. decimal(cut) .. rest)
    end
    return 0
  end
  redis.call('UNLINK', keys[2])
  redis.call('HSET', keys[1], args[1], args[2] .. ' ' .. decimal(now + CLAIM_MS))
  return 1
end

-- im_restore_release: give a claim up. Keys: mending, shadow. Arguments: gid, token, 1 if the group is mended to the end.
-- Otherwise the next one may claim it at once. Answer: 1, or 0 if it was somebody else's by now.
local function restore_release(keys, args)
  if not is_claimed(keys[1], args[1], args[2]) then
    return 0
  end
  redis.call('UNLINK', keys[2])
  if args[3] == '1' then
    redis.call('HDEL', keys[1], args[1])
  else
    redis.call('HSET', keys[1], args[1], args[2] .. ' 0')
  end
  return 1
end

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
-- Keys: mending, shadow, stream. Arguments: gid, token, last id (inclusive), count.
-- Answer: how many entries the shadow has now. Errors: LOST.
local function restore_copy(keys, args)
  if not is_claimed(keys[1], args[1], args[2]) then
    return lost_claim()
  end
  local top = last_id(keys[2])
  if is_after(args[3], top) then
    for _, entry in ipairs(redis.call('XRANGE', keys[3], '(' .. top, args[3], 'COUNT', args[4])) do
      redis.call('XADD', keys[2], entry[1], unpack(entry[2]))
    end
  end
  return redis.call('XLEN', keys[2])
end

-- im_restore_add: add messages to a shadow, after those that it has; what it has already is passed over.
-- Keys: mending, shadow, recalled. Arguments: gid, token, then for each message: msgid, seq, uid, span, client_msgid or '',
-- sent_at in ms or '', 1 if the sender's offset moved with it, content, packed msgid that it recalls or ''.
-- Answer: how many entries the shadow has now. Errors: LOST.
local function restore_add(keys, args)
  if not is_claimed(keys[1], args[1], args[2]) then
    return lost_claim()
  end
  local top = last_id(keys[2])
  for i = 3, #args, 9 do
    if is_after(args[i], top) then
      local fields = {'seq', args[i + 1], 'uid', args[i + 2], 'span', args[i + 3], 'cid', args[i + 4], 'sent', args[i + 5],
        'caught_up', args[i + 6], 'text', args[i + 7]}
      local recalls = args[i + 8]
      if recalls ~= '' then
        fields[15], fields[16] = 'recalls', recalls
        local packed = decimal(pack(args[i]))
        redis.call('ZADD', keys[3], recalls, recalls, packed, packed)
      end
      redis.call('XADD', keys[2], args[i], unpack(fields))
    end
  end
  return redis.call('XLEN', keys[2])
end

-- im_restore_recalled: recalled messages and tombstones are never unread.
-- Keys: recalled. Arguments: 1 if these are neither, then packed msgids. Answer: how many were not known as what they are.
local function restore_recalled(keys, args)
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

-- Give a shadow the consumer groups of the members, at their offsets.
local function follow_offsets(shadow, acked, trimmed, trimmed_seq)
  local seqs = {['0'] = 0, [trimmed] = tonumber(trimmed_seq)}
  local found = redis.call('ZRANGE', acked, 0, -1, 'WITHSCORES')
  for i = 1, #found, 2 do
    local uid, offset = found[i], found[i + 1]
    if not string.find(uid, SEP, 1, true) then
      local id = unpack_id(math.min(tonumber(offset), HIGHEST))  -- by hand it may be anything
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

-- The key under which a span is found that was open when the caller looked, and began there: it may be closed by now, and
-- another one of the same uid open.
local function key_of_span(joined, span, began)
  if string.find(span, SEP, 1, true) or redis.call('ZSCORE', joined, span) == began then
    return span
  end
  return span .. SEP .. began
end

-- Let the offset of a span go back, if it has passed over a message that was missing. Returns it, nil if the span is gone.
local function take_back(keys, span, began, lost, back)
  local key = key_of_span(keys[6], span, began)
  local offset = redis.call('ZSCORE', keys[5], key)
  if offset and tonumber(offset) >= tonumber(lost) then
    offset = back
    redis.call('ZADD', keys[5], offset, key)
  end
  return offset
end

-- im_restore_swap: a shadow takes the place of a group's stream, and the group is there from now on, if it was not.
-- Messages that came since the caller looked follow in the shadow, with seqs that go on from there. Offsets that have
-- passed messages which were missing go back to before these, unless SQL knows better; the journal says where they are.
-- Once done it is not done again: the same call is answered as the first time.
-- Keys: mending, shadow, meta, stream, acked, joined, journal, groups, creating.
-- Arguments: gid, token, newest id of the stream and trim point (packed; '' for a group that was not there) as the caller saw
-- them, how many entries the shadow has, its newest id and seq, trim point (packed) and its seq, id after which ids are given,
-- where the entries begin that `persist` has not done ('' if there are none), packed msgid of the first message that was
-- missing ('' if there is none), then, if there is one, for each span: span key, where it began, the first missing message
-- that SQL does not know it to have passed (or a higher number than any), its offset before that, where it began as SQL and
-- the journal are to have it, the offset that SQL knows.
-- Answer: {seq, packed msgid} of the newest, or CHANGED if the stream is not as the caller saw it, or ids do not fit, or a
-- creation of the group has begun.
-- Errors: LOST.
local function restore_swap(keys, args)
  if not is_claimed(keys[1], args[1], args[2]) then
    return lost_claim()
  end
  local done_seq, done_last = string.match(redis.call('HGET', keys[1], args[1]), '^%S+ %d+ (%d+) (%d+)$')
  if done_seq then
    return {tonumber(done_seq), done_last}
  end
  local shadow, meta, stream, acked, journal = keys[2], keys[3], keys[4], keys[5], keys[7]
  local gid, newest, seq, trimmed, trimmed_seq, lost = args[1], args[6], tonumber(args[7]), args[8], args[9], args[12]
  local head = redis.call('HMGET', meta, 'seq', 'trimmed')
  local tail = redis.call('XRANGE', stream, '(' .. args[3], '+')
  if (head[1] and (head[2] or '0') or '') ~= args[4] or redis.call('XLEN', shadow) ~= tonumber(args[5])
      or tail[1] and not is_after(tail[1][1], newest) or not head[1] and is_created(keys[9], gid) then
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
  local moves = {}
  for i = 13, #args, 6 do
    local offset = take_back(keys, args[i], args[i + 1], args[i + 2], args[i + 3])
    if offset and tonumber(offset) > tonumber(args[i + 5]) then
      local uid = string.match(args[i], '^[^' .. SEP .. ']+')
      moves[#moves + 1] = table.concat({args[i + 4], args[i + 5], offset, uid}, SEP)
    end
  end
  if lost ~= '' and args[11] ~= '' then
    withdraw_acks(journal, gid, args[11], tonumber(lost))
  end
  for first = 1, #moves, 1000 do
    local some = table.concat(moves, RECORD, first, math.min(first + 999, #moves))
    note(journal, 'kind', 'ack', 'gid', gid, 'moves', some)
  end
  raise_last_id(shadow, args[10], seq)
  follow_offsets(shadow, acked, trimmed, trimmed_seq)
  redis.call('RENAME', shadow, stream)
  local last = newest == '0-0' and '0' or decimal(pack(newest))
  redis.call('HSET', meta, 'seq', seq, 'last', last, 'trimmed', trimmed)
  redis.call('SADD', keys[8], gid)
  redis.call('HDEL', keys[9], gid)
  redis.call('HSET', keys[1], gid, table.concat({args[2], decimal(now_ms() + CLAIM_MS), seq, last}, ' '))
  return {seq, last}
end

redis.register_function{function_name = 'im_restore_claim', callback = restore_claim, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_restore_release', callback = restore_release, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_restore_copy', callback = restore_copy}
redis.register_function{function_name = 'im_restore_add', callback = restore_add}
redis.register_function{function_name = 'im_restore_recalled', callback = restore_recalled}
redis.register_function{function_name = 'im_restore_swap', callback = restore_swap}
