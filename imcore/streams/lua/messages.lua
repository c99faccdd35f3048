-- Messages: send, recall, pull, trim.

-- At most this many acked own messages are dropped at once; the rest with the next message.
local MAX_TRIMMED_OWN = 200000

-- The state of a sender within one call of im_send, nil for no member. `id` is set once their offset has moved; `mark` is that of
-- their bookmark, 0 without one.
local function load_sender(senders, uid, keys, has_bookmarks)
  local offset = redis.call('ZSCORE', keys[3], uid)
  if offset then
    local _, mark = parse_bookmark(has_bookmarks and redis.call('HGET', keys[9], uid))
    senders[uid] = {offset = tonumber(offset), span = redis.call('ZSCORE', keys[4], uid), mark = mark}
  end
  return senders[uid]
end

local SHORT_LIST = 32  -- to read it whole takes less time than to look for a place in it

-- How many of the first messages in an own_unacked list an offset has passed, and the length of the list.
local function count_acked_own(own, offset)
  local messages, low = redis.call('LRANGE', own, 0, SHORT_LIST), 0
  if #messages <= SHORT_LIST then
    while messages[low + 1] and tonumber(messages[low + 1]) <= offset do
      low = low + 1
    end
    return low, #messages
  end
  local high = redis.call('LLEN', own)
  local all = high
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

-- Append an own message past the offset or a mark, and drop those up to a floor, which both have passed.
local function append_own_unacked(own, packed, floor)
  local oldest = redis.call('LINDEX', own, 0)
  if oldest and tonumber(oldest) <= floor then
    local passed, all = count_acked_own(own, floor)
    if passed == all then
      redis.call('UNLINK', own)
    else
      redis.call('LTRIM', own, math.min(passed, MAX_TRIMMED_OWN), -1)
    end
  end
  redis.call('RPUSH', own, decimal(packed))
end

-- How many recipients a stored message has: the members of that moment, without its sender.
local function count_recipients(joined, left, id)
  local before = '(' .. decimal(pack(id))
  return redis.call('ZCOUNT', joined, '-inf', before) - redis.call('ZCOUNT', left, '-inf', before) - 1
end

-- Publish messages of one call in one push, since each costs server and gateways time. `heads` has 7 values for each: msgid, seq,
-- uid, client_msgid, sent_at, and the bytes of meta and text; `bodies` has its meta and text.
local function publish(channel, gid, process, stored, heads, bodies)
  if stored == 1 then
    redis.call('SPUBLISH', channel, table.concat({'m', gid, heads[1], heads[2], process, heads[3], heads[4], heads[5], bodies[1],
      bodies[2]}, SEP))
  elseif stored > 1 then
    redis.call('SPUBLISH', channel, table.concat({'b', gid, process, stored, table.concat(heads, SEP), table.concat(bodies)}, SEP))
  end
end

