-- Live sessions.

-- im_beat: open a session or keep it alive.
-- Keys: sessions, online. Arguments: uid, session id, for how long it lives without another beat (ms), 1 to open it.
-- Answer: when it expires (ms), or EXPIRED.
local function beat(keys, args)
  local now = now_ms()
  redis.call('ZREMRANGEBYSCORE', keys[1], '-inf', now)
  redis.call('ZREMRANGEBYSCORE', keys[2], '-inf', now)
  if args[4] ~= '1' and not redis.call('ZSCORE', keys[1], args[2]) then
    return 'EXPIRED'
  end
  local expires = now + tonumber(args[3])
  redis.call('ZADD', keys[1], expires, args[2])
  -- The newest of those that live, also where it is before what was written: by a clock that has been put right since.
  local newest = redis.call('ZREVRANGE', keys[1], 0, 0, 'WITHSCORES')[2]
  redis.call('PEXPIREAT', keys[1], newest)
  redis.call('ZADD', keys[2], newest, args[1])
  return expires
end

-- im_bye: end a session.
-- Keys: sessions, online. Arguments: uid, session id. Answer: how many sessions of the user still live.
local function bye(keys, args)
  redis.call('ZREM', keys[1], args[2])
  redis.call('ZREMRANGEBYSCORE', keys[1], '-inf', now_ms())
  local newest = redis.call('ZREVRANGE', keys[1], 0, 0, 'WITHSCORES')
  if newest[2] then
    redis.call('ZADD', keys[2], newest[2], args[1])
  else
    redis.call('ZREM', keys[2], args[1])
  end
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
    local expires = redis.call('ZSCORE', keys[1], uid)
    answers[i] = expires and tonumber(expires) > now and 1 or 0
  end
  return answers
end

-- im_online_uids: who has a live session, a page of them.
-- Keys: online. Arguments: how many to pass over, count. Answer: uids, in the order in which their sessions expire.
local function online_uids(keys, args)
  return redis.call('ZRANGEBYSCORE', keys[1], '(' .. now_ms(), '+inf', 'LIMIT', args[1], args[2])
end

redis.register_function{function_name = 'im_beat', callback = beat, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_bye', callback = bye, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_online', callback = online, flags = READS}
redis.register_function{function_name = 'im_online_uids', callback = online_uids, flags = READS}
