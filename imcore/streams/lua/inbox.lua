-- Inbox: what a member is shown of each group.

-- The newest message (packed) since a member joined that is neither recalled nor a tombstone. 0 without one, nil if only SQL may
-- have one.
local function newest_shown(stream, recalled, joined, head, last, trimmed)
  if last <= joined or not redis.call('ZSCORE', recalled, decimal(last)) then
    return last > joined and last or 0
  end
  -- `recalled` has the newest messages of the group up to some place. Find by halving how many these are.
  local oldest, low, high = last, 1, redis.call('ZCARD', recalled)
  while low < high do
    local middle = math.ceil((low + high) / 2)
    local packed = tonumber(redis.call('ZRANGE', recalled, -middle, -middle)[1]) or 0
    local entry = redis.call('XRANGE', stream, unpack_id(packed), unpack_id(packed))[1]
    if entry and is_message(entry) and tonumber(entry[2][2]) == head - middle + 1 then
      low, oldest = middle, packed
    else
      high = middle - 1
    end
  end
  local before = first_message('XREVRANGE', stream, '(' .. unpack_id(oldest), '-')
  if before then
    return pack(before[1]) > joined and pack(before[1]) or 0
  elseif joined >= trimmed then
    return 0
  end
end

-- What im_inbox_order answers about one group. `has_bookmarks`, `has_recalled`: whether any of the groups has some.
local function order_of(uid, has_bookmarks, has_recalled, meta, stream, acked, own, recalled, joined, bookmarks)
  local fields, offset = redis.call('HMGET', meta, 'seq', 'last', 'trimmed'), redis.call('ZSCORE', acked, uid)
  if not fields[1] or not offset then
    return fields[1] and 'NOTMEMBER' or 'NOGROUP'
  end
  local head, last, trimmed = tonumber(fields[1]), tonumber(fields[2]), tonumber(fields[3] or '0')
  local position, bookmark = tonumber(offset), has_bookmarks and redis.call('HGET', bookmarks, uid)
  if bookmark then
    position = unread_position(position, parse_bookmark(bookmark))
  end
  local seq, own_after, recalled_after, newest = head, 0, 0, nil
  if position < last then
    seq = seq_at(stream, position, head, last, trimmed)
    local passed, all = count_acked_own(own, position)
    own_after, recalled_after = all - passed, has_recalled and redis.call('ZCOUNT', recalled, '(' .. decimal(position), '+inf') or 0
    newest = recalled_after == 0 and last
  end
  local since
  if not newest then
    since = redis.call('ZSCORE', joined, uid) or offset
    newest = newest_shown(stream, recalled, tonumber(since), head, last, trimmed)
  end
  local counted = head - own_after - recalled_after
  if seq ~= '' and newest then
    return {newest == last and fields[2] or decimal(newest), counted - seq}
  end
  return {newest and decimal(newest) or '', seq ~= '' and counted - seq or '', fields[3] or '0', since or '0', counted,
    decimal(position)}
end

