-- The storm of receipts in figures, counted as the worker `receipts` confirms what it has told.
-- `storm` is a hash of a partition: acks, receipts, digests; and a ring of seconds, each at its number modulo RING:
-- "second messages acks", of what happened in that second.

local RING = 64

local function second_at(storm, second)
  local found = redis.call('HGET', storm, tostring(second % RING))
  local at, messages, acks = string.match(found or '', '^(%d+) (%d+) (%d+)$')
  return tonumber(at or '0'), tonumber(messages or '0'), tonumber(acks or '0')
end

-- Add what the arguments say from `a` on: acks, receipts, digests, then for each second: it, messages, acks.
local function count_storm(storm, args, a)
  local latest = math.floor(now_ms() / 1000)
  for i, name in ipairs({'acks', 'receipts', 'digests'}) do
    redis.call('HINCRBY', storm, name, args[a + i - 1])
  end
  for i = a + 3, #args, 3 do
    local second, messages, acks = tonumber(args[i]), tonumber(args[i + 1]), tonumber(args[i + 2])
    local at, messages_before, acks_before = second_at(storm, second)
    if at == second then
      messages, acks = messages + messages_before, acks + acks_before
    end
    if at <= second or at > latest then  -- else this is long ago; what is still to come was counted by a clock that stood ahead
      redis.call('HSET', storm, tostring(second % RING), string.format('%d %d %d', second, messages, acks))
    end
  end
end

-- im_storm: what was counted, and what happened lately: in so many seconds, the last of which ended a second ago, as what
-- happens is counted a moment later.
-- Keys: storm. Arguments: seconds. Answer: {acks, receipts, digests, messages lately, acks lately}.
local function storm(keys, args)
  local counts = redis.call('HMGET', keys[1], 'acks', 'receipts', 'digests')
  local ends, messages, acks = math.floor(now_ms() / 1000) - 1, 0, 0
  for second = ends - tonumber(args[1]), ends - 1 do
    local at, messages_then, acks_then = second_at(keys[1], second)
    if at == second then
      messages, acks = messages + messages_then, acks + acks_then
    end
  end
  return {tonumber(counts[1] or '0'), tonumber(counts[2] or '0'), tonumber(counts[3] or '0'), messages, acks}
end

redis.register_function{function_name = 'im_storm', callback = storm, flags = READS}
