-- Live sessions.
--
-- In `sessions` each session of a user is scored by its end (ms). Sessions of one length are a class: the ends of class n are
-- n * CLASS higher, so each class is in order by itself, and the member SEP n is scored by the negative length. Where all
-- processes have the same setting there is class 0 only. So everything of interest is at the edges of a class, and one user's
-- thousands of sessions cost as much as one.

local CLASS = 2 ^ 42  -- ms; no clock shows that much

-- Cut ends after `furthest` down to it, up to a score. At most MAX_UNPACKED, so readers must check the scores anyway.
local function cut_ends(key, furthest, highest)
  for _, each in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. decimal(furthest), highest, 'LIMIT', 0, MAX_UNPACKED)) do
    redis.call('ZADD', key, decimal(furthest), each)
  end
end

-- In a range of scores, at the time `now`: drop what has ended, at most MAX_UNPACKED, and cut ends.
local function expire_ends(key, lowest, now, furthest, highest)
  local ended = redis.call('ZRANGEBYSCORE', key, lowest, decimal(now), 'LIMIT', 0, MAX_UNPACKED)
  if ended[1] then
    redis.call('ZREM', key, unpack(ended))
  end
  cut_ends(key, furthest, highest)
end

local function is_alive(sessions, id, now)
  local score = tonumber(redis.call('ZSCORE', sessions, id) or '-1')
  return score >= 0 and score % CLASS > now
end

-- The lengths of a user's sessions, by class.
local function lengths_of(sessions)
  local lengths = {}
  local members = redis.call('ZRANGEBYSCORE', sessions, '-inf', '(0', 'WITHSCORES')
  for i = 1, #members, 2 do
    local class = string.match(members[i], '^' .. SEP .. '(%d+)$')
    if class then
      lengths[tonumber(class)] = -tonumber(members[i + 1])
    end
  end
  return lengths
end

-- Set the end of a session, which is its length from now.
local function set_end(sessions, lengths, id, ends, length)
  local class = 0
  while lengths[class] and lengths[class] ~= length do
    class = class + 1
  end
  if not lengths[class] then
    lengths[class] = length
    redis.call('ZADD', sessions, decimal(-length), SEP .. decimal(class))
  end
  redis.call('ZADD', sessions, decimal(class * CLASS + ends), id)
end

-- The end of a user's last session, 0 without a live one. Drops those that have ended.
local function last_end(sessions, lengths, now)
  local last = 0
  for class, length in pairs(lengths) do
    local base, next_class = class * CLASS, '(' .. decimal((class + 1) * CLASS)
    expire_ends(sessions, decimal(base), base + now, base + now + length, next_class)
    local latest = redis.call('ZRANGE', sessions, next_class, decimal(base), 'BYSCORE', 'REV', 'LIMIT', 0, 1, 'WITHSCORES')[2]
    if latest then
      last = math.max(last, end_from(now, tonumber(latest) - base, length))
    else
      redis.call('ZREM', sessions, SEP .. decimal(class))
    end
  end
  return last > now and last or 0
end

-- Store the end of a user's last session; without a session, that they were seen last now.
local function set_online(sessions, online, last_seen, uid, last, now)
  if last > 0 then
    redis.call('PEXPIREAT', sessions, decimal(last))
    redis.call('ZADD', online, decimal(last), uid)
  elseif redis.call('ZREM', online, uid) == 1 then
    redis.call('ZADD', last_seen, decimal(now), uid)
  end
end

-- Drop users whose last session has ended, at most MAX_UNPACKED: they were seen last then. And cut ends that a wrong clock has set.
local function expire_online(online, last_seen, online_ms, now)
  local ended = redis.call('ZRANGEBYSCORE', online, '-inf', decimal(now), 'WITHSCORES', 'LIMIT', 0, MAX_UNPACKED)
  for i = 1, #ended, 2 do
    redis.call('ZADD', last_seen, ended[i + 1], ended[i])
    redis.call('ZREM', online, ended[i])
  end
  cut_ends(online, now + online_ms, '+inf')
end

-- im_heartbeat: open a session or keep it alive.
-- Keys: sessions, online, online_ms, last_seen, erasing, ended_sessions. Arguments: uid, session id, its length without another
-- heartbeat (ms), 1 to open it. Answer: its end (ms), or EXPIRED. Errors: ERASING, and ENDED for a session of an erased user.
define('im_heartbeat', ALLOW_OOM, function(keys, args)
  local now, length = now_ms(), tonumber(args[3])
  if args[4] == '1' then
    local problem = erasing_error(keys[5], {args[1]}, 1)
    if problem then
      return problem
    elseif redis.call('SISMEMBER', keys[6], args[2]) == 1 then
      return redis.error_reply('ENDED the user of this session was erased')
    end
  elseif not is_alive(keys[1], args[2], now) then
    return 'EXPIRED'
  end
  local longest = tonumber(redis.call('GET', keys[3]) or '0')
  if longest < length then
    redis.call('SET', keys[3], args[3])
    longest = length
  end
  expire_online(keys[2], keys[4], longest, now)
  local ends, lengths = now + length, lengths_of(keys[1])
  set_end(keys[1], lengths, args[2], ends, length)
  set_online(keys[1], keys[2], keys[4], args[1], last_end(keys[1], lengths, now), now)
  return ends
end)

-- im_end_session: end a session.
-- Keys: sessions, online, last_seen. Arguments: uid, session id. Answer: how many live sessions the user still has.
define('im_end_session', ALLOW_OOM, function(keys, args)
  local now, count = now_ms(), 0
  redis.call('ZREM', keys[1], args[2])
  local lengths = lengths_of(keys[1])
  set_online(keys[1], keys[2], keys[3], args[1], last_end(keys[1], lengths, now), now)
  for class in pairs(lengths) do
    local base = class * CLASS
    count = count + redis.call('ZCOUNT', keys[1], '(' .. decimal(base + now), '(' .. decimal(base + CLASS))
  end
  return count
end)

-- im_expire_online: drop users whose sessions have ended, and cut ends that a wrong clock has set; for workers, since no
-- heartbeat may come.
-- Keys: online, online_ms, last_seen. Arguments: none. Answer: how many are online.
define('im_expire_online', ALLOW_OOM, function(keys)
  local now = now_ms()
  expire_online(keys[1], keys[3], tonumber(redis.call('GET', keys[2]) or '0'), now)
  return redis.call('ZCOUNT', keys[1], '(' .. decimal(now), '+inf')
end)

-- im_online: which users have a live session.
-- Keys: online. Arguments: uids, all of this partition; without any, all users are counted. Answer: 1 or 0 for each, or {count}.
define('im_online', READ_ONLY, function(keys, args)
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
end)

-- im_online_uids: a page of the users with a live session.
-- Keys: online. Arguments: offset, count. Answer: uids, in the order in which their sessions end.
define('im_online_uids', READ_ONLY, function(keys, args)
  return redis.call('ZRANGEBYSCORE', keys[1], '(' .. now_ms(), '+inf', 'LIMIT', args[1], args[2])
end)

-- im_seen: whether a user has a live session, and when their last one ended.
-- Keys: online, last_seen. Arguments: uid. Answer: {1 or 0, ms, '' if none has ended or one is live}.
define('im_seen', READ_ONLY, function(keys, args)
  local now, ends = now_ms(), tonumber(redis.call('ZSCORE', keys[1], args[1]) or '0')
  if ends > now then
    return {1, ''}
  end
  local seen = math.max(ends, tonumber(redis.call('ZSCORE', keys[2], args[1]) or '0'))
  return {0, seen > 0 and decimal(math.min(seen, now)) or ''}
end)
