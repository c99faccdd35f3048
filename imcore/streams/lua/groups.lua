-- Groups and memberships.

-- A creation in steps ends after this time without another step.
local CREATION_MS = 10000

-- Begin a span after the newest message. Returns false for a member.
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

-- Drop all that a group keeps of a current member, except the span.
local function remove_member(stream, uid, groups_of, own_unacked, gid)
  redis.call('XGROUP', 'DESTROY', stream, uid)
  redis.call('SREM', groups_of, gid)
  redis.call('UNLINK', own_unacked)
end

-- The error if another creation is in the way, whose process is alive or has died over it, or if the clock is wrong.
local function creation_conflict(creating, gid, token)
  local holder, is_alive = holder_of(creating, gid)
  if holder and holder ~= token then
    return redis.error_reply(
      is_alive and 'CREATING another process creates the group' or 'ABANDONED the group was created by half')
  elseif now_ms() < EPOCH_MS + 1000 then
    return redis.error_reply('CLOCK the clock of the server stands before 2020')
  end
end

-- The token of a creation that a repair has undone: for a while no other creation may begin.
local UNDONE = '-'

-- Whether a creation of the group has begun, even if it is abandoned.
local function is_being_created(creating, gid)
  local token = holder_of(creating, gid)
  return token and token ~= UNDONE
end

local function is_being_deleted(deleting, gid)
  return redis.call('HGET', deleting, gid)
end

-- Whether the group exists. Then no creation of it continues, however the group came there, as from SQL after a loss of Redis.
local function group_exists(meta, creating, gid)
  if redis.call('EXISTS', meta) == 0 then
    return false
  end
  redis.call('HDEL', creating, gid)
  return true
end

-- im_create: create a group with its first members: nobody sees it before the last step of its creation. A group with more members
-- than one call can add needs several steps. Each renews the creation, whose token says which members it is to have: so the same
-- creation can be resumed, and another one must wait until the first has ended and is undone.
-- Keys: meta, stream, acked, joined, left, journal, groups, creating, unnotified, deleting, erasing, then groups_of of each member.
-- Arguments: gid, prefix of the inbox channels, token, 1 if this is the first step, how many members the group is to have ('' if
-- another step follows), then the uid of each new member.
-- Answer: {}; in the first step {members, seq, last, 1 if they may not have been notified, 1 if all new members are members} if
-- the group exists; in a later one
-- LOST if the creation is not the caller's any more, or the group exists or has other members.
-- Errors: CREATING, ABANDONED, DELETING, CLOCK, ERASING.
define('im_create', DENY_OOM, function(keys, args)
  local gid, token, is_first, total = args[1], args[3], args[4] == '1', tonumber(args[5])
  if group_exists(keys[1], keys[8], gid) then
    local seq, last = head_of(keys[1])
    local unnotified, same = redis.call('HGET', keys[9], gid), true
    for i = 6, #args do
      same = same and redis.call('ZSCORE', keys[3], args[i])
    end
    return is_first and {member_count(keys[3], keys[5]), seq, decimal(last), unnotified and 1 or 0, same and 1 or 0} or 'LOST'
  elseif not is_first and holder_of(keys[8], gid) ~= token then
    return 'LOST'
  end
  if is_being_deleted(keys[10], gid) then
    return redis.error_reply('DELETING the group of that gid is being deleted')
  end
  local problem = is_first and creation_conflict(keys[8], gid, token) or erasing_error(keys[11], args, 6)
  if problem then
    return problem
  end
  local group = {gid = gid, stream = keys[2], acked = keys[3], joined = keys[4], seq = 0, last = 0}
  for i = 6, #args do
    begin_span(group, args[i], keys[6 + i])
  end
  if not total then
    set_holder(keys[8], gid, token, CREATION_MS)
    return {}
  elseif not is_first and redis.call('ZCARD', keys[3]) ~= total then
    return 'LOST'
  end
  local born = append_entry(keys[6], 'kind', 'group', 'gid', gid)  -- readers find its members by where they joined
  redis.call('HSET', keys[1], 'seq', 0, 'last', 0, 'born', decimal(pack(born)))
  redis.call('SADD', keys[7], gid)
  redis.call('HDEL', keys[8], gid)
  if not is_first then
    set_holder(keys[9], gid, token, CREATION_MS)
  end
  for i = 6, #args do
    notify(args[2], args[i], {'j', gid})
  end
  return {}
end)

-- im_notify: publish to the live sessions of members that they joined or, with `again`, that they must resync the group from
-- their offsets.
-- Keys: acked, unnotified. Arguments: gid, prefix of the inbox channels, 'again' or '', 1 if all first members of a new group are
-- notified then, uids. Answer: how many are members.
define('im_notify', ALLOW_OOM, function(keys, args)
  local count, fields = 0, {'j', args[1], args[3] ~= '' and args[3] or nil}
  for i = 5, #args do
    if redis.call('ZSCORE', keys[1], args[i]) then
      notify(args[2], args[i], fields)
      count = count + 1
    end
  end
  if args[4] == '1' then
    redis.call('HDEL', keys[2], args[1])
  end
  return count
end)

