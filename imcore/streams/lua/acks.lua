-- Acks and unread counts.

-- The seq of the message that an ack names, or nil and the reason.
local function seq_of(stream, packed, seq, head, last, trimmed)
  if packed == last then
    return head
  elseif packed > last then
    return nil, 'FUTURE'
  elseif seq ~= '' then
    return seq
  end
  local entry, why = find_message(stream, packed, last, trimmed)
  return entry and entry[2][2], why
end

-- Move the offsets of members to a message, where they are before it. Without a seq there is no such message, and no offset
-- moves. Appends the others to `unmoved`, and groups the moves by where they began.
local function move(keys, args, first, last, zeroth, packed, seq, unmoved, moves)
  local stream, acked, text, id = keys[2], keys[3], unmoved[1], seq and unpack_id(packed)
  local offsets = redis.call('ZMSCORE', acked, unpack(args, first, last))
  local joined, scored, n = nil, {'ZADD', acked}, 2
  local before, behind, since, record = nil, false, nil, nil
  for i, offset in ipairs(offsets) do
    if offset ~= before then  -- most members have the same offset as the one before them
      before, behind, since = offset, seq and offset and packed > tonumber(offset), nil
    end
    if behind then
      local uid = args[first + i - 1]
      joined = joined or redis.call('ZMSCORE', keys[4], unpack(args, first, last))
      redis.call('XGROUP', 'SETID', stream, uid, id, 'ENTRIESREAD', seq)
      scored[n + 1], scored[n + 2] = text, uid
      n = n + 2
      if joined[i] ~= since then
        since = joined[i]
        local from = since .. SEP .. offset
        record = moves[from]
        if not record then
          record = {from, text}
          moves[from], moves[#moves + 1] = record, record
        end
      end
      record[#record + 1] = uid
    elseif seq or not offset then
      unmoved[#unmoved + 1] = first - zeroth + i - 1
      unmoved[#unmoved + 1] = offset or 'NOTMEMBER'
    end
  end
  if n > 2 then
    redis.call(unpack(scored))
  end
end

-- im_ack: move offsets forward, never back.
-- Keys: meta, stream, acked, joined, journal.
-- Arguments: gid, then for each acked message: its packed msgid or '' for the newest, its seq if the caller knows it from the
-- message itself or from SQL, else '' to look it up, how many uids follow, these.
-- Answer: for each message {its packed msgid, or NOMSG, FUTURE, TRIMMED, then for each uid that is no member or whose offset is
-- already there: its number from 0 on, and NOTMEMBER or the packed offset}. Errors: NOGROUP.
define_for_group('im_ack', ALLOW_OOM, function(keys, args, head, newest, trimmed)
  local answers, records, a = {}, {}, 2
  while args[a] do
    local packed = args[a] == '' and newest or tonumber(args[a])
    local seq, problem = seq_of(keys[2], packed, args[a + 1], head, newest, trimmed)
    local first, last = a + 3, a + 2 + tonumber(args[a + 2])
    local unmoved, moves = {problem or args[a] ~= '' and args[a] or decimal(packed)}, {}
    for start = first, last, MAX_UNPACKED do
      move(keys, args, start, math.min(start + MAX_UNPACKED - 1, last), first, packed, seq, unmoved, moves)
    end
    answers[#answers + 1] = unmoved
    for _, record in ipairs(moves) do
      records[#records + 1] = table.concat(record, SEP)
    end
    a = last + 1
  end
  if records[1] then
    append_entry(keys[5], 'kind', 'ack', 'gid', args[1], 'moves', table.concat(records, RECORD))
  end
  return answers
end)

-- im_unread: the position of a member, all of one moment.
-- Keys: meta, stream, acked, own_unacked, recalled, joined. Arguments: uid.
-- Answer: {seq of the newest, last, offset, seq at the offset or '' if that entry is trimmed, how many messages past the offset
-- are not unread: own and recalled ones and tombstones, after which message the member joined}, or NOTMEMBER. Errors: NOGROUP.
define_for_group('im_unread', READ_ONLY, function(keys, args, head, last, trimmed)
  local offset = redis.call('ZSCORE', keys[3], args[1])
  if not offset then
    return 'NOTMEMBER'
  end
  local packed, seq = tonumber(offset), ''
  if packed == last then
    seq = head
  elseif packed == 0 then
    seq = 0
  elseif packed >= tonumber(trimmed) then
    -- From the next message: the one at the offset may be trimmed, or a crash of the server may have lost it.
    local after = first_message('XRANGE', keys[2], '(' .. unpack_id(packed), '+')
    seq = after and tonumber(after[2][2]) - 1 or head
  end
  local passed, all = count_acked_own(keys[4], packed)
  local not_counted = all - passed + redis.call('ZCOUNT', keys[5], '(' .. offset, '+inf')
  return {head, decimal(last), offset, seq, not_counted, redis.call('ZSCORE', keys[6], args[1]) or offset}
end)