-- Whether any key exists of every seventh, from one on: most groups have no bookmarks, and nothing recalled.
local function any_exists(keys, first)
  local some = {}
  for k = first, #keys, 7 do
    some[#some + 1] = keys[k]
  end
  return redis.call('EXISTS', unpack(some)) > 0
end

-- im_inbox_order: the order of a member's groups in the inbox, and how much is unread. All about one group is of one moment.
-- Keys: for each group, all of one partition, meta, stream, acked, own_unacked, recalled, joined, bookmarks. Arguments: uid.
-- Answer: for each group NOGROUP, NOTMEMBER, or {packed msgid of the newest message that is neither recalled nor a tombstone ('0'
-- without one, '' if only SQL may have one, since the join), how many messages are unread ('' if only SQL knows), and in one of these
-- cases trimmed, packed msgid after which they joined (in the first case), how many were unread if the seq at the position after
-- which they are unread were 0, that position}.
define('im_inbox_order', READ_ONLY, function(keys, args)
  local answers, has_bookmarks, has_recalled = {}, any_exists(keys, 7), any_exists(keys, 5)
  for k = 1, #keys, 7 do
    answers[#answers + 1] = order_of(args[1], has_bookmarks, has_recalled, unpack(keys, k, k + 6))
  end
  return answers
end)

-- im_unread_in: the positions of a member in groups, each of one moment.
-- Keys: as for im_inbox_order. Arguments: uid. Answer: for each group that of im_unread, or NOGROUP.
define('im_unread_in', READ_ONLY, function(keys, args)
  local answers, uid, has_bookmarks, has_recalled = {}, args[1], any_exists(keys, 7), any_exists(keys, 5)
  for k = 1, #keys, 7 do
    local meta, offset = redis.call('HMGET', keys[k], 'seq', 'last', 'trimmed'), redis.call('ZSCORE', keys[k + 2], uid)
    local answer = meta[1] and 'NOTMEMBER' or 'NOGROUP'
    if meta[1] and offset then
      local bookmark = has_bookmarks and redis.call('HGET', keys[k + 6], uid)
      local of_group = {unpack(keys, k, k + 6)}
      of_group[5] = has_recalled and of_group[5] or nil
      answer = position_of(of_group, uid, offset, bookmark, tonumber(meta[1]), tonumber(meta[2]), meta[3] or '0')
    end
    answers[#answers + 1] = answer
  end
  return answers
end)

-- im_unread_of: the positions of members of a group as anybody may see them, all of one moment.
-- Keys: meta, stream, acked, recalled, joined, then own_unacked of each. Arguments: the uids.
-- Answer: for each that of im_unread. Errors: NOGROUP.
define_for_group('im_unread_of', READ_ONLY, function(keys, args, head, last, trimmed)
  local answers, seqs = {}, {}
  local offsets, joined = call_for_all('ZMSCORE', keys[3], args, 1), call_for_all('ZMSCORE', keys[5], args, 1)
  local recalled = redis.call('EXISTS', keys[4]) == 1 and keys[4] or nil
  for i, uid in ipairs(args) do
    local offset, of_member = offsets[i], {keys[1], keys[2], keys[3], keys[5 + i], recalled, keys[5]}
    answers[i] = offset and position_of(of_member, uid, offset, false, head, last, trimmed, joined[i], seqs) or 'NOTMEMBER'
  end
  return answers
end)

-- What im_inbox answers about one group, and how many bytes of text and meta that has.
local function details_of(keys, uid)
  local meta = redis.call('HMGET', keys[1], 'seq', 'last', 'trimmed', 'erased')
  local offset = redis.call('ZSCORE', keys[3], uid)
  if not meta[1] or not offset then
    return meta[1] and 'NOTMEMBER' or 'NOGROUP', 0
  end
  local head, last, trimmed, bookmark = tonumber(meta[1]), tonumber(meta[2]), tonumber(meta[3] or '0'), redis.call('HGET', keys[7], uid)
  local position = position_of(keys, uid, offset, bookmark, head, last, trimmed)
  local newest = newest_shown(keys[2], keys[5], tonumber(position[6]), head, last, trimmed)
  local id = newest and newest > 0 and unpack_id(newest)
  local entry = id and hide_erased(redis.call('XRANGE', keys[2], id, id), meta[4])[1]
  local after = unread_position(tonumber(offset), parse_bookmark(bookmark))
  local first = after < last and first_unread_after(keys[2], keys[5], keys[4], math.max(after, trimmed), head, last)
  local answer = {position, decimal(trimmed), newest and decimal(newest) or '', entry or '', first and decimal(first) or ''}
  return answer, entry and bytes_of_text(entry[2]) or 0
end

-- im_inbox: what a member is shown of groups. All about one group is of one moment.
-- Keys: as for im_inbox_order. Arguments: uid, limit of bytes of text and meta, exceeded by the last message only.
-- Answer: for each group, or for the first ones up to that limit, NOGROUP, NOTMEMBER, or {that of im_unread, trimmed, packed msgid of
-- the newest message as im_inbox_order answers it, that message ('' if only SQL has it), packed msgid of the first unread message
-- past `trimmed` ('' without one)}.
define('im_inbox', READ_ONLY, function(keys, args)
  local answers, left = {}, tonumber(args[2])
  for k = 1, #keys, 7 do
    local details, bytes = details_of({unpack(keys, k, k + 6)}, args[1])
    answers[#answers + 1], left = details, left - bytes
    if left < 0 then
      return answers
    end
  end
  return answers
end)
