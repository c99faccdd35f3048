-- Deletion of groups. The first step hides a group: without its `meta` there is none. Then its rows in SQL go, then all that Redis
-- has of it, some members at a time. The hash `deleting` holds "messages entry" by gid until the last step: how many messages the
-- group had, and the last entry of the journal (packed) that may be about it. So a deletion whose process has died can be resumed by
-- anybody, and no group of that gid is created meanwhile.
--
-- A deletion holds the lock of a repair, with a token of its own kind.

local DELETION = '^delete:'   -- tokens of deletions
local MOST_SCANNED = 1000     -- dirty receipts that one step looks at

-- im_delete_begin: begin or resume the deletion of a group, or renew the caller's lock.
-- Keys: group_locks, meta, journal, deleting, groups, creating, unnotified, rewrites. Arguments: gid, token, entry (packed): only
-- resume, or delete a group that was born before that entry; '' to delete the group that there is.
-- Answer: {messages, entry}. Errors: NOGROUP, CREATING; DELETING while another process deletes the group; LOST while one repairs it,
-- or has died over its repair.
define('im_delete_begin', ALLOW_OOM, function(keys, args)
  local gid, token, entry, meta = args[1], args[2], args[3], keys[2]
  local mark, seq, born = redis.call('HGET', keys[4], gid), unpack(redis.call('HMGET', meta, 'seq', 'born'))
  if not mark and (not seq or entry ~= '' and tonumber(born or '0') >= tonumber(entry)) then
    return is_being_created(keys[6], gid) and redis.error_reply('CREATING the group is being created') or no_group()
  end
  local holder, is_locked = holder_of(keys[1], gid)
  local deletes = holder and string.find(holder, DELETION)
  if deletes and is_locked and holder ~= token then
    return redis.error_reply('DELETING another process deletes the group')
  elseif holder and not deletes and not string.find(holder, REWRITE) then
    return redis.error_reply('LOST another process repairs this group')
  end
  redis.call('UNLINK', meta)  -- first, as not every role may do that
  if not mark then
    mark = seq .. ' ' .. (entry ~= '' and entry or decimal(math.max(0, pack(last_id(keys[3])))))
    redis.call('HSET', keys[4], gid, mark)
    redis.call('SREM', keys[5], gid)
    redis.call('HDEL', keys[7], gid)
    redis.call('ZREM', keys[8], gid)
  end
  set_holder(keys[1], gid, token, LOCK_MS)
  local messages, last_entry = string.match(mark, '^(%d+) (%d+)$')
  return {tonumber(messages or '0'), last_entry or '0'}
end)

-- im_delete_receipts: forget which receipts of the group are dirty, for a page of users.
-- Keys: group_locks, then dirty of each user. Arguments: gid, token, number of the user to go on with (from 1), cursor ('0' at first).
-- Answer: the same two to go on with, or {} if all are done. Errors: LOST.
define_locked('im_delete_receipts', function(keys, args)
  local number, cursor, left, prefix = tonumber(args[3]), args[4], MOST_SCANNED, args[1] .. SEP
  while keys[1 + number] do
    if left <= 0 then
      return {number, cursor}
    end
    local page = redis.call('ZSCAN', keys[1 + number], cursor, 'COUNT', 500)
    cursor, left = page[1], left - #page[2] / 2 - 1
    local own = {}
    for i = 1, #page[2], 2 do
      own[#own + 1] = string.sub(page[2][i], 1, #prefix) == prefix and page[2][i] or nil
    end
    for first = 1, #own, MAX_UNPACKED do
      redis.call('ZREM', keys[1 + number], unpack(own, first, math.min(first + MAX_UNPACKED - 1, #own)))
    end
    number = cursor == '0' and number + 1 or number
  end
  return {}
end)

-- im_delete_members: remove spans, and what the group keeps of their users; tell the live sessions of members that they left.
-- Keys: group_locks, acked, joined, left, then groups_of and own_unacked of each span's uid.
-- Arguments: gid, token, prefix of the inbox channels, span keys. Answer: how many were members. Errors: LOST.
define_locked('im_delete_members', function(keys, args)
  local gid, members = args[1], 0
  for i = 4, #args do
    local span, k = args[i], 2 * i - 3
    if not string.find(span, SEP, 1, true) then
      redis.call('SREM', keys[k], gid)
      redis.call('UNLINK', keys[k + 1])
      notify(args[3], span, {'l', gid})
      members = members + 1
    end
    for z = 2, 4 do
      redis.call('ZREM', keys[z], span)
    end
  end
  return members
end)

-- im_delete_end: end a deletion: the rest of the group goes, and its gid is free.
-- Keys: group_locks, deleting, then all other keys of the group. Arguments: gid, token. Answer: 1, or 0 if it has ended before.
-- Errors: LOST.
define('im_delete_end', ALLOW_OOM, function(keys, args)
  if not is_being_deleted(keys[2], args[1]) then
    return 0
  elseif not owns_lock(keys[1], args[1], args[2]) then
    return redis.error_reply('LOST another process deletes this group')
  end
  for i = 3, #keys do
    redis.call('UNLINK', keys[i])
  end
  redis.call('HDEL', keys[2], args[1])
  redis.call('HDEL', keys[1], args[1])
  return 1
end)
