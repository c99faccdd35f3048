-- Repair of data that belongs to messages and members: spans, positions, own_unacked lists, client_msgids, receipts.

-- Set a member's consumer group, which may be missing, to an offset. The seq of a trimmed one is not known here.
local function set_offset(stream, uid, offset, trimmed)
  local id, seq = unpack_id(offset), nil
  if offset >= trimmed then
    local after = first_message('XRANGE', stream, '(' .. id, '+')
    local newest = first_message('XREVRANGE', stream, '+', '-')
    seq = after and tonumber(after[2][2]) - 1 or newest and newest[2][2]
  end
  redis.pcall('XGROUP', 'CREATE', stream, uid, id)
  call_xgroup('SETID', stream, uid, id, seq)
end

-- Whether a key is a span in all indexes that hold one.
local function is_whole(acked, joined, left, key, is_closed)
  return redis.call('ZSCORE', acked, key) and redis.call('ZSCORE', joined, key)
    and (not is_closed or redis.call('ZSCORE', left, key))
end

-- Drop a key from all indexes of spans, and the bookmark of that name.
local function drop_span(keys, span)
  for z = 3, 7 do
    redis.call('ZREM', keys[z], span)
  end
  redis.call('HDEL', keys[8], span)
end

-- Move an offset, or how far messages have arrived, back if it is still at or past an impossible one.
local function move_back(keys, order, span, impossible, offset, delivered)
  local acked, ahead, ahead_acked = keys[3], keys[6], keys[7]
  if order == 'withdraw' then
    if arrived_in(ahead, span) >= impossible then
      set_ahead(ahead, ahead_acked, span, delivered, tonumber(redis.call('ZSCORE', acked, span) or '0'))
    end
  elseif tonumber(clean_score(redis.call('ZSCORE', acked, span)) or '0') >= impossible then
    redis.call('ZADD', acked, decimal(offset), span)
    set_ahead(ahead, ahead_acked, span, arrived_in(ahead, span), offset)
  end
end

local function open_span(keys, uid, from, offset, delivered, trimmed)
  local acked, ahead = keys[3], keys[6]
  redis.call('ZADD', acked, 'GT', offset, uid)
  redis.call('ZADD', keys[4], from, uid)
  redis.call('ZREM', keys[5], uid)
  local at = tonumber(redis.call('ZSCORE', acked, uid))
  set_ahead(ahead, keys[7], uid, math.max(arrived_in(ahead, uid), delivered), at)
  set_offset(keys[2], uid, at, trimmed)
end

-- Close a span, which is the open one of its uid if that `is_open`.
local function close_span(keys, uid, from, to, offset, delivered, is_open)
  local acked, joined, ahead, ahead_acked = keys[3], keys[4], keys[6], keys[7]
  local span = uid .. SEP .. from
  if is_open then
    local current = redis.call('ZSCORE', acked, uid) or offset
    offset = decimal(math.min(math.max(tonumber(current), tonumber(offset)), to))
    delivered = math.max(arrived_in(ahead, uid), delivered)
    drop_span(keys, uid)
  end
  add_closed_span(acked, joined, keys[5], uid, from, to, offset)
  local at = redis.call('ZSCORE', acked, span)
  set_ahead(ahead, ahead_acked, span, at and math.min(math.max(arrived_in(ahead, span), delivered), to) or 0, tonumber(at or '0'))
end

