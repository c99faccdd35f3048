-- Erasure of a user: nothing has the user's name or texts any more, and all counts stay.
--
-- The user is called by an alias from then on: `erased-` and 16 random hex digits. While the erasure is under way the hash `erasing`
-- of each partition keeps the uid from being used, so everything of that name is the erased user's. In each group one step
-- (im_erase) ends the membership, renames the spans, and names the user in the field `erased` of the group: from then on readers
-- answer messages of that user without name and text. A rewrite (rewrite.lua) removes both from the stream, and that field with it.
-- A one-to-one chat gets another gid (im_erase_chat), since its gid says the names. All steps may be repeated.

-- Let a span, if there is one of that key, have another key.
local function rename_span(indexes, old, new)
  for _, key in ipairs(indexes) do
    local score = redis.call('ZSCORE', key, old)
    if score then
      redis.call('ZREM', key, old)
      redis.call('ZADD', key, decimal(tonumber(score)), new)
    end
  end
end

-- The error if the erasure of a user has ended: the name may be that of a new user by now.
local function ended_error(erasing, uid, alias)
  if redis.call('HGET', erasing, uid) ~= alias then
    return redis.error_reply('ERASED the erasure of this user has ended')
  end
end

-- Let a user leave a group for good, who is called by an alias from now on. `keys` begin as those of im_erase, and `closed` says where
-- each closed span of the user began. `gid` is what the journal calls the group. Returns false without such a group.
local function erase_member(keys, args, gid, closed)
  local meta, stream, acked, joined, left, ahead, ahead_acked = unpack(keys, 3, 9)
  local uid, alias = args[4], args[5]
  local seq, last = head_of(meta)
  redis.call('SREM', keys[12], args[1])
  if not seq then
    return false
  end
  local erased = redis.call('HGET', meta, 'erased')
  if not aliases_of(erased)[uid] then
    redis.call('HSET', meta, 'erased', (erased and erased .. RECORD or '') .. uid .. SEP .. alias)
    -- What no erasure has written before: clients with databases of their own compare it.
    redis.call('HSET', meta, 'last_erasure', decimal(now_ms()) .. '-' .. string.match(alias, '%x*$'))
  end
  local offset = redis.call('ZSCORE', acked, uid)
  if offset then
    local from = redis.call('ZSCORE', joined, uid) or offset
    redis.call('ZREM', acked, uid)
    redis.call('ZREM', joined, uid)
    add_closed_span(acked, joined, left, alias, from, last, offset)
    close_ahead(ahead, ahead_acked, uid, alias .. SEP .. from, last, offset)
    append_entry(keys[11], 'kind', 'leave', 'gid', gid, 'uid', alias, 'joined', from, 'left', decimal(last))
    notify(args[3], uid, {'l', args[1]})
  end
  redis.call('HDEL', keys[10], uid)
  if redis.call('EXISTS', stream) == 1 then
    redis.call('XGROUP', 'DESTROY', stream, uid)
  end
  redis.call('UNLINK', keys[13])
  for _, from in ipairs(closed) do
    rename_span({acked, joined, left, ahead, ahead_acked}, uid .. SEP .. from, alias .. SEP .. from)
  end
  return true
end

-- im_erase: let a user leave a group for good.
-- Keys: group_locks, shadow, meta, stream, acked, joined, left, ahead, ahead_acked, bookmarks, journal, then groups_of and own_unacked
-- of the user, erasing. Arguments: gid, token, prefix of the inbox channels, uid, alias, then where each closed span began.
-- Answer: 1, or 0 if there is no such group. Errors: LOST, ERASED.
define_locked('im_erase', function(keys, args)
  return ended_error(keys[14], args[4], args[5]) or erase_member(keys, args, args[1], {unpack(args, 6)}) and 1 or 0
end)

