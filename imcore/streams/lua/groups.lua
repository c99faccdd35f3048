-- Groups and who is in them.

-- For how long a creation in steps lives without another step.
local CREATION_MS = 10000

-- Begin a span after the newest message. Returns false for one who is a member already.
local function begin_span(group, uid, groups_of)
  if redis.call('ZSCORE', group.acked, uid) then
    return false
  end
  local joined = decimal(group.last)
  redis.call('ZADD', group.acked, joined, uid)
  redis.call('ZADD', group.joined, joined, uid)
  redis.call('XGROUP', 'CREATE', group.stream, uid, unpack_id(group.last), 'MKSTREAM', 'ENTRIESREAD', group.seq)
  redis.call('SADD', groups_of, group.gid)
  return true
end

-- The creation of a group: its token, and whether its process lives. Nil if there is none.
local function creation_of(creations, gid)
  local token, ends, length = string.match(redis.call('HGET', creations, gid) or '', '^(%S+) (%d+) (%d+)$')
  if token then
    local now = now_ms()
    local cut = end_from(now, ends, length)
    if cut < tonumber(ends) then
      redis.call('HSET', creations, gid, table.concat({token, decimal(cut), length}, ' '))
    end
    return token, cut > now
  end
end

local function keep_creation(creations, gid, token)
  redis.call('HSET', creations, gid, table.concat({token, decimal(now_ms() + CREATION_MS), CREATION_MS}, ' '))
end

-- What keeps a creation from beginning: another one, whose process lives or has died over it. Nil if nothing does.
local function in_the_way(creating, gid, token)
  local holder, lives = creation_of(creating, gid)
  if not holder or holder == token then
    return nil
  elseif lives then
    return redis.error_reply('CREATING another process creates the group')
  end
  return redis.error_reply('ABANDONED the group was created by half')
end

-- The token in the place of a creation that who mends the group has undone: for a while nobody may begin another one.
local MENDED = '-'

-- Whether somebody has begun to create the group, be it that this is given up.
local function is_created(creating, gid)
  local token = creation_of(creating, gid)
  return token and token ~= MENDED
end

-- Whether the group is there: then no creation of it goes on, however it came there, as from SQL after a loss of Redis.
local function is_there(meta, creating, gid)
  if redis.call('EXISTS', meta) == 0 then
    return false
  end
  redis.call('HDEL', creating, gid)
  return true
end

local function is_before_epoch()
  return tonumber(redis.call('TIME')[1]) * 1000 <= EPOCH_MS
end

local function wrong_clock()
  return redis.error_reply('CLOCK the clock of the server stands before 2020')
end

-- Let a group be there from now on. The journal does not name its members: whoever reads it finds them by where they joined.
local function found(gid, meta, journal, groups)
  redis.call('HSET', meta, 'seq', 0, 'last', 0)
  redis.call('SADD', groups, gid)
  note(journal, 'kind', 'group', 'gid', gid)
end

