-- Messages: sent, withdrawn, pulled, trimmed.

-- So many own messages that an offset has passed are forgotten at once; the rest with the next message.
local MOST_FORGOTTEN = 200000

-- A table of client_msgids counts its age in steps, from one look at it to the next. Between two looks the clock may have jumped,
-- and nobody can tell that from a long wait. So a step, ahead or back, counts as one such part of the table's length at most: a
-- jump ahead makes a table older by one step, and the jump back makes it younger again. A table lives two steps longer than
-- promised, and so outlives two jumps ahead that nobody has put right. Where nobody looks for longer than a step, a table lives
-- longer still: it goes after 18 looks.
local ONCE_STEPS = 16
local SPARE_STEPS = 2

-- A shorter step is not written down, but added to the next one.
local SHORTEST_STEP = 1 / 8

local function once_step(length)
  return math.max(1, math.floor(length / ONCE_STEPS))
end

-- How long a table lives in which client_msgids count for so long.
local function once_life(length)
  return length + SPARE_STEPS * once_step(length)
end

-- How old a table of client_msgids is, as it counts, and for how long what is in it counts (ms); nil if it is not there. And whether
-- a step was written down.
local function age_of_once(once, now)
  local since, length, seen = string.match(redis.call('HGET', once, SEP) or '', '^(%d+) (%d+) (%d+)$')
  if not since then
    return redis.call('EXISTS', once) == 1 and 0 or nil, 0
  end
  since, length = tonumber(since), tonumber(length)
  local step, longest = now - tonumber(seen), once_step(length)
  local is_noted = step < 0 or step > longest * SHORTEST_STEP
  if is_noted then
    local counted = math.max(-longest, math.min(step, longest))
    since = math.min(since + step - counted, now)
    redis.call('HSET', once, SEP, table.concat({decimal(since), decimal(length), decimal(now)}, ' '))
  end
  return now - since, length, is_noted
end

-- Two tables of client_msgids take turns: once the newer one is as old as it lives, it becomes the older one, as soon as the one
-- before it is as old, too, and dropped. Whatever was noted in the newer one counts from then on for as long again.
-- Returns what age_of_once says of the newer one then.
local function rotate_idempotency(newer, older, now)
  local age, length, is_noted = age_of_once(newer, now)
  local is_due = not age or age >= once_life(length)
  if not is_due and not is_noted then
    return age, length
  end
  local older_age, older_length = age_of_once(older, now)
  if older_age and older_age >= once_life(older_length) then
    redis.call('UNLINK', older)
    older_age = nil
  end
  if age and is_due and not older_age then
    redis.call('RENAME', newer, older)
    redis.call('HSET', older, SEP, table.concat({decimal(now), decimal(length), decimal(now)}, ' '))
    age = nil
  end
  return age, length
end

-- Begin the newer table, whose age is given, if it is not there, and let what is in it count for `once_ms` at least.
local function begin_once(newer, once_ms, now, age, length)
  if not age or length < once_ms then
    redis.call('HSET', newer, SEP, table.concat({decimal(now - (age or 0)), decimal(once_ms), decimal(now)}, ' '))
  end
end

