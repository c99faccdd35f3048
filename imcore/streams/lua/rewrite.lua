-- Rewrites: streams without the texts of recalled messages. An entry of a stream cannot be changed, and a deleted one keeps its
-- bytes in memory while its neighbours live. So the stream is copied into a shadow without these texts, which then replaces it.
--
-- The steps are im_rewrite_begin, im_repair_copy (pages of entries), im_rewrite_follow (pages of members), im_rewrite_swap. No step
-- takes longer in a larger group. Members may send, ack, join and leave meanwhile: each of these appends to the journal in the same
-- step, so the swap reads there whose consumer groups have moved since the beginning. A rewrite holds the lock of a repair, with a
-- token of its own kind: if its process dies, the group is as it was, and needs no repair.

local REWRITE = '^rewrite:'   -- tokens of rewrites
local MOST_CAUGHT_UP = 200    -- entries of the journal, and of the stream, that one step looks at
local MOST_MOVED = 500        -- consumer groups after which a step ends

-- im_rewrite_wait: note that a recalled text of a group waits. Keys: rewrites. Arguments: gid. Answer: 1 if none waited before.
define('im_rewrite_wait', ALLOW_OOM, function(keys, args)
  return redis.call('ZADD', keys[1], 'NX', now_ms(), args[1])
end)

