-- Journals as workers read and confirm their entries; dead letters. The hash `failures` of a partition counts, by kind SEP id,
-- how often an open entry has failed.

local TRIM_AT_ONCE = 10000

-- The id from which on entries are not done by some kind of worker: any kind that reads the journal or, with `only`, these.
-- Nil if one of these has not begun.
local function lowest_undone(journal, only, kinds)
  local missing, lowest = {}, nil
  for _, kind in ipairs(kinds) do
    missing[kind] = true
  end
  if redis.call('EXISTS', journal) == 0 then
    return nil
  end
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', journal)) do
    local info = fields_of(group)
    if missing[info.name] or not only then
      missing[info.name] = nil
      local ms, n = parts_of(info['last-delivered-id'])
      local undone = info.pending > 0 and redis.call('XPENDING', journal, info.name)[2] or string.format('%.0f-%.0f', ms, n + 1)
      if not lowest or is_after(lowest, undone) then
        lowest = undone
      end
    end
  end
  return not next(missing) and lowest or nil
end

-- im_create_consumer_group: let a kind of worker read a journal, from its first entry on. Again: nothing.
-- Keys: journal. Arguments: kind. Answer: 1 if it is new.
define('im_create_consumer_group', ALLOW_OOM, function(keys, args)
  local answer = redis.pcall('XGROUP', 'CREATE', keys[1], args[1], '0', 'MKSTREAM')
  if not answer['err'] then
    return 1
  end
  return string.find(tostring(answer['err']), 'BUSYGROUP', 1, true) and 0 or answer
end)

-- im_done: confirm entries. A worker that has published receipts reports the counts, unless others have confirmed all entries.
-- Keys: journal, failures, coalescing. Arguments: kind, how many ids follow, these, and optionally the arguments of
-- `add_coalescing`. Answer: how many of them were still open.
define('im_done', ALLOW_OOM, function(keys, args)
  local last = 2 + tonumber(args[2])
  if redis.call('EXISTS', keys[2]) == 1 then
    local fields = {}
    for i = 3, last do
      fields[i - 2] = args[1] .. SEP .. args[i]
    end
    redis.call('HDEL', keys[2], unpack(fields))
  end
  local count = redis.call('XACK', keys[1], args[1], unpack(args, 3, last))
  if args[last + 1] and count > 0 then
    add_coalescing(keys[3], args, last + 1)
  end
  return count
end)

