-- Marks: how far the worker `persist` has stored the journals, so that a Redis which has lost something shows it.

-- im_restore_journal: let a journal give ids after this one from now on.
-- Keys: journal. Arguments: id. Answer: the last id as it stands.
local function restore_journal(keys, args)
  raise_last_id(keys[1], args[1])
  return last_id(keys[1])
end

-- The field of the marks that changes whenever somebody mends.
local MENDED = SEP .. 'mended'

-- Until when nobody may store (ms), and by whose token.
local function held_until(marks, now)
  local ends, holder, length = string.match(redis.call('HGET', marks, SEP) or '', '^(%d+) (%S+) (%d+)$')
  if not ends then
    return 0
  end
  local cut = end_from(now, ends, length)
  if cut < tonumber(ends) then
    redis.call('HSET', marks, SEP, table.concat({decimal(cut), holder, length}, ' '))
  end
  return cut, holder
end

-- im_restore_mark: a worker is about to store entries of a journal up to this one. Before that it says so here, and so
-- Redis knows of everything that SQL has, unless Redis has lost what it knew.
-- Keys: marks, journal. Arguments: consumer, id of the newest entry, that packed, the state of mending when the worker
-- took the entries, then for each process that has stored anything: its name, packed id up to which it has.
-- Answer: OK; or OLDER if Redis has lost what it knew, GONE if it has lost these entries, HELD while somebody mends, MENDED
-- if somebody has mended since: nothing may be stored.
local function restore_mark(keys, args)
  local marks, consumer, packed = keys[1], args[1], args[3]
  local now = now_ms()
  if held_until(marks, now) > now then
    return 'HELD'
  end
  if (redis.call('HGET', marks, MENDED) or '') ~= args[4] then
    return 'MENDED'
  end
  for i = 5, #args, 2 do
    if tonumber(redis.call('HGET', marks, args[i]) or '0') < tonumber(args[i + 1]) then
      return 'OLDER'
    end
  end
  if not redis.call('XRANGE', keys[2], args[2], args[2])[1] then
    return 'GONE'
  end
  if tonumber(redis.call('HGET', marks, consumer) or '0') < tonumber(packed) then
    redis.call('HSET', marks, consumer, packed)
  end
  return 'OK'
end

-- im_restore_marks: set the marks of consumers (forward only), once Redis has again what SQL has.
-- Keys: marks. Arguments: consumer and packed id of each. Answer: how many went forward.
local function restore_marks(keys, args)
  local count = 0
  for i = 1, #args, 2 do
    if tonumber(redis.call('HGET', keys[1], args[i]) or '0') < tonumber(args[i + 1]) then
      redis.call('HSET', keys[1], args[i], args[i + 1])
      count = count + 1
    end
  end
  return count
end

-- im_restore_hold: let no worker store entries of this partition for so long, and none ever that it has taken before.
-- Keys: marks. Arguments: token of who holds it, ms (0: let them go on). Answer: 1, or 0 while somebody else holds it.
local function restore_hold(keys, args)
  local now = now_ms()
  local ends, holder = held_until(keys[1], now)
  if holder ~= args[1] and ends > now then
    return 0
  end
  if args[2] == '0' then
    redis.call('HDEL', keys[1], SEP)
  else
    local held = table.concat({decimal(now + tonumber(args[2])), args[1], args[2]}, ' ')
    redis.call('HSET', keys[1], SEP, held, MENDED, decimal(now) .. ' ' .. args[1])  -- the same time may come twice
  end
  return 1
end

-- im_restore_inherit: a process takes over the marks of others that are no more, if Redis has not lost any of them.
-- Keys: marks. Arguments: process, packed id of the newest of these marks, then each of them: process, packed id.
-- Answer: 1, or 0 if Redis has lost one.
local function restore_inherit(keys, args)
  for i = 3, #args, 2 do
    if tonumber(redis.call('HGET', keys[1], args[i]) or '0') < tonumber(args[i + 1]) then
      return 0
    end
  end
  restore_marks(keys, {args[1], args[2]})
  return 1
end

-- im_restore_forget: drop the marks of processes that are no more. Keys: marks. Arguments: consumers. Answer: how many.
local function restore_forget(keys, args)
  return redis.call('HDEL', keys[1], unpack(args))
end

-- im_rebuild_end: note that a rebuild is under way no more, unless another one has begun since.
-- Keys: config. Arguments: field of the rebuild that is under way, its token. Answer: 1 if it was that one.
local function rebuild_end(keys, args)
  return redis.call('HGET', keys[1], args[1]) == args[2] and redis.call('HDEL', keys[1], args[1]) or 0
end

redis.register_function{function_name = 'im_restore_journal', callback = restore_journal}
redis.register_function{function_name = 'im_restore_mark', callback = restore_mark, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_restore_marks', callback = restore_marks, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_restore_hold', callback = restore_hold, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_restore_inherit', callback = restore_inherit, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_restore_forget', callback = restore_forget, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_rebuild_end', callback = rebuild_end, flags = WRITES_LITTLE}