-- im_rewrites_due: groups whose recalled texts have waited for a time; or seem to wait since later than now, as the clock was put
-- back. Keys: rewrites. Arguments: that time (ms), how many groups. Answer: gids.
define('im_rewrites_due', READ_ONLY, function(keys, args)
  local now = now_ms()
  local due = redis.call('ZRANGEBYSCORE', keys[1], '-inf', decimal(now - tonumber(args[1])), 'LIMIT', 0, args[2])
  for _, gid in ipairs(redis.call('ZRANGEBYSCORE', keys[1], '(' .. decimal(now), '+inf', 'LIMIT', 0, args[2])) do
    due[#due + 1] = gid
  end
  return due
end)

-- How many entries a journal has lost so far: trimmed or deleted ones.
local function lost_entries(journal)
  local info = fields_of(redis.call('XINFO', 'STREAM', journal))
  return info['entries-added'] - info['length']
end

-- Remove users from a group's field `erased`.
local function unhide(meta, erased, gone)
  local rest = {}
  for uid, alias in pairs(aliases_of(erased)) do
    if not gone[uid] then
      rest[#rest + 1] = uid .. SEP .. alias
    end
  end
  if rest[1] then
    redis.call('HSET', meta, 'erased', table.concat(rest, RECORD))
  else
    redis.call('HDEL', meta, 'erased')
  end
end

-- im_rewrite_begin: begin to rewrite a group. If the group is gone, nothing of it waits any more.
-- Keys: group_locks, shadow, meta, stream, journal, rewrites. Arguments: gid, token.
-- Answer: {last id of the stream, newest message (packed), last id of the journal, how many entries it has lost, the field `erased`},
-- or LOCKED while another process has the lock, or one has died over a repair. Errors: NOGROUP.
define('im_rewrite_begin', DENY_OOM, function(keys, args)
  local _, last = head_of(keys[3])
  if not last then
    redis.call('ZREM', keys[6], args[1])
    return no_group()
  end
  local holder, is_locked = holder_of(keys[1], args[1])
  if holder and (is_locked or not string.find(holder, REWRITE)) or redis.call('EXISTS', keys[5]) == 0 then
    return 'LOCKED'
  end
  set_holder(keys[1], args[1], args[2], LOCK_MS)
  redis.call('UNLINK', keys[2])
  return {last_id(keys[4]), decimal(last), last_id(keys[5]), lost_entries(keys[5]), redis.call('HGET', keys[3], 'erased') or ''}
end)

-- The seq of the newest message up to an offset that is not trimmed; nil if it is not known.
local function seq_at(group, offset)
  local seq = group.seqs[offset]
  if seq == nil then
    local packed = math.min(tonumber(offset), HIGHEST)  -- by hand it may be anything
    local after = first_message('XRANGE', group.shadow, '(' .. unpack_id(packed), '+')
    seq = packed >= group.trimmed and (after and tonumber(after[2][2]) - 1 or group.seq)
    group.seqs[offset] = seq
  end
  return seq or nil
end

-- Let a member have the consumer group in the shadow that they have in the stream, and a former member none.
local function follow(group, uid)
  local offset = redis.call('ZSCORE', group.acked, uid)
  if not offset then
    redis.pcall('XGROUP', 'DESTROY', group.shadow, uid)  -- there may be no shadow yet
    return
  end
  local id, seq = unpack_id(math.min(tonumber(offset), HIGHEST)), seq_at(group, offset)
  local options = seq and {'ENTRIESREAD', seq} or {}
  if redis.pcall('XGROUP', 'CREATE', group.shadow, uid, id, 'MKSTREAM', unpack(options))['err'] then
    call_xgroup('SETID', group.shadow, uid, id, seq)
  end
end

local function followed_group(shadow, meta, acked)
  local head = redis.call('HMGET', meta, 'seq', 'trimmed')
  return {shadow = shadow, acked = acked, seq = tonumber(head[1]), trimmed = tonumber(head[2] or '0'), seqs = {}}
end

-- im_rewrite_follow: create the consumer groups of a page of members in the shadow.
-- Keys: group_locks, shadow, meta, acked. Arguments: gid, token, cursor ('0' at first), about how many.
-- Answer: the next cursor, '0' after the last page. Errors: LOST.
define_locked('im_rewrite_follow', function(keys, args)
  local page, group = redis.call('ZSCAN', keys[4], args[3], 'COUNT', args[4]), followed_group(keys[2], keys[3], keys[4])
  for i = 1, #page[2], 2 do
    if not string.find(page[2][i], SEP, 1, true) then
      follow(group, page[2][i])
    end
  end
  return page[1]
end)

-- The uids whose consumer groups an entry of the journal may have moved.
local function moved_by(fields, stream)
  local kind, value, uids = fields[2], fields[6], {}
  if kind == 'ack' then
    for record in string.gmatch(value, '[^' .. RECORD .. ']+') do
      local place = 0
      for word in string.gmatch(record, '[^' .. SEP .. ']+') do
        place = place + 1
        uids[#uids + 1] = place > 3 and word or nil  -- the first three say from where to where
      end
    end
  elseif kind == 'join' or kind == 'leave' then
    uids[1] = value
  elseif kind == 'msg' then
    for _, entry in ipairs(redis.call('XRANGE', stream, value, fields[7] == 'last' and fields[8] or value)) do
      uids[#uids + 1] = entry[2][4]  -- their offset may have moved with the message
    end
  end
  return uids
end

-- Let members follow what the journal says after an id. Returns the last id that was looked at, and whether more may follow.
local function catch_up(group, gid, stream, journal, after)
  local entries, more = read_page('XRANGE', journal, '(' .. after, '+', MOST_CAUGHT_UP, PAGE_BYTES, true)
  local followed, count = {}, 0
  for _, entry in ipairs(entries) do
    if count >= MOST_MOVED then
      return after, true
    end
    after = entry[1]
    for _, uid in ipairs(entry[2][4] == gid and moved_by(entry[2], stream) or {}) do
      if not followed[uid] then
        followed[uid], count = true, count + 1
        follow(group, uid)
      end
    end
  end
  return after, more
end

-- im_rewrite_swap: let the shadow replace the stream, with all that has happened meanwhile, and end the rewrite. If a message was
-- recalled meanwhile, the group waits for the next rewrite.
-- Keys: group_locks, shadow, meta, stream, acked, journal, recalled, rewrites. Arguments: gid, token, the newest message (packed) and
-- the lost entries of the journal as the rewrite began, the id up to which the members follow the journal, the field `erased` as the
-- rewrite began: the new stream has nothing of these users, and their erasure is hidden no more.
-- Answer: '' once it is done; else the id up to which they follow it now, to call again; CHANGED if the journal was trimmed
-- meanwhile. Errors: LOST.
define_locked('im_rewrite_swap', function(keys, args)
  local shadow, meta, stream, journal, recalled, rewrites, gid = keys[2], keys[3], keys[4], keys[6], keys[7], keys[8], args[1]
  if lost_entries(journal) ~= tonumber(args[4]) then
    return 'CHANGED'
  end
  local erased = redis.call('HGET', meta, 'erased')
  if copy_entries(stream, shadow, recalled, erased, '+', MOST_CAUGHT_UP) then
    return args[5]  -- without all entries it is not known how many a member has read
  end
  local group = followed_group(shadow, meta, keys[5])
  local after, is_behind = catch_up(group, gid, stream, journal, args[5])
  if is_behind then
    return after
  end
  if last_id(shadow) ~= last_id(stream) or redis.call('XLEN', shadow) ~= group.seq then
    raise_last_id(shadow, last_id(stream), group.seq)
  end
  redis.call('UNLINK', stream)  -- a stream that is renamed over is freed before the next call, however large it is
  redis.call('RENAME', shadow, stream)
  if redis.call('ZCOUNT', recalled, '(' .. args[3], '+inf') == 0 then
    redis.call('ZREM', rewrites, gid)
  else
    redis.call('ZADD', rewrites, now_ms(), gid)
  end
  if args[6] ~= '' then
    unhide(meta, erased, aliases_of(args[6]))
  end
  redis.call('HDEL', keys[1], gid)
  return ''
end)
