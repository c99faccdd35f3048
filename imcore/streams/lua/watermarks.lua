-- Watermarks: up to where each process of the worker `persist` has stored a journal. They show when Redis has lost data.

-- im_repair_journal: let the next ids of a journal be after this one.
-- Keys: journal. Arguments: id. Answer: its last id.
define('im_repair_journal', DENY_OOM, function(keys, args)
  raise_last_id(keys[1], args[1])
  return last_id(keys[1])
end)

-- The field of the watermarks that changes with every repair.
local REPAIRED = SEP .. 'repaired'

local function is_below(watermarks, consumer, packed)
  return tonumber(redis.call('HGET', watermarks, consumer) or '0') < tonumber(packed)
end

local function raise_watermark(watermarks, consumer, packed)
  if is_below(watermarks, consumer, packed) then
    redis.call('HSET', watermarks, consumer, packed)
  end
end

-- Whether Redis has lost a watermark: one of the arguments from `first` on, which are consumers and packed ids in turn.
local function has_lost(watermarks, args, first)
  for i = first, #args, 2 do
    if is_below(watermarks, args[i], args[i + 1]) then
      return true
    end
  end
  return false
end

-- im_repair_set_watermark: a worker is about to store entries of a journal up to this one. It says so before it stores. So Redis
-- knows of everything in SQL, unless Redis has lost data.
-- Keys: watermarks, journal. Arguments: consumer, id of the newest entry, that packed, the REPAIRED field when the worker took
-- the entries, then for each process that has stored anything: its name, the packed id up to which it has.
-- Answer: OK; or OLDER if Redis has lost watermarks, GONE if it has lost these entries, LOCKED while a repair runs, REPAIRED if
-- one has run since. In these cases nothing may be stored.
define('im_repair_set_watermark', ALLOW_OOM, function(keys, args)
  local watermarks = keys[1]
  local _, is_locked = holder_of(watermarks, SEP)
  if is_locked then
    return 'LOCKED'
  end
  if (redis.call('HGET', watermarks, REPAIRED) or '') ~= args[4] then
    return 'REPAIRED'
  end
  if has_lost(watermarks, args, 5) then
    return 'OLDER'
  end
  if not redis.call('XRANGE', keys[2], args[2], args[2])[1] then
    return 'GONE'
  end
  raise_watermark(watermarks, args[1], args[3])
  return 'OK'
end)

-- im_repair_set_watermarks: set the watermarks of consumers (forward only), unless Redis has lost others.
-- Keys: watermarks. Arguments: how many to set, consumer and packed id of each, and the same of those that may be lost.
-- Answer: 1, or 0 if Redis has lost one.
define('im_repair_set_watermarks', ALLOW_OOM, function(keys, args)
  local last = 1 + 2 * tonumber(args[1])
  if has_lost(keys[1], args, last + 1) then
    return 0
  end
  for i = 2, last, 2 do
    raise_watermark(keys[1], args[i], args[i + 1])
  end
  return 1
end)

-- im_repair_lock_partition: lock a partition: no worker may store its entries for this time, nor ever the entries it took before.
-- Keys: watermarks. Arguments: token of the holder, ms (0: release). Answer: 1, or 0 while another process holds the lock.
define('im_repair_lock_partition', ALLOW_OOM, function(keys, args)
  local holder, is_locked = holder_of(keys[1], SEP)
  if is_locked and holder ~= args[1] then
    return 0
  end
  if args[2] == '0' then
    redis.call('HDEL', keys[1], SEP)
  else
    set_holder(keys[1], SEP, args[1], tonumber(args[2]))
    redis.call('HSET', keys[1], REPAIRED, decimal(now_ms()) .. ' ' .. args[1])  -- the same time may come twice
  end
  return 1
end)

-- im_repair_end_rebuild: mark a rebuild as ended, unless another one has begun since.
-- Keys: config. Arguments: field of the running rebuild, its token. Answer: 1 if it was that one.
define('im_repair_end_rebuild', ALLOW_OOM, function(keys, args)
  return redis.call('HGET', keys[1], args[1]) == args[2] and redis.call('HDEL', keys[1], args[1]) or 0
end)
