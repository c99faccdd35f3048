-- Restoring what hangs on messages and members: spans, offsets, own lists, client_msgids, receipts.

-- End what a group knows of a member as one.
local function forget_member(stream, uid, groups_of, own, gid)
  redis.call('XGROUP', 'DESTROY', stream, uid)
  redis.call('SREM', groups_of, gid)
  redis.call('UNLINK', own)
end

-- Set a member's consumer group, which may not be there, to an offset. Its seq is looked up if it is not given.
local function set_offset(stream, uid, offset, seq, trimmed)
  local id = unpack_id(offset)
  if seq == '' and offset >= trimmed then
    local after = messages_in('XRANGE', stream, '(' .. id, '+', 1)[1]
    local newest = messages_in('XREVRANGE', stream, '+', '-', 1)[1]
    seq = after and tonumber(after[2][2]) - 1 or newest and newest[2][2] or ''
  end
  redis.pcall('XGROUP', 'CREATE', stream, uid, id)
  if seq == '' then
    redis.call('XGROUP', 'SETID', stream, uid, id)
  else
    redis.call('XGROUP', 'SETID', stream, uid, id, 'ENTRIESREAD', seq)
  end
end

-- A score as the caller sees it: what is no packed msgid, since somebody has written it by hand, is one above all.
local function seen_score(score)
  local number = score and math.max(tonumber(score), 0)
  if number and (number > HIGHEST or number ~= math.floor(number)) then
    number = HIGHEST + 1
  end
  return number and decimal(number)
end

