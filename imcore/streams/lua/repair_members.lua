-- Repair of data that belongs to messages and members: spans, offsets, own_unacked lists, client_msgids, receipts.

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

-- A score as Python reads it: one that is no packed msgid was written by hand, and counts as IMPOSSIBLE.
local function clean_score(score)
  local number = score and math.max(tonumber(score), 0)
  if number and (number > HIGHEST or number ~= math.floor(number)) then
    number = HIGHEST + 1
  end
  return number and decimal(number)
end

-- Whether a key is a span in all indexes that hold one.
local function is_whole(acked, joined, left, key, is_closed)
  return redis.call('ZSCORE', acked, key) and redis.call('ZSCORE', joined, key)
    and (not is_closed or redis.call('ZSCORE', left, key))
end

-- im_repair_spans: correct spans. Offsets move forward only, and not beyond the end of their span.
-- Keys: group_locks, stream, acked, joined, left, then groups_of and own_unacked of each span's uid.
-- Arguments: gid, token, prefix of the inbox channels, trim point, then for each span: order, uid, joined, left, its offset,
-- and where the uid's open span began when the caller looked ('' without one). Orders: `open` it, `close` it, `drop` the key that
-- is given as the uid, `sweep` that key if it is still no whole span, or move its offset `back` if it is still at or past `left`,
-- which is no message.
-- Answer: the numbers (from 0 on) of spans that were left alone, since members came or went. Errors: LOST.
define_locked('im_repair_spans', function(keys, args)
  local stream, acked, joined, left = keys[2], keys[3], keys[4], keys[5]
  local skipped = {}
  for i = 5, #args, 6 do
    local order, uid, from, to, offset = args[i], args[i + 1], args[i + 2], args[i + 3], args[i + 4]
    local number = (i - 5) / 6
    local k = 6 + 2 * number
    local began = clean_score(redis.call('ZSCORE', joined, uid))
    local is_closed = string.find(uid, SEP, 1, true)
    if not is_closed and (began or '') ~= args[i + 5] then
      skipped[#skipped + 1] = number
    elseif order == 'sweep' and is_whole(acked, joined, left, uid, is_closed) then
      skipped[#skipped + 1] = number
    elseif order == 'drop' or order == 'sweep' then
      for z = 3, 5 do
        redis.call('ZREM', keys[z], uid)
      end
      if not is_closed then
        remove_member(stream, uid, keys[k], keys[k + 1], args[1])
      end
    elseif order == 'back' then
      if tonumber(redis.call('ZSCORE', acked, uid) or '0') >= tonumber(to) then
        redis.call('ZADD', acked, offset, uid)
      end
    elseif order == 'open' then
      local is_new = not redis.call('ZSCORE', acked, uid)
      redis.call('ZADD', acked, 'GT', offset, uid)
      redis.call('ZADD', joined, from, uid)
      redis.call('ZREM', left, uid)
      set_offset(stream, uid, tonumber(redis.call('ZSCORE', acked, uid)), tonumber(args[4]))
      redis.call('SADD', keys[k], args[1])
      if is_new then
        notify(args[3], uid, {'j', args[1]})
      end
    else
      if began == from then
        local current = redis.call('ZSCORE', acked, uid) or offset
        offset = decimal(math.min(math.max(tonumber(current), tonumber(offset)), tonumber(to)))
        redis.call('ZREM', acked, uid)
        redis.call('ZREM', joined, uid)
        remove_member(stream, uid, keys[k], keys[k + 1], args[1])
        notify(args[3], uid, {'l', args[1]})
      end
      add_closed_span(acked, joined, left, uid, from, tonumber(to), offset)
    end
  end
  return skipped
end)

-- im_repair_own_unacked: rebuild own_unacked lists from the stream and, where it is trimmed, from the arguments.
-- Keys: stream, acked, recalled, then own_unacked of each uid.
-- Arguments: for each uid: uid, how many packed msgids follow, these: its own messages up to the trim point.
-- Answer: how many messages the lists have.
define('im_repair_own_unacked', DENY_OOM, function(keys, args)
  local offsets, lists, lowest, a = {}, {}, nil, 1
  for _ = 4, #keys do
    local uid, count = args[a], tonumber(args[a + 1])
    local offset = tonumber(redis.call('ZSCORE', keys[2], uid))
    lists[#lists + 1] = {}
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
  each_entry(keys[1], lowest and '(' .. unpack_id(lowest), function(id, fields)
    local sender, packed = offsets[fields[4]], pack(id)
    if sender and packed > sender.at and not redis.call('ZSCORE', keys[3], decimal(packed)) then
      table.insert(sender.own, decimal(packed))
    end
  end)
  local total = 0
  for i, own in ipairs(lists) do
    redis.call('UNLINK', keys[3 + i])
    for first = 1, #own, 1000 do
      redis.call('RPUSH', keys[3 + i], unpack(own, first, math.min(first + 999, #own)))
    end
    total = total + #own
  end
  return total
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