-- im_create_undo: undo the creation of a process that has died, some members at a time; without uids, end it. The stream stays,
-- empty: only the role of workers may delete one.
-- Keys: creating, meta, stream, acked, joined, ahead, ahead_acked, bookmarks, then groups_of of each.
-- Arguments: gid, 1 from a repair, which undoes a creation that is alive, too, then uids.
-- Answer: 1, or 0 if that creation is alive after all, or the group exists.
define('im_create_undo', ALLOW_OOM, function(keys, args)
  local token, is_alive = holder_of(keys[1], args[1])
  local is_repair = args[2] == '1'
  if group_exists(keys[2], keys[1], args[1]) or not token or is_alive and not is_repair then
    return 0
  elseif is_repair then
    set_holder(keys[1], args[1], UNDONE, CREATION_MS)  -- so no step of it follows, and no other one begins
  end
  local has_stream = redis.call('EXISTS', keys[3]) == 1
  for i = 3, #args do
    for z = 4, 7 do
      redis.call('ZREM', keys[z], args[i])
    end
    redis.call('HDEL', keys[8], args[i])
    if has_stream then
      redis.call('XGROUP', 'DESTROY', keys[3], args[i])
    end
    redis.call('SREM', keys[6 + i], args[1])
  end
  if #args == 2 then
    for z = 4, 7 do
      for _, by_hand in ipairs(redis.call('ZRANGE', keys[z], 0, 99)) do
        redis.call('ZREM', keys[z], by_hand)
      end
    end
    for _, by_hand in ipairs(redis.call('HKEYS', keys[8])) do
      redis.call('HDEL', keys[8], by_hand)
    end
    if not is_repair then
      redis.call('HDEL', keys[1], args[1])
    end
  end
  return 1
end)

-- im_abandoned: the creations of a partition whose processes have died.
-- Keys: creating or unnotified. Arguments: none. Answer: their gids.
define('im_abandoned', ALLOW_OOM, function(keys)
  local gids = {}
  for _, gid in ipairs(redis.call('HKEYS', keys[1])) do
    local token, is_alive = holder_of(keys[1], gid)
    if not token then
      redis.call('HDEL', keys[1], gid)  -- written by hand
    elseif not is_alive then
      gids[#gids + 1] = gid
    end
  end
  return gids
end)

-- im_join: add members; a member stays as they are.
-- Keys: meta, stream, acked, joined, left, journal, erasing, then groups_of of each.
-- Arguments: gid, prefix of the inbox channels, then each uid. Answer: {members, seq, last}. Errors: NOGROUP, ERASING.
define_for_group('im_join', DENY_OOM, function(keys, args, seq, last)
  local problem = erasing_error(keys[7], args, 3)
  if problem then
    return problem
  end
  local group = {gid = args[1], stream = keys[2], acked = keys[3], joined = keys[4], seq = seq, last = last}
  for i = 3, #args do
    if begin_span(group, args[i], keys[5 + i]) then
      append_entry(keys[6], 'kind', 'join', 'gid', args[1], 'uid', args[i], 'joined', decimal(last))
      notify(args[2], args[i], {'j', args[1]})
    end
  end
  return {member_count(keys[3], keys[5]), seq, decimal(last)}
end)

-- Add a closed span under its own key, unless it has no messages. Its offset does not move back; it may be given beyond the end of
-- the span, since a crash of both servers may have lost the message at the offset, and all after it.
local function add_closed_span(acked, joined, left, uid, from, to, offset)
  if to > tonumber(from) then
    local span = uid .. SEP .. from
    local current = tonumber(redis.call('ZSCORE', acked, span) or '0')
    redis.call('ZADD', acked, decimal(math.min(math.max(current, tonumber(offset)), to)), span)
    redis.call('ZADD', joined, from, span)
    redis.call('ZADD', left, decimal(to), span)
  end
end

-- im_leave: end memberships; a uid that is no member is skipped.
-- Keys: meta, stream, acked, joined, left, journal, ahead, ahead_acked, bookmarks, then groups_of and own_unacked of each.
-- Arguments: gid, prefix of the inbox channels, then each uid. Answer: {members, seq, last}. Errors: NOGROUP.
define_for_group('im_leave', ALLOW_OOM, function(keys, args, seq, last)
  local stream, acked, joined, left = keys[2], keys[3], keys[4], keys[5]
  local changes = {}
  for i = 3, #args do
    local uid = args[i]
    local offset = redis.call('ZSCORE', acked, uid)
    if offset then
      local from = redis.call('ZSCORE', joined, uid)
      redis.call('ZREM', acked, uid)
      redis.call('ZREM', joined, uid)
      add_closed_span(acked, joined, left, uid, from, last, offset)
      close_ahead(keys[7], keys[8], uid, uid .. SEP .. from, last, offset)
      if redis.call('HGET', keys[9], uid) then
        change_bookmark(keys[9], from, uid, 0, 0, changes)
      end
      remove_member(stream, uid, keys[4 + 2 * i], keys[5 + 2 * i], args[1])
      append_entry(keys[6], 'kind', 'leave', 'gid', args[1], 'uid', uid, 'joined', from, 'left', decimal(last))
      notify(args[2], uid, {'l', args[1]})
    end
  end
  append_bookmarks(keys[6], args[1], changes)
  return {member_count(acked, left), seq, decimal(last)}
end)

-- im_group: the size of a group.
-- Keys: meta, acked, left. Arguments: none. Answer: {members, seq, last}. Errors: NOGROUP.
define_for_group('im_group', READ_ONLY, function(keys, _, seq, last)
  return {member_count(keys[2], keys[3]), seq, decimal(last)}
end)
