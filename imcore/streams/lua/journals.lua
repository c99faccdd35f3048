-- Journals, as workers take and confirm their entries; dead letters. How often an entry has failed that is not done stands in
-- the hash `failures` of its partition, by kind SEP id.

local TRIM_AT_ONCE = 10000

-- Where the entries of a journal begin that some kind of worker has not done. All kinds that follow it count, or, with
-- `only`, these. Returns nil if one of these has not begun.
local function lowest_undone(journal, only, kinds)
  local missing, lowest_ms, lowest_n = {}, nil, nil
  for _, kind in ipairs(kinds) do
    missing[kind] = true
  end
  if redis.call('EXISTS', journal) == 0 then
    return nil
  end
  for _, fields in ipairs(redis.call('XINFO', 'GROUPS', journal)) do
    local info = {}
    for i = 1, #fields, 2 do
      info[fields[i]] = fields[i + 1]
    end
    if missing[info.name] or not only then
      missing[info.name] = nil
      local ms, n = parts_of(info['last-delivered-id'])
      n = n + 1
      if info.pending > 0 then
        ms, n = parts_of(redis.call('XPENDING', journal, info.name)[2])
      end
      if not lowest_ms or ms < lowest_ms or ms == lowest_ms and n < lowest_n then
        lowest_ms, lowest_n = ms, n
      end
    end
  end
  if not lowest_ms or next(missing) then
    return nil
  end
  return string.format('%.0f-%.0f', lowest_ms, lowest_n)
end

-- im_follow: let a kind of worker see a journal, from its first entry on. Again: nothing.
-- Keys: journal. Arguments: kind. Answer: 1 if it is new.
local function follow(keys, args)
  local answer = redis.pcall('XGROUP', 'CREATE', keys[1], args[1], '0', 'MKSTREAM')
  if not answer['err'] then
    return 1
  end
  if string.find(tostring(answer['err']), 'BUSYGROUP', 1, true) then
    return 0
  end
  return answer
end

-- im_take: entries of a journal for a consumer, without waiting.
-- Keys: journal. Arguments: kind, consumer, '>' for new entries or, for those it has taken and not done, the id that
-- they come after, count.
-- Answer: entries; one that was taken and is no longer in the journal has no fields.
local function take(keys, args)
  local found = redis.call('XREADGROUP', 'GROUP', args[1], args[2], 'COUNT', args[4], 'STREAMS', keys[1], args[3])
  if not found or not found[1] then
    return {}
  end
  return type(found[1]) == 'table' and found[1][2] or found[2]  -- fakeredis answers {key, entries} without a list around
end

-- im_entries: a page of a journal or of dead letters, oldest first, without taking them.
-- Keys: either. Arguments: first id, last id (XRANGE forms), at most so many. Answer: {entries, 1 if others may come after these else 0}.
local function entries(keys, args)
  return page_of(keys[1], args[1], args[2], tonumber(args[3]))
end

-- im_done: entries are handled. Who has told senders of them says what that came to, unless others have done them all.
-- Keys: journal, failures, storm. Arguments: kind, how many ids follow, these, and perhaps what `count_storm` takes.
-- Answer: how many of them were still open.
local function done(keys, args)
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
    count_storm(keys[3], args, last + 1)
  end
  return count
end