-- im_claim: assign the open entries of a dead consumer to another one.
-- Keys: journal. Arguments: kind, consumer, dead consumer, count. Answer: how many it got.
define('im_claim', ALLOW_OOM, function(keys, args)
  local ids = {}
  for _, pending in ipairs(redis.call('XPENDING', keys[1], args[1], '-', '+', args[4], args[3])) do
    ids[#ids + 1] = pending[1]
  end
  if #ids == 0 then
    return 0
  end
  ids[#ids + 1] = 'JUSTID'
  redis.call('XCLAIM', keys[1], args[1], args[2], 0, unpack(ids))
  return #ids - 1
end)

-- im_fail: count a failure of an entry. It stays open; after the last allowed failure it becomes a dead letter.
-- Keys: journal, dead, failures. Arguments: kind, id, reason, how many failures are allowed.
-- Answer: {failures so far, id of the dead letter or ''}; 0 failures if it has been done meanwhile.
define('im_fail', ALLOW_OOM, function(keys, args)
  if not redis.call('XPENDING', keys[1], args[1], args[2], args[2], 1)[1] then
    return {0, ''}
  end
  local field = args[1] .. SEP .. args[2]
  local failures = redis.call('HINCRBY', keys[3], field, 1)
  if failures < tonumber(args[4]) then
    return {failures, ''}
  end
  local entry = redis.call('XRANGE', keys[1], args[2], args[2])[1]
  local fields = {'dead_worker', args[1], 'dead_reason', args[3], 'dead_entry', args[2], 'dead_deliveries', failures}
  for _, value in ipairs(entry and entry[2] or {}) do
    fields[#fields + 1] = value
  end
  local id = redis.call('XADD', keys[2], '*', unpack(fields))
  redis.call('HDEL', keys[3], field)
  redis.call('XACK', keys[1], args[1], args[2])
  return {failures, id}
end)

-- im_requeue: put a dead letter back into the journal. The new entry names the first one in `of`, whose time and order it keeps,
-- and its kind of worker in `for`: the others have done it, or have a dead letter of their own.
-- Keys: dead, journal. Arguments: id. Answer: id of the new entry, NONE without such a dead letter, or EMPTY if nothing is left
-- of its entry.
define('im_requeue', ALLOW_OOM, function(keys, args)
  local letter = redis.call('XRANGE', keys[1], args[1], args[1])[1]
  if not letter then
    return 'NONE'
  end
  local letter_fields, fields, of = letter[2], {}, letter[2][6]
  if #letter_fields <= 8 then
    return 'EMPTY'
  end
  for i = 9, #letter_fields, 2 do
    if letter_fields[i] == 'of' then
      of = letter_fields[i + 1]
    elseif letter_fields[i] ~= 'for' then
      fields[#fields + 1] = letter_fields[i]
      fields[#fields + 1] = letter_fields[i + 1]
    end
  end
  local n = #fields
  fields[n + 1], fields[n + 2], fields[n + 3], fields[n + 4] = 'of', of, 'for', letter_fields[2]
  redis.call('XDEL', keys[1], args[1])
  return append_entry(keys[2], unpack(fields))
end)

-- The holder of a lease ("token length"), nil if it is free. A lease without an end was written by hand, and gets one.
local function lease_holder(lease)
  local holder, length = string.match(redis.call('GET', lease) or '', '^(%S+) (%d+)$')
  if holder then
    local left = redis.call('PTTL', lease)
    if left < 0 or left > tonumber(length) then
      redis.call('PEXPIRE', lease, length)
    end
  end
  return holder
end

-- im_lease: take, renew or release the lease of a process.
-- Keys: lease. Arguments: token of the process, ms (0: release). Answer: 1, or 0 if another process holds it.
define('im_lease', ALLOW_OOM, function(keys, args)
  local holder = lease_holder(keys[1])
  if holder and holder ~= args[1] then
    return 0
  end
  if args[2] == '0' then
    redis.call('DEL', keys[1])
  else
    redis.call('SET', keys[1], args[1] .. ' ' .. args[2], 'PX', args[2])
  end
  return 1
end)

-- im_is_held: whether a process holds a lease. Keys: lease. Arguments: none. Answer: 1 or 0.
define('im_is_held', ALLOW_OOM, function(keys)
  return lease_holder(keys[1]) and 1 or 0
end)

-- im_undone: the id from which on entries are not done by some kind of worker.
-- Keys: journal. Arguments: 1 if only these kinds count, 0 for all that read the journal, then each kind that must have begun.
-- Answer: an id, or '' if one has not begun.
define('im_undone', READ_ONLY, function(keys, args)
  return lowest_undone(keys[1], args[1] == '1', {unpack(args, 2)}) or ''
end)

-- im_trim_journal: drop the entries that every kind of worker has done, and failures of entries that were deleted by hand.
-- The server is blocked meanwhile, so more than TRIM_AT_ONCE entries need more than one call, and of more than MAX_UNPACKED
-- failures a random sample is checked: in the end all of them.
-- Keys: journal, failures. Arguments: each kind that must have begun. Answer: how many were dropped; 0 if none is left to drop.
define('im_trim_journal', ALLOW_OOM, function(keys, args)
  local lowest = lowest_undone(keys[1], false, args)
  if not lowest then
    return 0
  end
  for _, field in ipairs(redis.call('HRANDFIELD', keys[2], MAX_UNPACKED) or {}) do
    if is_after(lowest, string.match(field, '[^' .. SEP .. ']+$')) then
      redis.call('HDEL', keys[2], field)
    end
  end
  local dropped = redis.call('XTRIM', keys[1], 'MINID', '~', lowest, 'LIMIT', TRIM_AT_ONCE)
  return dropped > 0 and dropped or redis.call('XTRIM', keys[1], 'MINID', lowest)
end)