-- im_repair_spans: correct spans. Positions move forward only, and not beyond the end of their span.
-- Keys: group_locks, stream, acked, joined, left, ahead, ahead_acked, bookmarks, then groups_of and own_unacked of each span's uid.
-- Arguments: gid, token, prefix of the inbox channels, trim point, then for each span: order, uid, joined, left, its offset, up to
-- where messages have arrived, and where the uid's open span began when the caller looked ('' without one). Orders: `open` it,
-- `close` it, `drop` the key that is given as the uid, `sweep` that key if it is still no whole span, move its offset `back` if it
-- is still at or past `left`, which is no message, or `withdraw` in the same way that messages have arrived.
-- Answer: the numbers (from 0 on) of spans that were left alone, since members came or went. Errors: LOST.
define_locked('im_repair_spans', function(keys, args)
  local stream, acked, joined, left = keys[2], keys[3], keys[4], keys[5]
  local skipped = {}
  for i = 5, #args, 7 do
    local order, uid, from, to, offset = args[i], args[i + 1], args[i + 2], args[i + 3], args[i + 4]
    local delivered = tonumber(args[i + 5])
    local number = (i - 5) / 7
    local k = 9 + 2 * number
    local began = clean_score(redis.call('ZSCORE', joined, uid))
    local is_closed = string.find(uid, SEP, 1, true)
    if not is_closed and (began or '') ~= args[i + 6] then
      skipped[#skipped + 1] = number
    elseif order == 'sweep' and is_whole(acked, joined, left, uid, is_closed) then
      skipped[#skipped + 1] = number
    elseif order == 'drop' or order == 'sweep' then
      drop_span(keys, uid)
      if not is_closed then
        remove_member(stream, uid, keys[k], keys[k + 1], args[1])
      end
    elseif order == 'back' or order == 'withdraw' then
      move_back(keys, order, uid, tonumber(to), tonumber(offset), delivered)
    elseif order == 'open' then
      local is_new = not redis.call('ZSCORE', acked, uid)
      open_span(keys, uid, from, offset, delivered, tonumber(args[4]))
      redis.call('SADD', keys[k], args[1])
      if is_new then
        notify(args[3], uid, {'j', args[1]})
      end
    else
      close_span(keys, uid, from, tonumber(to), offset, delivered, began == from)
      if began == from then
        remove_member(stream, uid, keys[k], keys[k + 1], args[1])
        notify(args[3], uid, {'l', args[1]})
      end
    end
  end
  return skipped
end)

-- im_repair_bookmarks: correct bookmarks.
-- Keys: group_locks, joined, bookmarks. Arguments: gid, token, then for each: uid, where the span began that it belongs to, the two
-- parts of the bookmark as the caller saw it, and as it is to be.
-- Answer: the numbers (from 0 on) of bookmarks that were left alone, since they or the spans have changed. Errors: LOST.
define_locked('im_repair_bookmarks', function(keys, args)
  local skipped = {}
  for i = 3, #args, 6 do
    local uid = args[i]
    local private, mark = parse_bookmark(redis.call('HGET', keys[3], uid))
    local is_same = private == tonumber(args[i + 2]) and mark == tonumber(args[i + 3])
    if is_same and redis.call('ZSCORE', keys[2], uid) == args[i + 1] then
      change_bookmark(keys[3], args[i + 1], uid, tonumber(args[i + 4]), tonumber(args[i + 5]), {})
    else
      skipped[#skipped + 1] = (i - 3) / 6
    end
  end
  return skipped
end)

-- The position after which a user's own messages are listed, nil for one who is no member, and the user's mark.
local function floor_of(acked, bookmarks, uid)
  local offset = tonumber(redis.call('ZSCORE', acked, uid))
  if offset then
    local _, mark = parse_bookmark(redis.call('HGET', bookmarks, uid))
    return own_floor(offset, mark), mark
  end
end

-- im_repair_find_own: find own messages of members in a page of the stream.
-- Keys: stream, acked, bookmarks. Arguments: packed msgid to begin after, '' for the lowest position after which own messages of these
-- uids are listed; the most entries to read; the uids.
-- Answer: {packed msgid of the last entry that was read, 1 if more may follow else 0, without a msgid to begin after for each uid that
-- position ('' for one who is no member) and the mark, in turn, then for each message the number (from 0 on) of its sender, and the
-- packed msgid}. Without a member no entry is read.
define('im_repair_find_own', READ_ONLY, function(keys, args)
  local after, most, number_of, floors = tonumber(args[1]), tonumber(args[2]), {}, {}
  for i = 3, #args do
    number_of[args[i]] = i - 3
    if args[1] == '' then
      local floor, mark = floor_of(keys[2], keys[3], args[i])
      floors[#floors + 1] = floor and decimal(floor) or ''
      floors[#floors + 1] = decimal(mark or 0)
      after = floor and math.min(after or floor, floor) or after
    end
  end
  if not after then
    return {decimal(HIGHEST), 0, floors}
  end
  local page = redis.call('XRANGE', keys[1], '(' .. unpack_id(after), '+', 'COUNT', most)
  local last = #page > 0 and pack(page[#page][1]) or after
  local answer = {decimal(last), #page == most and 1 or 0, floors}
  for _, entry in ipairs(page) do
    local number = number_of[entry[2][4]]
    if number then
      answer[#answer + 1] = number
      answer[#answer + 1] = decimal(pack(entry[1]))
    end
  end
  return answer
end)

-- Those of packed msgids that are no recalled messages.
local function not_recalled(recalled, msgids)
  if #msgids == 0 or redis.call('EXISTS', recalled) == 0 then
    return msgids
  end
  local left = {}
  for i, score in ipairs(call_for_all('ZMSCORE', recalled, msgids, 1)) do
    if not score then
      left[#left + 1] = msgids[i]
    end
  end
  return left
end

-- im_repair_own_unacked: make own_unacked lists anew, from the arguments and what was sent since the caller has read the stream.
-- Keys: meta, stream, acked, recalled, bookmarks, then own_unacked of each uid.
-- Arguments: the trim point up to which SQL was read, the packed msgid up to which the stream was read, then for each uid: uid, the
-- position (packed) after which its own messages are known, '' for none, how many packed msgids follow, these messages, oldest first.
-- Answer: the numbers (from 0 on) of the uids that were left alone: who has joined, or marked older messages unread; all, if more was
-- trimmed.
define('im_repair_own_unacked', DENY_OOM, function(keys, args)
  local upto, senders, skipped, a = tonumber(args[2]), {}, {}, 3
  local is_trimmed = tonumber(redis.call('HGET', keys[1], 'trimmed') or '0') > tonumber(args[1])
  for k = 6, #keys do
    local uid, known, count = args[a], tonumber(args[a + 1]), tonumber(args[a + 2])
    local floor = floor_of(keys[3], keys[5], uid)
    if is_trimmed or floor and (not known or floor < known) then
      skipped[#skipped + 1] = k - 6
    else
      local own = {}
      for i = a + 3, floor and a + 2 + count or 0 do
        if tonumber(args[i]) > floor then
          own[#own + 1] = args[i]
        end
      end
      senders[uid] = {key = keys[k], floor = floor or HIGHEST, own = not_recalled(keys[4], own)}
    end
    a = a + 3 + count
  end
  each_entry(keys[2], next(senders) and '(' .. unpack_id(upto), function(id, fields)
    local sender, packed = senders[fields[4]], pack(id)
    if sender and packed > sender.floor and not redis.call('ZSCORE', keys[4], decimal(packed)) then
      table.insert(sender.own, decimal(packed))
    end
  end)
  for _, sender in pairs(senders) do
    redis.call('UNLINK', sender.key)
    for first = 1, #sender.own, 1000 do
      redis.call('RPUSH', sender.key, unpack(sender.own, first, math.min(first + 999, #sender.own)))
    end
  end
  return skipped
end)

-- im_repair_idempotency: add client_msgids.
-- Keys: idempotency_newer. Arguments: idempotency_ms, 1 to overwrite known ones, then for each: uid SEP client_msgid, msgid, seq.
-- Answer: how many were added.
define('im_repair_idempotency', DENY_OOM, function(keys, args)
  local added = 0
  local now = now_ms()
  begin_table(keys[1], tonumber(args[1]), now, age_of_table(keys[1], now))
  for i = 3, #args, 3 do
    local value = args[i + 1] .. ' ' .. args[i + 2]
    added = added + redis.call(args[2] == '1' and 'HSET' or 'HSETNX', keys[1], args[i], value)
  end
  return added
end)

-- im_repair_raise_versions: let the next versions of tallies be above all earlier ones: they begin with the time, packed like a
-- msgid. Keys: version. Arguments: none. Answer: the counter.
local function raise_versions(keys)
  local floor = (now_ms() - EPOCH_MS) * PER_MS
  if tonumber(redis.call('GET', keys[1]) or '0') < floor then
    redis.call('SET', keys[1], decimal(floor))
  end
  return redis.call('GET', keys[1])
end
define('im_repair_raise_versions', DENY_OOM, raise_versions)

-- im_repair_dirty: mark messages as changed for their sender.
-- Keys: version, dirty. Arguments: gid SEP packed msgid of each. Answer: how many were added.
define('im_repair_dirty', DENY_OOM, function(keys, args)
  local added = 0
  raise_versions(keys)
  for _, message in ipairs(args) do
    if not redis.call('ZSCORE', keys[2], message) then
      redis.call('ZADD', keys[2], decimal(redis.call('INCR', keys[1])), message)
      added = added + 1
    end
  end
  return added
end)

-- im_repair_unlist_group: remove a gid from the list of all groups, unless there is a group of that gid.
-- Keys: meta, groups. Arguments: gid. Answer: 1 if it was removed, else 0.
define('im_repair_unlist_group', ALLOW_OOM, function(keys, args)
  return redis.call('EXISTS', keys[1]) == 1 and 0 or redis.call('SREM', keys[2], args[1])
end)

-- im_repair_unlist: remove a group from the list of a user, unless the user is a member.
-- Keys: acked, groups_of of the user. Arguments: gid, uid. Answer: 1 if it was removed, else 0.
define('im_repair_unlist', ALLOW_OOM, function(keys, args)
  return redis.call('ZSCORE', keys[1], args[2]) and 0 or redis.call('SREM', keys[2], args[1])
end)