-- im_create: a new group with its first members, in one step; the same group again changes nothing.
-- Keys: meta, stream, acked, joined, left, journal, groups, creating, then groups_of of each member.
-- Arguments: gid, start of the inbox channels, then the uid of each member. Answer: {members, seq, last}.
-- Errors: EXISTS, CREATING, ABANDONED, CLOCK.
local function create(keys, args)
  local gid = args[1]
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
  local problem = in_the_way(keys[8], gid)
  if problem then
    return problem
  elseif is_before_epoch() then
    return wrong_clock()
  end
  local group = {gid = gid, stream = keys[2], acked = keys[3], joined = keys[4], seq = 0, last = 0}
  for i = 3, #args do
    begin_span(group, args[i], keys[6 + i])
  end
  found(gid, keys[1], keys[6], keys[7])
  for i = 3, #args do
    tell(args[2], args[i], {'j', gid})
  end
  return {#args - 2, 0, '0'}
end

-- A group with more members than one call takes is created in steps. Until im_create_end there is no such group for anybody, since
-- its meta is missing; then it is there, whole. Each step renews the creation, whose token says which members it is to have: so the
-- same creation again goes on where it ended, and another one has to wait until that has ended, and is undone.

-- im_create_begin: begin to create a group in steps, or go on with that.
-- Keys: meta, acked, left, creating, untold. Arguments: gid, token.
-- Answer: {members, seq, last, 1 if they may not have been told} if the group is there already, else {}.
-- Errors: CREATING, ABANDONED, CLOCK.
local function create_begin(keys, args)
  if is_there(keys[1], keys[4], args[1]) then
    local seq, last = head_of(keys[1])
    return {member_count(keys[2], keys[3]), seq, decimal(last), redis.call('HGET', keys[5], args[1]) and 1 or 0}
  end
  local problem = in_the_way(keys[4], args[1], args[2])
  if problem then
    return problem
  elseif is_before_epoch() then
    return wrong_clock()
  end
  keep_creation(keys[4], args[1], args[2])
  return {}
end

-- im_create_add: give first members to a group that is being created.
-- Keys: creating, meta, stream, acked, joined, then groups_of of each. Arguments: gid, token, then each uid.
-- Answer: how many were new, or LOST if the creation is the caller's no more, or the group is there.
local function create_add(keys, args)
  if is_there(keys[2], keys[1], args[1]) or creation_of(keys[1], args[1]) ~= args[2] then
    return 'LOST'
  end
  local group = {gid = args[1], stream = keys[3], acked = keys[4], joined = keys[5], seq = 0, last = 0}
  local added = 0
  for i = 3, #args do
    added = added + (begin_span(group, args[i], keys[3 + i]) and 1 or 0)
  end
  keep_creation(keys[1], args[1], args[2])
  return added
end

-- im_create_end: let the group be there.
-- Keys: creating, meta, acked, journal, groups, untold. Arguments: gid, token, how many members it is to have.
-- Answer: how many it has, or LOST.
local function create_end(keys, args)
  if is_there(keys[2], keys[1], args[1]) or creation_of(keys[1], args[1]) ~= args[2]
      or redis.call('ZCARD', keys[3]) ~= tonumber(args[3]) then
    return 'LOST'
  end
  found(args[1], keys[2], keys[4], keys[5])
  redis.call('HDEL', keys[1], args[1])
  keep_creation(keys[6], args[1], args[2])
  return tonumber(args[3])
end

-- im_create_tell: tell the live sessions of members that they are in a group; with the last call all are told.
-- Keys: untold, acked. Arguments: gid, start of the inbox channels, 1 if this is the last call, then uids.
-- Answer: how many were told.
local function create_tell(keys, args)
  local told = 0
  for i = 4, #args do
    if redis.call('ZSCORE', keys[2], args[i]) then
      tell(args[2], args[i], {'j', args[1]})
      told = told + 1
    end
  end
  if args[3] == '1' then
    redis.call('HDEL', keys[1], args[1])
  end
  return told
end

-- im_create_undo: take away what is left of a creation whose process has died, some members at a time; without uids, end it. The
-- stream stays, empty: no role but that of workers may make an end of one.
-- Keys: creating, meta, stream, acked, joined, then groups_of of each.
-- Arguments: gid, 1 from who mends the group and does not care whether its process lives, then uids.
-- Answer: 1, or 0 if that creation lives after all, or the group is there.
local function create_undo(keys, args)
  local token, lives = creation_of(keys[1], args[1])
  local mends = args[2] == '1'
  if is_there(keys[2], keys[1], args[1]) or not token or lives and not mends then
    return 0
  elseif mends then
    keep_creation(keys[1], args[1], MENDED)  -- so no step of it follows, and no other one begins
  end
  local has_stream = redis.call('EXISTS', keys[3]) == 1
  for i = 3, #args do
    redis.call('ZREM', keys[4], args[i])
    redis.call('ZREM', keys[5], args[i])
    if has_stream then
      redis.call('XGROUP', 'DESTROY', keys[3], args[i])
    end
    redis.call('SREM', keys[3 + i], args[1])
  end
  if #args == 2 then
    for _, key in ipairs({keys[4], keys[5]}) do
      for _, by_hand in ipairs(redis.call('ZRANGE', key, 0, 99)) do
        redis.call('ZREM', key, by_hand)
      end
    end
    if not mends then
      redis.call('HDEL', keys[1], args[1])
    end
  end
  return 1
end

-- im_abandoned: the creations of a partition whose processes have died.
-- Keys: creating or untold. Arguments: none. Answer: their gids.
local function abandoned(keys)
  local gids = {}
  for _, gid in ipairs(redis.call('HKEYS', keys[1])) do
    local token, lives = creation_of(keys[1], gid)
    if not token then
      redis.call('HDEL', keys[1], gid)  -- written by hand
    elseif not lives then
      gids[#gids + 1] = gid
    end
  end
  return gids
end

local function join(group, uid, groups_of)
  if begin_span(group, uid, groups_of) then
    note(group.journal, 'kind', 'join', 'gid', group.gid, 'uid', uid, 'joined', decimal(group.last))
    tell(group.inboxes, uid, {'j', group.gid})
  end
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
      redis.call('UNLINK', keys[2 + 2 * i])
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
redis.register_function{function_name = 'im_create_begin', callback = create_begin}
redis.register_function{function_name = 'im_create_add', callback = create_add}
redis.register_function{function_name = 'im_create_end', callback = create_end}
redis.register_function{function_name = 'im_create_tell', callback = create_tell, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_create_undo', callback = create_undo, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_abandoned', callback = abandoned, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_join', callback = join_many}
redis.register_function{function_name = 'im_leave', callback = leave_many, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_group', callback = show, flags = READS}