-- im_restore_spans: make spans what they should be. Offsets go forward only, and not beyond the end of their span.
-- Keys: mending, stream, acked, joined, left, then groups_of and own of each span's uid.
-- Arguments: gid, token, start of the inbox channels, trim point, then for each span: what to do, uid, where it joined, where
-- it left, its offset and the seq of that (or ''), and where the uid's open span joined when the caller looked ('' if there
-- was none). What to do: `open` it, `close` it, `drop` its key, which then stands for the uid, or let its offset go `back`, if
-- it still stands as far as what is given for the end: that is no message.
-- Answer: the numbers (from 0 on) of the spans about which nothing was done, since members came or went. Errors: LOST.
local function restore_spans(keys, args)
  if not is_claimed(keys[1], args[1], args[2]) then
    return lost_claim()
  end
  local stream, acked, joined, left = keys[2], keys[3], keys[4], keys[5]
  local missed = {}
  for i = 5, #args, 7 do
    local what, uid, from, to, offset, seq = args[i], args[i + 1], args[i + 2], args[i + 3], args[i + 4], args[i + 5]
    local k = 6 + 2 * (i - 5) / 7
    local began = seen_score(redis.call('ZSCORE', joined, uid))
    local is_closed = string.find(uid, SEP, 1, true)
    if not is_closed and (began or '') ~= args[i + 6] then
      missed[#missed + 1] = (i - 5) / 7
    elseif what == 'drop' then
      for z = 3, 5 do
        redis.call('ZREM', keys[z], uid)
      end
      if not is_closed then
        forget_member(stream, uid, keys[k], keys[k + 1], args[1])
      end
    elseif what == 'back' then
      if tonumber(redis.call('ZSCORE', acked, uid) or '0') >= tonumber(to) then
        redis.call('ZADD', acked, offset, uid)
      end
    elseif what == 'open' then
      local is_new = not redis.call('ZSCORE', acked, uid)
      redis.call('ZADD', acked, 'GT', offset, uid)
      redis.call('ZADD', joined, from, uid)
      redis.call('ZREM', left, uid)
      local stands = redis.call('ZSCORE', acked, uid)
      set_offset(stream, uid, tonumber(stands), stands == offset and seq or '', tonumber(args[4]))
      redis.call('SADD', keys[k], args[1])
      if is_new then
        tell(args[3], uid, {'j', args[1]})
      end
    else
      if began == from then
        local stands = redis.call('ZSCORE', acked, uid) or offset
        offset = decimal(math.min(math.max(tonumber(stands), tonumber(offset)), tonumber(to)))
        redis.call('ZREM', acked, uid)
        redis.call('ZREM', joined, uid)
        forget_member(stream, uid, keys[k], keys[k + 1], args[1])
        tell(args[3], uid, {'l', args[1]})
      end
      if tonumber(to) > tonumber(from) then
        local span = uid .. SEP .. from
        local stands = tonumber(redis.call('ZSCORE', acked, span) or '0')
        redis.call('ZADD', acked, decimal(math.min(math.max(stands, tonumber(offset)), tonumber(to))), span)
        redis.call('ZADD', joined, from, span)
        redis.call('ZADD', left, to, span)
      end
    end
  end
  return missed
end

-- im_restore_own: find the own messages past their offsets that count, from the stream and, where it is trimmed, as given.
-- Keys: stream, acked, recalled, then the own list of each uid.
-- Arguments: for each uid: uid, how many packed msgids follow, these: its own ones up to the trim point.
-- Answer: how many there are.
local function restore_own(keys, args)
  local offsets, lists, lowest, a = {}, {}, nil, 1
  for _ = 4, #keys do
    local uid, count = args[a], tonumber(args[a + 1])
    local offset = tonumber(redis.call('ZSCORE', keys[2], uid))
    lists[#lists + 1] = {uid = uid}
    if offset then
      offsets[uid] = {at = offset, own = lists[#lists]}
      lowest = math.min(lowest or offset, offset)
      for i = a + 2, a + 1 + count do
        if tonumber(args[i]) > offset and not redis.call('ZSCORE', keys[3], args[i]) then
          table.insert(lists[#lists], args[i])
        end
      end
    end
    a = a + 2 + count
  end
  local start, total = lowest and unpack_id(lowest), 0
  while start do
    local page = redis.call('XRANGE', keys[1], '(' .. start, '+', 'COUNT', 500)
    for _, entry in ipairs(page) do
      local sender, packed = offsets[entry[2][4]], pack(entry[1])
      if sender and packed > sender.at and not redis.call('ZSCORE', keys[3], decimal(packed)) then
        table.insert(sender.own, decimal(packed))
      end
    end
    start = #page == 500 and page[500][1]
  end
  for i, own in ipairs(lists) do
    redis.call('UNLINK', keys[3 + i])
    for first = 1, #own, 1000 do
      redis.call('RPUSH', keys[3 + i], unpack(own, first, math.min(first + 999, #own)))
    end
    total = total + #own
  end
  return total
end

-- im_restore_again: tell the live sessions of members to begin again in a group, from their offsets.
-- Keys: acked. Arguments: gid, start of the inbox channels, uids. Answer: how many are members.
local function restore_again(keys, args)
  local count = 0
  for i = 3, #args do
    if redis.call('ZSCORE', keys[1], args[i]) then
      tell(args[2], args[i], {'j', args[1], 'again'})
      count = count + 1
    end
  end
  return count
end

-- im_restore_once: know client_msgids again.
-- Keys: once newer. Arguments: once_ms, 1 if what is known is wrong, then for each: uid SEP client_msgid, msgid, seq.
-- Answer: how many were not known.
local function restore_once(keys, args)
  local added = 0
  local now = now_ms()
  begin_once(keys[1], tonumber(args[1]), now, age_of_once(keys[1], now))
  for i = 3, #args, 3 do
    local value = args[i + 1] .. ' ' .. args[i + 2]
    added = added + redis.call(args[2] == '1' and 'HSET' or 'HSETNX', keys[1], args[i], value)
  end
  return added
end

-- im_restore_versions: let new versions of tallies be above all that were given before: they begin with the time, packed like
-- a msgid. Keys: version counter. Arguments: none. Answer: where it stands.
local function restore_versions(keys)
  local floor = (now_ms() - EPOCH_MS) * PER_MS
  if tonumber(redis.call('GET', keys[1]) or '0') < floor then
    redis.call('SET', keys[1], decimal(floor))
  end
  return redis.call('GET', keys[1])
end

-- im_restore_dirty: mark messages as changed for their sender.
-- Keys: version counter, dirty. Arguments: gid SEP packed msgid of each. Answer: how many were not marked.
local function restore_dirty(keys, args)
  local added = 0
  restore_versions(keys)
  for _, message in ipairs(args) do
    if not redis.call('ZSCORE', keys[2], message) then
      redis.call('ZADD', keys[2], decimal(redis.call('INCR', keys[1])), message)
      added = added + 1
    end
  end
  return added
end

redis.register_function{function_name = 'im_restore_spans', callback = restore_spans}
redis.register_function{function_name = 'im_restore_own', callback = restore_own}
redis.register_function{function_name = 'im_restore_again', callback = restore_again, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_restore_once', callback = restore_once}
redis.register_function{function_name = 'im_restore_versions', callback = restore_versions}
redis.register_function{function_name = 'im_restore_dirty', callback = restore_dirty}