-- im_erase_chat: let a user leave a one-to-one chat for good, which gets another gid of the same partition: its own says the names.
-- Keys: those of im_erase, then idempotency_newer, idempotency_older, recalled, groups, rewrites, rebuilt, then of the new gid: meta,
-- stream, acked, joined, left, ahead, ahead_acked, bookmarks, idempotency_newer, idempotency_older, recalled, then for each other
-- member: groups_of, own_unacked of the old gid and of the new one.
-- Arguments: those of im_erase up to the alias, the new gid, how many other members follow, these, where each closed span began.
-- A repair that somebody has died over still has to be done, under the new gid.
-- Answer: 1, 0 if there is no such group, or CHANGED if others are members. Errors: LOST, ERASED.
define_locked('im_erase_chat', function(keys, args)
  local gid, new, others, acked = args[1], args[6], tonumber(args[7]), keys[5]
  local problem = ended_error(keys[14], args[4], args[5])
  if problem then
    return problem
  end
  local is_member = redis.call('ZSCORE', acked, args[4]) and 1 or 0
  if redis.call('EXISTS', keys[3]) == 1 and member_count(acked, keys[7]) ~= others + is_member then
    return 'CHANGED'
  elseif not erase_member(keys, args, new, {unpack(args, 8 + others)}) then
    return 0
  end
  redis.call('UNLINK', keys[2])
  if not string.find(args[2], REWRITE) then
    redis.call('HSET', keys[1], new, args[2] .. ' 0 0')
  end
  redis.call('HDEL', keys[1], gid)
  for i, key in ipairs({keys[3], keys[4], acked, keys[6], keys[7], keys[8], keys[9], keys[10], keys[15], keys[16], keys[17]}) do
    if redis.call('EXISTS', key) == 1 then
      redis.call('RENAME', key, keys[20 + i])
    end
  end
  local groups, rewrites, rebuilt = keys[18], keys[19], keys[20]
  redis.call('SREM', groups, gid)
  redis.call('SADD', groups, new)
  if redis.call('SREM', rebuilt, gid) == 1 then
    redis.call('SADD', rebuilt, new)
  end
  local waits = redis.call('ZSCORE', rewrites, gid)
  if waits then
    redis.call('ZREM', rewrites, gid)
    redis.call('ZADD', rewrites, waits, new)
  end
  for i = 1, others do
    local k, uid = 29 + 3 * i, args[7 + i]
    redis.call('SREM', keys[k], gid)
    redis.call('SADD', keys[k], new)
    if redis.call('EXISTS', keys[k + 1]) == 1 then
      redis.call('RENAME', keys[k + 1], keys[k + 2])
    end
    notify(args[3], uid, {'l', gid})
    notify(args[3], uid, {'j', new})
  end
  return 1
end)

local ENDED_MS = 7 * 24 * 3600 * 1000  -- for so long a session of an erased user cannot be opened again: it must be gone by then

-- im_erase_sessions: end the sessions of a user for good, and forget when they were seen.
-- Keys: sessions, online, last_seen, ended_sessions. Arguments: uid. Answer: how many sessions there were.
define('im_erase_sessions', ALLOW_OOM, function(keys, args)
  local sessions = redis.call('ZRANGEBYSCORE', keys[1], '0', '+inf')
  for _, session in ipairs(sessions) do
    redis.call('SADD', keys[4], session)
  end
  if sessions[1] then
    redis.call('PEXPIRE', keys[4], decimal(ENDED_MS))
  end
  redis.call('UNLINK', keys[1])
  redis.call('ZREM', keys[2], args[1])
  redis.call('ZREM', keys[3], args[1])
  return #sessions
end)

-- im_erase_unhide: end the hiding of a user who has no message in a group's stream.
-- Keys: meta. Arguments: uid. Answer: 1.
define('im_erase_unhide', ALLOW_OOM, function(keys, args)
  local erased = redis.call('HGET', keys[1], 'erased')
  if erased then
    unhide(keys[1], erased, {[args[1]] = true})
  end
  return 1
end)

-- im_erase_writes: whether a page of a stream has a message of a user.
-- Keys: stream. Arguments: uid, id to start at (as XRANGE takes it), about how many entries.
-- Answer: FOUND, the id of the last entry that was looked at, or '' after the last page.
define('im_erase_writes', READ_ONLY, function(keys, args)
  local page, more = read_page('XRANGE', keys[1], args[2], '+', tonumber(args[3]), PAGE_BYTES, true)
  for _, entry in ipairs(page) do
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'uid' and entry[2][i + 1] == args[1] then
        return 'FOUND'
      end
    end
  end
  return more and page[#page][1] or ''
end)

-- im_erase_receipts: let a page of a user's unconfirmed receipts name another gid.
-- Keys: dirty. Arguments: gid, new gid, cursor ('0' at first), about how many. Answer: the next cursor, '0' after the last page.
define('im_erase_receipts', ALLOW_OOM, function(keys, args)
  local page, prefix = redis.call('ZSCAN', keys[1], args[3], 'COUNT', args[4]), args[1] .. SEP
  for i = 1, #page[2], 2 do
    if string.sub(page[2][i], 1, #prefix) == prefix then
      redis.call('ZREM', keys[1], page[2][i])
      redis.call('ZADD', keys[1], decimal(tonumber(page[2][i + 1])), args[2] .. SEP .. string.sub(page[2][i], #prefix + 1))
    end
  end
  return page[1]
end)

-- im_erase_client_msgids: drop a page of the client_msgids of a user.
-- Keys: idempotency_newer or idempotency_older. Arguments: uid, cursor ('0' at first), about how many.
-- Answer: the next cursor, '0' after the last page.
define('im_erase_client_msgids', ALLOW_OOM, function(keys, args)
  local page, prefix = redis.call('HSCAN', keys[1], args[2], 'COUNT', args[3]), args[1] .. SEP
  for i = 1, #page[2], 2 do
    if string.sub(page[2][i], 1, #prefix) == prefix then
      redis.call('HDEL', keys[1], page[2][i])
    end
  end
  return page[1]
end)
