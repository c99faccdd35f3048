-- How receipts were coalesced, counted as the worker `receipts` confirms its entries.
-- `coalescing` is a hash of a partition: acks, receipts, digests; and a ring of seconds, each in the field of its number modulo
-- RING: "second messages acks", for what happened in that second.

local RING = 64

local function counts_at(coalescing, second)
  local value = redis.call('HGET', coalescing, tostring(second % RING))
  local at, messages, acks = string.match(value or '', '^(%d+) (%d+) (%d+)$')
  return tonumber(at or '0'), tonumber(messages or '0'), tonumber(acks or '0')
end

-- Add the counts of the arguments from `a` on: acks, receipts, digests, then for each second: it, messages, acks.
local function add_coalescing(coalescing, args, a)
  local latest = math.floor(now_ms() / 1000)
  for i, name in ipairs({'acks', 'receipts', 'digests'}) do
    redis.call('HINCRBY', coalescing, name, args[a + i - 1])
  end
  for i = a + 3, #args, 3 do
    local second, messages, acks = tonumber(args[i]), tonumber(args[i + 1]), tonumber(args[i + 2])
    local at, messages_before, acks_before = counts_at(coalescing, second)
    if at == second then
      messages, acks = messages + messages_before, acks + acks_before
    end
    if at <= second or at > latest then  -- else it is too old; a second in the future was written by a clock that ran ahead
      redis.call('HSET', coalescing, tostring(second % RING), string.format('%d %d %d', second, messages, acks))
    end
  end
end

-- im_coalescing: all counts, and the messages and acks of the last seconds. The current second is left out, since its events
-- are counted a moment later.
-- Keys: coalescing. Arguments: seconds. Answer: {acks, receipts, digests, messages lately, acks lately}.
define('im_coalescing', READ_ONLY, function(keys, args)
  local counts = redis.call('HMGET', keys[1], 'acks', 'receipts', 'digests')
  local ends, messages, acks = math.floor(now_ms() / 1000) - 1, 0, 0
  for second = ends - tonumber(args[1]), ends - 1 do
    local at, messages_then, acks_then = counts_at(keys[1], second)
    if at == second then
      messages, acks = messages + messages_then, acks + acks_then
    end
  end
  return {tonumber(counts[1] or '0'), tonumber(counts[2] or '0'), tonumber(counts[3] or '0'), messages, acks}
end)
