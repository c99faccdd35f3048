-- Live sessions.
--
-- In `sessions` each session of a user has its end (ms) for a score. Those of one length are a class: the ends of class n stand n * CLASS
-- further, so that each class is in order by itself, and the member SEP n has minus that length for a score. Where all processes have the
-- same setting there is class 0 alone. So all that has to be known is at the edges of a class, and takes as long with thousands of sessions
-- of one user as with one.

local CLASS = 2 ^ 42  -- ms; no clock shows that much

-- Of what ends from one score to another, the time of now being `now`: drop what has ended, and cut back what ends after `furthest`.
-- Some at a time, so whoever reads looks at the scores anyway.
local function settle_ends(key, lowest, now, furthest, highest)
  local ended = redis.call('ZRANGEBYSCORE', key, lowest, decimal(now), 'LIMIT', 0, AT_ONCE)
  if ended[1] then
    redis.call('ZREM', key, unpack(ended))
  end
  for _, each in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. decimal(furthest), highest, 'LIMIT', 0, AT_ONCE)) do
    redis.call('ZADD', key, decimal(furthest), each)
  end
end

local function lives(sessions, id, now)
  local score = tonumber(redis.call('ZSCORE', sessions, id) or '-1')
  return score >= 0 and score % CLASS > now
end

-- The lengths of a user's sessions, by class.
local function lengths_of(sessions)
  local lengths = {}
  local said = redis.call('ZRANGEBYSCORE', sessions, '-inf', '(0', 'WITHSCORES')
  for i = 1, #said, 2 do
    local class = string.match(said[i], '^' .. SEP .. '(%d+)$')
    if class then
      lengths[tonumber(class)] = -tonumber(said[i + 1])
    end
  end
  return lengths
end

-- Let a session end at a time, which is its length from now.
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

-- When the last session of a user ends; 0 if none lives. Those that have ended are dropped.
local function last_end(sessions, lengths, now)
  local last = 0
  for class, length in pairs(lengths) do
    local zero, next_class = class * CLASS, '(' .. decimal((class + 1) * CLASS)
    settle_ends(sessions, decimal(zero), zero + now, zero + now + length, next_class)
    local latest = redis.call('ZRANGE', sessions, next_class, decimal(zero), 'BYSCORE', 'REV', 'LIMIT', 0, 1, 'WITHSCORES')[2]
    if latest then
      last = math.max(last, end_from(now, tonumber(latest) - zero, length))
    else
      redis.call('ZREM', sessions, SEP .. decimal(class))
    end
  end
  return last > now and last or 0
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
  if args[4] ~= '1' and not lives(keys[1], args[2], now) then
    return 'EXPIRED'
  end
  local longest = tonumber(redis.call('GET', keys[3]) or '0')
  if longest < length then
    redis.call('SET', keys[3], args[3])
    longest = length
  end
  settle_ends(keys[2], '-inf', now, now + longest, '+inf')
  local ends, lengths = now + length, lengths_of(keys[1])
  set_end(keys[1], lengths, args[2], ends, length)
  note_online(keys[1], keys[2], args[1], last_end(keys[1], lengths, now))
  return ends
end

-- im_bye: end a session.
-- Keys: sessions, online. Arguments: uid, session id. Answer: how many sessions of the user still live.
local function bye(keys, args)
  local now, count = now_ms(), 0
  redis.call('ZREM', keys[1], args[2])
  local lengths = lengths_of(keys[1])
  note_online(keys[1], keys[2], args[1], last_end(keys[1], lengths, now))
  for class in pairs(lengths) do
    local zero = class * CLASS
    count = count + redis.call('ZCOUNT', keys[1], '(' .. decimal(zero + now), '(' .. decimal(zero + CLASS))
  end
  return count
end

-- im_settle_online: let nobody be online for as long as the clock was wrong, also where no session beats. Workers call it.
-- Keys: online, online_ms. Arguments: none. Answer: how many are online.
local function settle(keys)
  local now = now_ms()
  settle_ends(keys[1], '-inf', now, now + tonumber(redis.call('GET', keys[2]) or '0'), '+inf')
  return redis.call('ZCOUNT', keys[1], '(' .. decimal(now), '+inf')
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