-- im_send: store messages, publish them to the online members, and append them to the journal.
-- A sender who was caught up stays caught up; otherwise the message is appended to their own_unacked list.
-- A client_msgid that the sender has used before stores nothing; it is answered with the message that it made.
-- Keys: meta, stream, acked, joined, left, idempotency_newer, idempotency_older, journal, bookmarks, then own_unacked of each
-- message's sender.
-- Arguments: gid, push channel, idempotency_ms, then for each message: uid, client_msgid or '', sent_at in ms or '', meta as JSON or
-- '', content.
-- Answer: if all were stored, {their msgids with spaces between, seq of the first, number of recipients}, which takes less time; else
-- for each message {msgid, seq, number of its recipients, 1 if it was stored before}, or NOTMEMBER. Errors: NOGROUP.
define('im_send', DENY_OOM, function(keys, args)
  local head = redis.call('HMGET', keys[1], 'seq', 'last', 'term1')
  local seq, last = tonumber(head[1]), tonumber(head[2])
  if not seq then
    return no_group()
  end
  local gid, channel, idempotency_ms, process, last_before = args[1], args[2], tonumber(args[3]), process_name(), last
  local answers, senders, ids, stored, heads, bodies = {}, {}, {}, 0, {}, {}
  local known, state = known_client_msgids(keys[6], keys[7], args)
  local new_pairs, recipients = {}, member_count(keys[3], keys[5]) - 1
  local has_bookmarks = redis.call('EXISTS', keys[9]) == 1
  for number = 1, #keys - 9 do
    local a = 5 * number - 1
    local uid, cid, sent, meta, text = args[a], args[a + 1], args[a + 2], args[a + 3], args[a + 4]
    local field = cid ~= '' and uid .. SEP .. cid
    local made = field and known[field]
    local sender = not made and (senders[uid] or load_sender(senders, uid, keys, has_bookmarks))
    if made then
      local id, made_seq = string.match(made, '^(%S+) (%d+)$')
      answers[number] = {id, tonumber(made_seq), count_recipients(keys[4], keys[5], id), 1}
    elseif not sender then
      answers[number] = 'NOTMEMBER'
    else
      local caught_up = sender.offset == last
      local id = last % PER_MS == PER_MS - 1 and unpack_id(last + 1) or '*'
      seq = seq + 1
      id = redis.call('XADD', keys[2], id, 'seq', seq, 'uid', uid, 'span', sender.span, 'cid', cid, 'sent', sent,
        'caught_up', caught_up and 1 or 0, 'text', text, unpack(meta ~= '' and {'meta', meta} or {}))
      last = pack(id)
      if caught_up then
        sender.offset, sender.id, sender.seq = last, id, seq
      end
      if not caught_up or sender.mark > 0 then
        append_own_unacked(keys[9 + number], last, own_floor(sender.offset, sender.mark))
      end
      if field then
        known[field] = id .. ' ' .. seq
        new_pairs[#new_pairs + 1], new_pairs[#new_pairs + 2] = field, known[field]
      end
      local h, b = 7 * stored, 2 * stored
      heads[h + 1], heads[h + 2], heads[h + 3], heads[h + 4] = id, seq, uid, cid
      heads[h + 5], heads[h + 6], heads[h + 7] = sent, #meta, #text
      bodies[b + 1], bodies[b + 2] = meta, text
      stored = stored + 1
      ids[stored] = id
      answers[number] = {id, seq, recipients, 0}
    end
  end
  publish(channel, gid, process, stored, heads, bodies)
  for uid, sender in pairs(senders) do
    if sender.id then
      redis.call('ZADD', keys[3], decimal(sender.offset), uid)
      redis.call('XGROUP', 'SETID', keys[2], uid, sender.id, 'ENTRIESREAD', sender.seq)
    end
  end
  store_client_msgids(keys[6], new_pairs, idempotency_ms, state)
  if stored > 0 then
    redis.call('HSET', keys[1], 'seq', seq, 'last', decimal(last))
    if not is_own_term(head[3]) then
      begin_term(keys[1], last_before, pack(ids[1]))
    end
    if stored == 1 then
      append_entry(keys[8], 'kind', 'msg', 'gid', gid, 'first', ids[1])
    else
      append_entry(keys[8], 'kind', 'msg', 'gid', gid, 'first', ids[1], 'last', ids[stored], 'n', stored)
    end
  end
  if stored == #keys - 9 and stored > 0 then
    return {table.concat(ids, ' '), seq - stored + 1, recipients}
  end
  return answers
end)

-- im_barrier: write after messages, without a change. What a replica or a file has of this, it has of the messages, too.
-- Keys: meta, stream. Arguments: packed msgids. Answer: for each 1 if it is here or was trimmed, 0 if it is unknown.
define('im_barrier', ALLOW_OOM, function(keys, args)
  local seq, trimmed = unpack(redis.call('HMGET', keys[1], 'seq', 'trimmed'))
  if seq then
    redis.call('HSET', keys[1], 'seq', seq)
  end
  local answers = {}
  for number, packed in ipairs(args) do
    local id = unpack_id(tonumber(packed))
    local is_known = tonumber(packed) <= tonumber(trimmed or '0') or redis.call('XRANGE', keys[2], id, id)[1]
    answers[number] = seq and is_known and 1 or 0
  end
  return answers
end)

-- im_recall: recall a message. A tombstone goes through the stream to every member. The message keeps its seq and its
-- receipts, and neither message nor tombstone is unread for anyone.
-- Keys: meta, stream, acked, joined, recalled, journal, own_unacked of the message's sender, rewrites, erasing. Arguments: gid, push
-- channel, uid that recalls, packed msgid, the message's sender, 1 if the uid may recall messages of others.
-- Answer: {msgid of the tombstone, its seq}, or NOMSG, FUTURE, TRIMMED, NOTSENDER, RECALLED, TOMBSTONE. Errors: NOGROUP, ERASING.
define_for_group('im_recall', ALLOW_OOM, function(keys, args, seq, last, trimmed)
  local gid, uid, target, sender = args[1], args[3], args[4], args[5]
  local is_erasing = erasing_error(keys[9], {uid}, 1)
  if is_erasing then
    return is_erasing
  end
  local entry, problem = find_message(keys[2], tonumber(target), last, trimmed)
  if entry then
    sender = entry[2][4]
    if entry[2][15] == 'recalls' then
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
  if not is_own_term(redis.call('HGET', keys[1], 'term1')) then
    begin_term(keys[1], last, pack(id))
  end
  redis.call('ZADD', keys[5], target, target, packed, packed)
  redis.call('ZADD', keys[8], 'NX', now_ms(), gid)  -- its text waits for a rewrite of the stream
  if caught_up then
    redis.call('ZADD', keys[3], packed, uid)
    redis.call('XGROUP', 'SETID', keys[2], uid, id, 'ENTRIESREAD', seq + 1)
  end
  append_entry(keys[6], 'kind', 'msg', 'gid', gid, 'first', id)
  redis.call('SPUBLISH', args[2], table.concat({'r', gid, id, seq + 1, process_name(), uid, target}, SEP))
  return {id, seq + 1}
end)

-- Entries as members may see them: a recalled message has an empty text and, instead of its meta, the field `recalled`. `erased` is
-- the group's field of that name.
local function hide_recalled(entries, recalled, erased)
  if erased then
    hide_erased(entries, erased)
  end
  if #entries == 0 or redis.call('EXISTS', recalled) == 0 then
    return entries
  end
  for _, entry in ipairs(entries) do
    local values = entry[2]
    if is_message(entry) and values[15] ~= 'recalls' and redis.call('ZSCORE', recalled, decimal(pack(entry[1]))) then
      values[14], values[15], values[16] = '', 'recalled', '1'
    end
  end
  return entries
end

-- im_range: a page of a group's stream, a journal or the dead letters, oldest first, with all kinds of entries.
-- Keys: that, and recalled and meta for a group's stream. Arguments: first id, last id (XRANGE forms), limit.
-- Answer: {entries, 1 if more may follow else 0}.
define('im_range', READ_ONLY, function(keys, args)
  local entries, more = read_page('XRANGE', keys[1], args[1], args[2], tonumber(args[3]), PAGE_BYTES, true)
  if keys[2] then
    hide_recalled(entries, keys[2], redis.call('HGET', keys[3], 'erased'))
  end
  return {entries, more and 1 or 0}
end)

-- The members who may not get all messages after a position: for each their number, then NOTMEMBER or the later position
-- after which they joined.
local function apart_of(joined, args, first, start)
  local apart = {}
  for i, score in ipairs(call_for_all('ZMSCORE', joined, args, first)) do
    if not score or tonumber(score) > start then
      apart[#apart + 1] = i - 1
      apart[#apart + 1] = score or 'NOTMEMBER'
    end
  end
  return apart
end

-- The packed msgid of the last message whose seq is at most a number: one between two messages, the first of which is one.
local function position_of_seq(stream, seq, low, high)
  while low < high do
    local middle = low + math.floor((high - low + 1) / 2)
    local entry = first_message('XRANGE', stream, unpack_id(middle), '+')
    if entry and tonumber(entry[2][2]) <= seq then
      low = pack(entry[1])
    else
      high = middle - 1
    end
  end
  return low
end

-- Leave out all messages after a start but the newest `most`. Returns the new start, and what was left out (see im_pull), nil
-- for nothing. Its cost does not depend on how many they are.
local function leave_out(stream, start, seq, last, trimmed, most)
  local first = first_message('XRANGE', stream, '(' .. unpack_id(math.max(start, trimmed)), '+')
  local before_first = first and tonumber(first[2][2]) - 1 or seq  -- the seq of the last message before it
  if before_first < seq - most then
    local begin = position_of_seq(stream, seq - most, pack(first[1]), last)
    return decimal(begin), {decimal(start), decimal(pack(first[1]))}
  elseif start < trimmed then
    return decimal(start), {decimal(start), '', decimal(most - seq + before_first)}
  end
  return decimal(start)
end

-- im_pull: the messages that members have not acked, oldest first.
-- Keys: meta, stream, acked, joined, recalled, bookmarks. Arguments: packed msgid to start after, or '' for where the first uid has
-- read up to; limit; limit of bytes of text, exceeded by the first message only; how many of the newest messages to begin with at
-- most, '' for all; packed msgid of a message that a client was handed, '' for none, and the process that has handed it (see
-- `parting`); then the uids that all start there.
-- What is read in private counts as read, except where messages may be left out: what is left out shows in what is delivered.
-- For a single uid, a start before they joined is moved up to there.
-- Answer: {start, trimmed, seq of the newest, 1 if Redis has more after these else 0, entries, {number of a uid from 0 on, then
-- NOTMEMBER or the packed msgid after which they joined, for each uid who may not get all of that}, {what is left out}, the process
-- that answers, '' or where what the client was handed and what is here part: then there are no entries};
-- messages up to `trimmed` are in SQL only. For a single uid that is no member: NOTMEMBER. Errors: NOGROUP.
-- What is left out: nothing, or the start before, and the first message left out that Redis has; the new start is the last one.
-- If only SQL knows that, the start stays, and the answer has '' and how many of SQL's newest messages are not left out.
define_for_group('im_pull', READ_ONLY, function(keys, args, seq, last, trimmed, erased)
  local start, apart, left_out = args[1], {}, nil
  local parts = args[5] ~= '' and parting(keys[1], keys[2], tonumber(args[5]), args[6], last, tonumber(trimmed))
  if parts then
    return {start, trimmed, seq, 0, {}, {}, {}, process_name(), decimal(math.min(parts, tonumber(start)))}
  end
  if #args == 7 then
    local joined = redis.call('ZSCORE', keys[4], args[7])
    if not joined then
      return 'NOTMEMBER'
    elseif start == '' then
      local private = args[4] == '' and parse_bookmark(redis.call('HGET', keys[6], args[7])) or 0
      start = decimal(math.max(tonumber(redis.call('ZSCORE', keys[3], args[7])), private))
    elseif tonumber(joined) > tonumber(start) then
      start = joined
    end
  else
    apart = apart_of(keys[4], args, 7, tonumber(start))
  end
  if args[4] ~= '' then
    start, left_out = leave_out(keys[2], tonumber(start), seq, last, tonumber(trimmed), tonumber(args[4]))
  end
  local entries, count = {}, tonumber(args[2])
  if tonumber(start) < tonumber(trimmed) then
    count = math.min(count, FIRST_PAGE_SIZE)  -- SQL may have as many, and then these are asked for again
  end
  if #apart < 2 * (#args - 6) then
    local after = '(' .. unpack_id(tonumber(start))
    entries = read_page('XRANGE', keys[2], after, '+', count, tonumber(args[3]))
  end
  local more = entries[1] and pack(entries[#entries][1]) < last and 1 or 0
  return {start, trimmed, seq, more, hide_recalled(entries, keys[5], erased), apart, left_out or {}, process_name(), ''}
end)

-- im_trim: drop the entries of a stream up to a message, which is remembered as the trim point.
-- A group that is being repaired is left as it is.
-- Keys: meta, stream, group_locks. Arguments: gid, packed msgid. Answer: how many were dropped, or NOMSG, FUTURE, TRIMMED.
-- Errors: NOGROUP.
define_for_group('im_trim', ALLOW_OOM, function(keys, args, _, last, trimmed)
  if redis.call('HGET', keys[3], args[1]) then
    return 0
  end
  local packed = tonumber(args[2])
  local entry, problem = find_message(keys[2], packed, last, trimmed)
  if not entry then
    return problem
  end
  redis.call('HSET', keys[1], 'trimmed', args[2])
  return redis.call('XTRIM', keys[2], 'MINID', unpack_id(packed + 1))
end)
