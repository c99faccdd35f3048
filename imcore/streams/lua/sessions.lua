-- Live sessions.

-- The sessions of a user that live, those that have ended dropped: their ids as keys, when the last of them ends (0: there is none), and
-- how many they are.
local function living(sessions, now)
  local ids, last, count = {}, 0, 0
  local all = redis.call('HGETALL', sessions)
  for i = 1, #all, 2 do
    local ends, length = string.match(all[i + 1], '^(%d+) (%d+)$')
    local cut = ends and end_from(now, ends, length) or 0
    if cut <= now then
      redis.call('HDEL', sessions, all[i])
    else
      if cut < tonumber(ends) then
        redis.call('HSET', sessions, all[i], decimal(cut) .. ' ' .. length)
      end
      ids[all[i]] = true
      last = math.max(last, cut)
      count = count + 1
    end
  end
  return ids, last, count
end

-- Drop from the list of who is online those whose sessions have ended, and cut back the ends that are further ahead than any length.
local function settle_online(online, longest, now)
  redis.call('ZREMRANGEBYSCORE', online, '-inf', now)
  local furthest = now + tonumber(redis.call('GET', longest) or '0')
  for _, uid in ipairs(redis.call('ZRANGEBYSCORE', online, '(' .. decimal(furthest), '+inf', 'LIMIT', 0, AT_ONCE)) do
    redis.call('ZADD', online, decimal(furthest), uid)
  end
end

-- Say when the last session of a user ends.
local function note_online(sessions, online, uid, last)
  if last > 0 then
    redis.call('PEXPIREAT', sessions, decimal(last))
    redis.call('ZADD', online, decimal(last), uid)
  else
    redis.call('ZREM', online, uid)
  end
end

-- im_beat: open a session or keep it alive.
-- Keys: sessions, online, online_ms. Arguments: uid, session id, for how long it lives without another beat (ms), 1 to open it.
-- Answer: when it ends (ms), or EXPIRED.
local function beat(keys, args)
  local now, length = now_ms(), tonumber(args[3])
  local ids, last = living(keys[1], now)
  if args[4] ~= '1' and not ids[args[2]] then
    return 'EXPIRED'
  end
  if tonumber(redis.call('GET', keys[3]) or '0') < length then
    redis.call('SET', keys[3], args[3])
  end
  settle_online(keys[2], keys[3], now)
  local ends = now + length
  redis.call('HSET', keys[1], args[2], decimal(ends) .. ' ' .. args[3])
  note_online(keys[1], keys[2], args[1], math.max(last, ends))
  return ends
end

-- im_bye: end a session.
-- Keys: sessions, online. Arguments: uid, session id. Answer: how many sessions of the user still live.
local function bye(keys, args)
  redis.call('HDEL', keys[1], args[2])
  local _, last, count = living(keys[1], now_ms())
  note_online(keys[1], keys[2], args[1], last)
  return count
end

-- im_settle_online: let nobody be online for as long as the clock was wrong, also where no session beats. Workers call it.
-- Keys: online, online_ms. Arguments: none. Answer: how many are online.
local function settle(keys)
  local now = now_ms()
  settle_online(keys[1], keys[2], now)
  return redis.call('ZCARD', keys[1])
end

-- im_online: which users have a live session.
-- Keys: online. Arguments: uids, all of this partition; none to count them all. Answer: 1 or 0 for each, or {how many}.
local function online(keys, args)
  local now = now_ms()
  if #args == 0 then
    return {redis.call('ZCOUNT', keys[1], '(' .. now, '+inf')}
  end
  local answers = {}
  for i, uid in ipairs(args) do
    local ends = redis.call('ZSCORE', keys[1], uid)
    answers[i] = ends and tonumber(ends) > now and 1 or 0
  end
  return answers
end

-- im_online_uids: who has a live session, a page of them.
-- Keys: online. Arguments: how many to pass over, count. Answer: uids, in the order in which their sessions end.
local function online_uids(keys, args)
  return redis.call('ZRANGEBYSCORE', keys[1], '(' .. now_ms(), '+inf', 'LIMIT', args[1], args[2])
end

redis.register_function{function_name = 'im_beat', callback = beat, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_bye', callback = bye, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_settle_online', callback = settle, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_online', callback = online, flags = READS}
redis.register_function{function_name = 'im_online_uids', callback = online_uids, flags = READS}
