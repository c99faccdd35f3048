-- Acks, and what is unread.

-- The seq of the message that an ack names, or nil and the problem with it.
local function seq_of(keys, packed, seq, head, last)
  if packed == last then
    return head
  elseif packed > last then
    return nil, 'FUTURE'
  elseif seq ~= '' then
    return seq
  end
  local entry, why = find(keys[2], keys[1], packed)
  return entry and entry[2][2], why
end

-- Move the offsets of some members to a message, those that stand before it. Without a seq there is no such message, and
-- none moves. Names who did not move in `unmoved`, and notes the moves by where they began.
local function move(keys, args, first, last, zeroth, packed, seq, unmoved, moves)
  local stream, acked, text, id = keys[2], keys[3], unmoved[1], seq and unpack_id(packed)
  local offsets = redis.call('ZMSCORE', acked, unpack(args, first, last))
  local joined, scored, n = nil, {'ZADD', acked}, 2
  local before, behind, since, record = nil, false, nil, nil
  for i, offset in ipairs(offsets) do
    if offset ~= before then  -- most stand where the one before them stands
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
-- Arguments: gid, then for each message that is acked: its packed msgid or '' for the newest, its seq where the caller has
-- it from the message itself or from SQL, else '' to have it looked up, how many uids follow, these.
-- Answer: for each message {its packed msgid, or NOMSG, FUTURE, TRIMMED, then for each uid who is no member or whose offset
-- is there already: its number from 0 on, and NOTMEMBER or the packed offset}. Errors: NOGROUP.
local function ack(keys, args)
  local head, newest = head_of(keys[1])
  if not head then
    return no_group()
  end
  local answers, records, a = {}, {}, 2
  while args[a] do
    local packed = args[a] == '' and newest or tonumber(args[a])
    local seq, problem = seq_of(keys, packed, args[a + 1], head, newest)
    local first, last = a + 3, a + 2 + tonumber(args[a + 2])
    local unmoved, moves = {problem or decimal(packed)}, {}
    for start = first, last, AT_ONCE do
      move(keys, args, start, math.min(start + AT_ONCE - 1, last), first, packed, seq, unmoved, moves)
    end
    answers[#answers + 1] = unmoved
    for _, record in ipairs(moves) do
      records[#records + 1] = table.concat(record, SEP)
    end
    a = last + 1
  end
  if records[1] then
    note(keys[5], 'kind', 'ack', 'gid', args[1], 'moves', table.concat(records, RECORD))
  end
  return answers
end

-- im_unread: how far a member is behind, all of one moment.
-- Keys: meta, stream, acked, own, recalled. Arguments: uid.
-- Answer: {seq of the newest, last, offset, seq at the offset or '' if that entry is trimmed, how many past the offset do
-- not count: own ones, recalled ones and tombstones}, or NOTMEMBER. Errors: NOGROUP.
local function unread(keys, args)
  local head, last = head_of(keys[1])
  if not head then
    return no_group()
  end
  local offset = redis.call('ZSCORE', keys[3], args[1])
  if not offset then
    return 'NOTMEMBER'
  end
  local packed, seq = tonumber(offset), ''
  if packed == last then
    seq = head
  elseif packed == 0 then
    seq = 0
  else
    -- By the message after it: the one at the offset may be trimmed, or be one that a crash of the server took back.
    if packed >= tonumber(redis.call('HGET', keys[1], 'trimmed') or '0') then
      local after = messages_in('XRANGE', keys[2], '(' .. unpack_id(packed), '+', 1)[1]
      seq = after and tonumber(after[2][2]) - 1 or head
    end
  end
  local passed, all = own_passed(keys[4], packed)
  local not_counted = all - passed + redis.call('ZCOUNT', keys[5], '(' .. offset, '+inf')
  return {head, decimal(last), offset, seq, not_counted}
end

redis.register_function{function_name = 'im_ack', callback = ack, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_unread', callback = unread, flags = READS}
