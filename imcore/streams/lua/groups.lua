-- Groups and who is in them.

local function join(group, uid, groups_of)
  if redis.call('ZSCORE', group.acked, uid) then
    return
  end
  local joined = decimal(group.last)
  redis.call('ZADD', group.acked, joined, uid)
  redis.call('ZADD', group.joined, joined, uid)
  redis.call('XGROUP', 'CREATE', group.stream, uid, unpack_id(group.last), 'MKSTREAM', 'ENTRIESREAD', group.seq)
  redis.call('SADD', groups_of, group.gid)
  note(group.journal, 'kind', 'join', 'gid', group.gid, 'uid', uid, 'joined', joined)
  tell(group.inboxes, uid, {'j', group.gid})
end

-- im_create: a new group with its first members; the same group again changes nothing.
-- Keys: meta, stream, acked, joined, left, journal, groups, then groups_of of each member.
-- Arguments: gid, start of the inbox channels, then the uid of each member. Answer: {members, seq, last}.
-- Errors: EXISTS, CLOCK.
local function create(keys, args)
  local seq, last = head_of(keys[1])
  if seq then
    local same = member_count(keys[3], keys[5]) == #args - 2
    for i = 3, #args do
      same = same and redis.call('ZSCORE', keys[3], args[i])
    end
    if not same then
      return redis.error_reply('EXISTS the group exists with other members')
    end
    return {#args - 2, seq, decimal(last)}
  end
  if tonumber(redis.call('TIME')[1]) * 1000 <= EPOCH_MS then
    return redis.error_reply('CLOCK the clock of the server stands before 2020')
  end
  redis.call('HSET', keys[1], 'seq', 0, 'last', 0)
  redis.call('SADD', keys[7], args[1])
  note(keys[6], 'kind', 'group', 'gid', args[1])
  local group = {gid = args[1], inboxes = args[2], stream = keys[2], acked = keys[3], joined = keys[4], journal = keys[6],
    seq = 0, last = 0}
  for i = 3, #args do
    join(group, args[i], keys[5 + i])
  end
  return {#args - 2, 0, '0'}
end

-- im_join: add members; one who is a member already stays as they are.
-- Keys: meta, stream, acked, joined, left, journal, then groups_of of each.
-- Arguments: gid, start of the inbox channels, then each uid. Answer: {members, seq, last}. Errors: NOGROUP.
local function join_many(keys, args)
  local seq, last = head_of(keys[1])
  if not seq then
    return no_group()
  end
  local group = {gid = args[1], inboxes = args[2], stream = keys[2], acked = keys[3], joined = keys[4], journal = keys[6],
    seq = seq, last = last}
  for i = 3, #args do
    join(group, args[i], keys[4 + i])
  end
  return {member_count(keys[3], keys[5]), seq, decimal(last)}
end

-- im_leave: end memberships; one who is no member is passed over.
-- A closed span keeps its scores under its own key; a span that covers no message is dropped.
-- Keys: meta, stream, acked, joined, left, journal, then groups_of and own of each.
-- Arguments: gid, start of the inbox channels, then each uid. Answer: {members, seq, last}. Errors: NOGROUP.
local function leave_many(keys, args)
  local seq, last = head_of(keys[1])
  if not seq then
    return no_group()
  end
  local stream, acked, joined, left = keys[2], keys[3], keys[4], keys[5]
  for i = 3, #args do
    local uid = args[i]
    local offset = redis.call('ZSCORE', acked, uid)
    if offset then
      local from = redis.call('ZSCORE', joined, uid)
      redis.call('ZREM', acked, uid)
      redis.call('ZREM', joined, uid)
      if last > tonumber(from) then
        local span = uid .. SEP .. from
        -- A crash of both servers may have taken the message at the offset, and all after it.
        redis.call('ZADD', acked, tonumber(offset) > last and decimal(last) or offset, span)
        redis.call('ZADD', joined, from, span)
        redis.call('ZADD', left, decimal(last), span)
      end
      redis.call('XGROUP', 'DESTROY', stream, uid)
      redis.call('SREM', keys[1 + 2 * i], args[1])
      redis.call('DEL', keys[2 + 2 * i])
      note(keys[6], 'kind', 'leave', 'gid', args[1], 'uid', uid, 'joined', from, 'left', decimal(last))
      tell(args[2], uid, {'l', args[1]})
    end
  end
  return {member_count(acked, left), seq, decimal(last)}
end

-- im_group: what a group is now.
-- Keys: meta, acked, left. Arguments: none. Answer: {members, seq, last}. Errors: NOGROUP.
local function show(keys)
  local seq, last = head_of(keys[1])
  if not seq then
    return no_group()
  end
  return {member_count(keys[2], keys[3]), seq, decimal(last)}
end

redis.register_function{function_name = 'im_create', callback = create}
redis.register_function{function_name = 'im_join', callback = join_many}
redis.register_function{function_name = 'im_leave', callback = leave_many, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_group', callback = show, flags = READS}