-- What the client_msgids of drafts, which are the arguments from the fourth on, have made before: by field (uid SEP
-- client_msgid), "msgid seq". And what keep_made wants to know of the newer table.
local function made_before(newer, older, args)
  local fields, made, once = {}, {}, {}
  for a = 4, #args, 4 do
    if args[a + 1] ~= '' then
      fields[#fields + 1] = args[a] .. SEP .. args[a + 1]
    end
  end
  if #fields > 0 then
    once.now = now_ms()
    once.age, once.length = rotate_idempotency(newer, older, once.now)
  end
  for first = 1, #fields, AT_ONCE do
    local last = math.min(first + AT_ONCE - 1, #fields)
    local new = redis.call('HMGET', newer, unpack(fields, first, last))
    local old = redis.call('HMGET', older, unpack(fields, first, last))
    for i = 1, #new do
      made[fields[first + i - 1]] = new[i] or old[i]
    end
  end
  return made, once
end

-- Keep what client_msgids have made now: fields and values in turn.
local function keep_made(newer, made, once_ms, once)
  if made[1] then
    begin_once(newer, once_ms, once.now, once.age, once.length)
  end
  for first = 1, #made, AT_ONCE do
    redis.call('HSET', newer, unpack(made, first, math.min(first + AT_ONCE - 1, #made)))
  end
end

-- A sender as one call of im_send sees them, or nil if they are no member; `id` is set once their offset has moved.
local function sender_of(senders, uid, keys)
  local offset = redis.call('ZSCORE', keys[3], uid)
  if offset then
    senders[uid] = {offset = tonumber(offset), span = redis.call('ZSCORE', keys[4], uid)}
  end
  return senders[uid]
end

-- How many of the first messages in a list of own ones an offset has passed, and how many there are.
local function own_passed(own, offset)
  local low, high = 0, redis.call('LLEN', own)
  local all = high
  if all == 0 or tonumber(redis.call('LINDEX', own, 0)) > offset then
    return 0, all
  end
  while low < high do  -- the first `low` are passed, those from `high` on are not
    local middle = math.floor((low + high) / 2)
    if tonumber(redis.call('LINDEX', own, middle)) <= offset then
      low = middle + 1
    else
      high = middle
    end
  end
  return low, all
end

-- Note an own message past the offset, and forget those that the offset has passed.
local function keep_own(own, packed, offset)
  local oldest = redis.call('LINDEX', own, 0)
  if oldest and tonumber(oldest) <= offset then
    local passed, all = own_passed(own, offset)
    if passed == all then
      redis.call('UNLINK', own)
    else
      redis.call('LTRIM', own, math.min(passed, MOST_FORGOTTEN), -1)
    end
  end
  redis.call('RPUSH', own, decimal(packed))
end

-- im_send: store messages, tell every online member, and note them for the workers.
-- A sender who was caught up stays caught up; otherwise the message waits in their `own` list.
-- A client_msgid that the sender has used before stores nothing and is answered with the message it made.
-- Keys: meta, stream, acked, joined, once newer, once older, journal, then the sender's own list for each message.
-- Arguments: gid, push channel, once_ms, then for each message: uid, client_msgid or '', sent_at in ms or '', content.
-- Answer: for each message {msgid, seq, 1 if it was known already}, or NOTMEMBER. Errors: NOGROUP.
local function send(keys, args)
  local seq, last = head_of(keys[1])
  if not seq then
    return no_group()
  end
  local gid, channel, once_ms = args[1], args[2], tonumber(args[3])
  local answers, senders, first_id, last_id, stored = {}, {}, nil, nil, 0
  local made, once = made_before(keys[5], keys[6], args)
  local news = {}
  for i = 8, #keys do
    local a = 4 * (i - 7)
    local uid, cid, sent, text = args[a], args[a + 1], args[a + 2], args[a + 3]
    local field = cid ~= '' and uid .. SEP .. cid
    local known = field and made[field]
    local sender = not known and (senders[uid] or sender_of(senders, uid, keys))
    if known then
      local id, number = string.match(known, '^(%S+) (%d+)$')
      answers[i - 7] = {id, tonumber(number), 1}
    elseif not sender then
      answers[i - 7] = 'NOTMEMBER'
    else
      local caught_up = sender.offset == last
      local id = last % PER_MS == PER_MS - 1 and unpack_id(last + 1) or '*'
      seq = seq + 1
      id = redis.call('XADD', keys[2], id, 'seq', seq, 'uid', uid, 'span', sender.span, 'cid', cid, 'sent', sent,
        'caught_up', caught_up and 1 or 0, 'text', text)
      last = pack(id)
      if caught_up then
        sender.offset, sender.id, sender.seq = last, id, seq
      else
        keep_own(keys[i], last, sender.offset)
      end
      if field then
        made[field] = id .. ' ' .. seq
        news[#news + 1], news[#news + 2] = field, made[field]
      end
      redis.call('SPUBLISH', channel, table.concat({'m', gid, id, seq, uid, cid, sent, text}, SEP))
      first_id, last_id, stored = first_id or id, id, stored + 1
      answers[i - 7] = {id, seq, 0}
    end
  end
  for uid, sender in pairs(senders) do
    if sender.id then
      redis.call('ZADD', keys[3], decimal(sender.offset), uid)
      redis.call('XGROUP', 'SETID', keys[2], uid, sender.id, 'ENTRIESREAD', sender.seq)
    end
  end
  keep_made(keys[5], news, once_ms, once)
  if stored > 0 then
    redis.call('HSET', keys[1], 'seq', seq, 'last', decimal(last))
    if stored == 1 then
      note(keys[7], 'kind', 'msg', 'gid', gid, 'first', first_id)
    else
      note(keys[7], 'kind', 'msg', 'gid', gid, 'first', first_id, 'last', last_id, 'n', stored)
    end
  end
  return answers
end

-- im_rotate_idempotency: let client_msgids go that count no more, also of a group in which nobody says anything.
-- Keys: once newer, once older. Arguments: none. Answer: how many tables are left.
local function rotate(keys)
  rotate_idempotency(keys[1], keys[2], now_ms())
  return redis.call('EXISTS', keys[1], keys[2])
end

-- im_recall: withdraw a message. A tombstone goes its way, through the stream to every member; the message keeps its seq,
-- its receipts stay answerable, and neither of the two is unread for anyone.
-- Keys: meta, stream, acked, joined, recalled, journal, own of the message's sender. Arguments: gid, push channel, uid
-- that recalls, packed msgid, the message's sender, 1 if the uid may recall what others have sent.
-- Answer: {msgid of the tombstone, its seq}, or NOMSG, FUTURE, TRIMMED, NOTSENDER, RECALLED, TOMBSTONE. Errors: NOGROUP.
local function recall(keys, args)
  local seq, last = head_of(keys[1])
  if not seq then
    return no_group()
  end
  local gid, uid, target, sender = args[1], args[3], args[4], args[5]
  local entry, problem = find(keys[2], keys[1], tonumber(target))
  if entry then
    sender = entry[2][4]
    if entry[2][15] then
      return 'TOMBSTONE'
    end
  elseif problem ~= 'TRIMMED' then
    return problem
  end
  if redis.call('ZSCORE', keys[5], target) then
    return 'RECALLED'
  end
  if uid ~= sender and args[6] ~= '1' then
    return 'NOTSENDER'
  end
  redis.call('LREM', keys[7], 0, target)  -- first, as not every role may do that
  local offset = tonumber(redis.call('ZSCORE', keys[3], uid))
  local caught_up = offset == last
  local id = last % PER_MS == PER_MS - 1 and unpack_id(last + 1) or '*'
  id = redis.call('XADD', keys[2], id, 'seq', seq + 1, 'uid', uid, 'span', redis.call('ZSCORE', keys[4], uid) or '',
    'cid', '', 'sent', '', 'caught_up', caught_up and 1 or 0, 'text', '', 'recalls', target)
  local packed = decimal(pack(id))
  redis.call('HSET', keys[1], 'seq', seq + 1, 'last', packed)
  redis.call('ZADD', keys[5], target, target, packed, packed)
  if caught_up then
    redis.call('ZADD', keys[3], packed, uid)
    redis.call('XGROUP', 'SETID', keys[2], uid, id, 'ENTRIESREAD', seq + 1)
  end
  note(keys[6], 'kind', 'msg', 'gid', gid, 'first', id)
  redis.call('SPUBLISH', args[2], table.concat({'r', gid, id, seq + 1, uid, target}, SEP))
  return {id, seq + 1}
end

-- Entries as members may see them: of a recalled message the text is gone, and a field more says so. A tombstone has a
-- field more that names what it recalls.
local function seen(entries, recalled)
  if #entries == 0 or redis.call('EXISTS', recalled) == 0 then
    return entries
  end
  for _, entry in ipairs(entries) do
    local values = entry[2]
    if is_message(entry) and not values[15] and redis.call('ZSCORE', recalled, decimal(pack(entry[1]))) then
      values[14], values[15], values[16] = '', 'recalled', '1'
    end
  end
  return entries
end

-- im_range: a page of a group's stream, oldest first, also what is no message.
-- Keys: stream, recalled. Arguments: first id, last id (XRANGE forms), at most so many. Answer: {entries, 1 if others may come after
-- these else 0}.
local function range(keys, args)
  local page = page_of(keys[1], args[1], args[2], tonumber(args[3]))
  seen(page[1], keys[2])
  return page
end

-- Messages from a position on, in the order of the command (XRANGE or XREVRANGE): at most so many, and so many bytes of text, but one in
-- any case. And whether others come after these.
local function messages_within(command, stream, from, to, count, bytes)
  local found, n, room, page_size = {}, 0, bytes, math.min(count, FIRST_PAGE)
  while true do
    local page = redis.call(command, stream, from, to, 'COUNT', page_size)
    for _, entry in ipairs(page) do
      if is_message(entry) then
        room = room - #entry[2][14]
        if n == count or (room < 0 and n > 0) then
          return found, true
        end
        n = n + 1
        found[n] = entry
      end
    end
    if #page < page_size or n == count then
      return found, n == count
    end
    from = '(' .. page[#page][1]
    page_size = math.min(count - n, fitting(n, bytes, room))
  end
end

-- Who of some members may not be handed what comes after a position to all alike: their numbers, each with NOTMEMBER, or
-- with the later position after which they joined.
local function apart_of(joined, args, first, start)
  local apart = {}
  for from = first, #args, AT_ONCE do
    local scores = redis.call('ZMSCORE', joined, unpack(args, from, math.min(from + AT_ONCE - 1, #args)))
    for i, score in ipairs(scores) do
      if not score or tonumber(score) > start then
        apart[#apart + 1] = from - first + i - 1
        apart[#apart + 1] = score or 'NOTMEMBER'
      end
    end
  end
  return apart
end

-- im_pull: what members have not acked, oldest first.
-- Keys: meta, stream, acked, joined, recalled. Arguments: packed msgid to start after or '' for the first uid's offset; at
-- most so many messages; at most so many bytes of text, but one message in any case; then the uids that all start there.
-- For one uid alone, a start before they joined is moved up to there.
-- Answer: {start, trimmed, seq of the newest, 1 if Redis has more after these else 0, entries, {number of a uid from 0 on,
-- and NOTMEMBER or the packed msgid after which they joined, for each who may not be handed all of that}}; entries up to
-- `trimmed` are in SQL only. For one uid alone NOTMEMBER. Errors: NOGROUP.
local function pull(keys, args)
  local meta = redis.call('HMGET', keys[1], 'seq', 'trimmed', 'last')
  if not meta[1] then
    return no_group()
  end
  local start, apart = args[1], {}
  if #args == 4 then
    local joined = redis.call('ZSCORE', keys[4], args[4])
    if not joined then
      return 'NOTMEMBER'
    elseif start == '' then
      start = redis.call('ZSCORE', keys[3], args[4])
    elseif tonumber(joined) > tonumber(start) then
      start = joined
    end
  else
    apart = apart_of(keys[4], args, 4, tonumber(start))
  end
  local entries, count = {}, tonumber(args[2])
  if tonumber(start) < tonumber(meta[2] or '0') then
    count = math.min(count, FIRST_PAGE)  -- there may be so many in SQL that these are asked for again
  end
  if #apart < 2 * (#args - 3) then
    local after = '(' .. unpack_id(tonumber(start))
    entries = messages_within('XRANGE', keys[2], after, '+', count, tonumber(args[3]))
  end
  local more = entries[1] and pack(entries[#entries][1]) < tonumber(meta[3]) and 1 or 0
  return {start, meta[2] or '0', tonumber(meta[1]), more, seen(entries, keys[5]), apart}
end

-- im_trim: drop the entries of a stream up to a message, which stays known as the trim point.
-- A group that somebody mends is left as it is.
-- Keys: meta, stream, mending. Arguments: gid, packed msgid. Answer: how many were dropped, or NOMSG, FUTURE, TRIMMED.
-- Errors: NOGROUP.
local function trim(keys, args)
  if redis.call('HGET', keys[3], args[1]) then
    return 0
  end
  local packed = tonumber(args[2])
  local entry, problem = find(keys[2], keys[1], packed)
  if problem == 'NOGROUP' then
    return no_group()
  elseif not entry then
    return problem
  end
  redis.call('HSET', keys[1], 'trimmed', args[2])
  return redis.call('XTRIM', keys[2], 'MINID', unpack_id(packed + 1))
end

redis.register_function{function_name = 'im_send', callback = send}
redis.register_function{function_name = 'im_rotate_idempotency', callback = rotate, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_recall', callback = recall, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_range', callback = range, flags = READS}
redis.register_function{function_name = 'im_pull', callback = pull, flags = READS}
redis.register_function{function_name = 'im_trim', callback = trim, flags = WRITES_LITTLE}