-- im_holders: which consumers have entries open.
-- Keys: journal. Arguments: kind. Answer: their names.
local function holders(keys, args)
  local names = {}
  for _, holder in ipairs(redis.call('XPENDING', keys[1], args[1])[4] or {}) do
    names[#names + 1] = holder[1]
  end
  return names
end

-- im_claim: give a consumer what another one, which is dead, has taken and not done.
-- Keys: journal. Arguments: kind, consumer, dead consumer, count. Answer: how many it got.
local function claim(keys, args)
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
end

-- im_fail: an entry could not be handled. It stays open, and the last of so many failures makes it a dead letter.
-- Keys: journal, dead letters, failures. Arguments: kind, id, reason, how many failures.
-- Answer: {failures so far, id of the dead letter or ''}; 0 failures if somebody has done it meanwhile.
local function fail(keys, args)
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
  for _, each in ipairs(entry and entry[2] or {}) do
    fields[#fields + 1] = each
  end
  local id = redis.call('XADD', keys[2], '*', unpack(fields))
  redis.call('HDEL', keys[3], field)
  redis.call('XACK', keys[1], args[1], args[2])
  return {failures, id}
end

-- im_requeue: put a dead letter back into the journal. The new entry says in `of` which one it was at first: when it
-- happened, and before what, stays as it was; and in `for` which kind of worker it is for: the others have done it, or have
-- a letter of their own.
-- Keys: dead letters, journal. Arguments: id. Answer: id of the new entry, NONE if there is no such dead letter, or EMPTY
-- if nothing is left of its entry.
local function requeue(keys, args)
  local letter = redis.call('XRANGE', keys[1], args[1], args[1])[1]
  if not letter then
    return 'NONE'
  end
  local said, fields, of = letter[2], {}, letter[2][6]
  if #said <= 8 then
    return 'EMPTY'
  end
  for i = 9, #said, 2 do
    if said[i] == 'of' then
      of = said[i + 1]
    elseif said[i] ~= 'for' then
      fields[#fields + 1] = said[i]
      fields[#fields + 1] = said[i + 1]
    end
  end
  local n = #fields
  fields[n + 1], fields[n + 2], fields[n + 3], fields[n + 4] = 'of', of, 'for', said[2]
  redis.call('XDEL', keys[1], args[1])
  return note(keys[2], unpack(fields))
end

-- im_drop: forget a dead letter.
-- Keys: dead letters. Arguments: id. Answer: 1 if it was there.
local function drop(keys, args)
  return redis.call('XDEL', keys[1], args[1])
end

-- Who holds a lease ("token length"), nil if nobody does. One without an end is of nobody's making, and ends, too.
local function holder_of(lease)
  local holder, length = string.match(redis.call('GET', lease) or '', '^(%S+) (%d+)$')
  if holder then
    local left = redis.call('PTTL', lease)
    if left < 0 or left > tonumber(length) then
      redis.call('PEXPIRE', lease, length)
    end
  end
  return holder
end

-- im_lease: the sign of life of a worker process; who holds it keeps it for so long, or gives it back.
-- Keys: lease. Arguments: token of the process, ms (0: give it back). Answer: 1, or 0 if another process holds it.
local function lease(keys, args)
  local holder = holder_of(keys[1])
  if holder and holder ~= args[1] then
    return 0
  end
  if args[2] == '0' then
    redis.call('DEL', keys[1])
  else
    redis.call('SET', keys[1], args[1] .. ' ' .. args[2], 'PX', args[2])
  end
  return 1
end

-- im_is_held: whether some process holds a lease. Keys: lease. Arguments: none. Answer: 1 or 0.
local function is_held(keys)
  return holder_of(keys[1]) and 1 or 0
end

-- im_undone: where the entries begin that some kind of worker has not done.
-- Keys: journal. Arguments: 1 if only these kinds count, 0 if all that follow the journal, then each kind that must have
-- begun. Answer: an id, or '' if one has not.
local function undone(keys, args)
  return lowest_undone(keys[1], args[1] == '1', {unpack(args, 2)}) or ''
end

-- im_trim_journal: drop the entries that every kind of worker has done, and what is left of their failures: an entry that
-- somebody has deleted by hand leaves some. The server stands still meanwhile: more than TRIM_AT_ONCE entries take more than one call,
-- and of more than AT_ONCE failures some are looked at, by chance: in the end all of them.
-- Keys: journal, failures. Arguments: each kind that must have begun. Answer: how many were dropped; 0 if none is left to drop.
local function trim_journal(keys, args)
  local lowest = lowest_undone(keys[1], false, args)
  if not lowest then
    return 0
  end
  for _, field in ipairs(redis.call('HRANDFIELD', keys[2], AT_ONCE) or {}) do
    if is_after(lowest, string.match(field, '[^' .. SEP .. ']+$')) then
      redis.call('HDEL', keys[2], field)
    end
  end
  local dropped = redis.call('XTRIM', keys[1], 'MINID', '~', lowest, 'LIMIT', TRIM_AT_ONCE)
  return dropped > 0 and dropped or redis.call('XTRIM', keys[1], 'MINID', lowest)
end

redis.register_function{function_name = 'im_follow', callback = follow, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_take', callback = take, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_entries', callback = entries, flags = READS}
redis.register_function{function_name = 'im_done', callback = done, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_holders', callback = holders, flags = READS}
redis.register_function{function_name = 'im_claim', callback = claim, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_fail', callback = fail, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_requeue', callback = requeue, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_drop', callback = drop, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_lease', callback = lease, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_is_held', callback = is_held, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_undone', callback = undone, flags = READS}
redis.register_function{function_name = 'im_trim_journal', callback = trim_journal, flags = WRITES_LITTLE}
