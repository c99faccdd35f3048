-- Receipts: tallies, readers, digests for senders.

local function is_before(one, other)
  return tonumber(one) < tonumber(other)
end

-- Count the spans whose position is at or past each message between two that are counted. The counts never rise with later
-- messages, so where both ends are equal, all between are.
local function count_between(positions, messages, low, high, counts)
  local count = counts[messages[low]]
  if count == counts[messages[high]] then
    for i = low + 1, high - 1 do
      counts[messages[i]] = count
    end
  elseif high - low > 1 then
    local middle = math.floor((low + high) / 2)
    counts[messages[middle]] = redis.call('ZCOUNT', positions, messages[middle], '+inf')
    count_between(positions, messages, low, middle, counts)
    count_between(positions, messages, middle, high, counts)
  end
end

-- How many spans have a position at or past each message, by message.
local function counts_of(positions, messages)
  local lowest, highest = messages[1], messages[#messages]
  local counts = {[lowest] = redis.call('ZCOUNT', positions, lowest, '+inf')}
  if lowest ~= highest then
    counts[highest] = redis.call('ZCOUNT', positions, highest, '+inf')
    count_between(positions, messages, 1, #messages, counts)
  end
  return counts
end

-- The counts that the tallies of messages (packed, as decimals; at least one) are computed from. If no span begins or ends
-- between them, these two counts are the same for all. `ahead`, `ahead_acked` and `erasing` (perhaps nil) are keys.
local function tally_context(keys, messages, ahead, ahead_acked, erasing)
  for i = 2, #messages do
    if is_before(messages[i], messages[i - 1]) then
      table.sort(messages, is_before)
      break
    end
  end
  local lowest, highest = messages[1], messages[#messages]
  local context = {joined = keys[4], left = keys[5], acked = keys[3], spans = redis.call('ZCARD', keys[4]), senders = {},
    erasing = erasing}
  local before = redis.call('ZCOUNT', keys[4], '-inf', '(' .. lowest)
  local ended = redis.call('ZCOUNT', keys[5], '-inf', '(' .. lowest)
  if lowest == highest or before == redis.call('ZCOUNT', keys[4], '-inf', '(' .. highest)
      and ended == redis.call('ZCOUNT', keys[5], '-inf', '(' .. highest) then
    context.before, context.ended = before, ended
  end
  context.counts = counts_of(keys[3], messages)
  if redis.call('EXISTS', ahead) == 1 then
    context.ahead, context.ahead_counts, context.ahead_acked = ahead, counts_of(ahead, messages), counts_of(ahead_acked, messages)
  end
  return context
end

-- The key of the span that a sender sent in, and its offset; nil without one.
local function span_of_sender(context, sender, span)
  local key = redis.call('ZSCORE', context.joined, sender) == span and sender or sender .. SEP .. span
  local offset = redis.call('ZSCORE', context.acked, key)
  return offset and key, offset
end

-- The other name of a user who is being erased: of a uid the alias, of an alias the uid. SQL may know another name than Redis.
local function other_name(erasing, name)
  local uids = erasing and redis.call('HKEYS', erasing) or {}
  for i, alias in ipairs(call_for_all('HMGET', erasing, uids, 1)) do
    if name == uids[i] or name == alias then
      return name == alias and uids[i] or alias
    end
  end
end

-- The offset of a sender within the span they sent in, and how far messages have arrived in it; -1 without one.
local function positions_in_span(context, sender, span)
  local id = sender .. SEP .. span
  local positions = context.senders[id]
  if not positions then
    local key, offset = span_of_sender(context, sender, span)
    local other = not key and other_name(context.erasing, sender)
    if other then
      key, offset = span_of_sender(context, other, span)
    end
    local ahead = key and context.ahead and redis.call('ZSCORE', context.ahead, key)
    offset = tonumber(offset or '-1')
    positions = {offset, ahead and tonumber(ahead) or offset}
    context.senders[id] = positions
  end
  return positions[1], positions[2]
end

-- Read, unread and delivered of one message. The sender is counted in none (an admin who recalls has no span).
--   read       = spans that have acked it - spans that began at or after it - the sender, if they have acked it
--   recipients = spans that began before it - spans that ended before it - the sender
--   delivered  = read + spans where it has arrived, but is not acked
-- Of the spans in `ahead` it has arrived, but is not acked, where the position is at or past it and the offset is not. Spans that
-- began later have both past it.
local function tally(context, message, sender, span)
  local before = context.before or redis.call('ZCOUNT', context.joined, '-inf', '(' .. message)
  local ended = context.ended or redis.call('ZCOUNT', context.left, '-inf', '(' .. message)
  local read = context.counts[message] - (context.spans - before)
  local arrived = context.ahead and context.ahead_counts[message] - context.ahead_acked[message] or 0
  local recipients = before - ended
  if span ~= '' then
    recipients = recipients - 1
    local offset, delivered = positions_in_span(context, sender, span)
    if offset >= tonumber(message) then
      read = read - 1
    elseif delivered >= tonumber(message) then
      arrived = arrived - 1
    end
  end
  return read, recipients - read, read + arrived
end

-- im_tally: read, unread and delivered of messages.
-- Keys: meta, stream, acked, joined, left, recalled, ahead, ahead_acked, erasing. Arguments: for each message its packed msgid, sender
-- and the sender's span; the last two are '' to be looked up.
-- Answer: for each {read, unread, delivered}, or NOMSG, FUTURE, TRIMMED. Errors: NOGROUP.
define_for_group('im_tally', READ_ONLY, function(keys, args, _, last, trimmed)
  local answers, messages = {}, {}
  for i = 1, #args, 3 do
    messages[#messages + 1] = args[i]
  end
  local context = args[1] and tally_context(keys, messages, keys[7], keys[8], keys[9])
  for i = 1, #args, 3 do
    local message, sender, span, problem = args[i], args[i + 1], args[i + 2], nil
    if sender == '' then
      local entry, why = find_message(keys[2], tonumber(message), last, trimmed)
      problem = why
      if entry then
        sender, span = entry[2][4], entry[2][6]
      end
    end
    if problem then
      answers[#answers + 1] = problem
    else
      answers[#answers + 1] = {tally(context, message, sender, span)}
    end
  end
  return answers
end)

-- im_status: the newest messages in Redis with their tallies, newest first.
-- Keys: meta, stream, acked, joined, left, recalled, ahead, ahead_acked, erasing. Arguments: id to start before (XREVRANGE form, '+' for the
-- newest); limit; limit of bytes of text, exceeded by the first message only.
-- Answer: {trimmed, {entry, read, unread, delivered} for each, 1 if Redis has more before these else 0}. Errors: NOGROUP.
define_for_group('im_status', READ_ONLY, function(keys, args, _, _, trimmed, erased)
  local answers = {}
  local entries, more = read_page('XREVRANGE', keys[2], args[1], '-', tonumber(args[2]), tonumber(args[3]))
  if #hide_recalled(entries, keys[6], erased) > 0 then
    local messages = {}
    for i, entry in ipairs(entries) do
      messages[#entries + 1 - i] = decimal(pack(entry[1]))
    end
    local context = tally_context(keys, messages, keys[7], keys[8], keys[9])
    for i, entry in ipairs(entries) do
      answers[i] = {entry, tally(context, messages[#entries + 1 - i], entry[2][4], entry[2][6])}
    end
  end
  return {trimmed, answers, more and 1 or 0}
end)

-- Append spans that began before a message to `read` or `unread`, and those of the latter where it has arrived to `arrived`. A
-- span that ended before the message, or is gone, is skipped.
local function split_spans(keys, message, spans, read, unread, arrived)
  local acked, left = call_for_all('ZMSCORE', keys[3], spans, 1), call_for_all('ZMSCORE', keys[5], spans, 1)
  local ahead = redis.call('EXISTS', keys[7]) == 1 and call_for_all('ZMSCORE', keys[7], spans, 1) or {}
  for i, span in ipairs(spans) do
    if acked[i] and tonumber(acked[i]) >= message then
      read[#read + 1] = span
    elseif acked[i] and (not left[i] or tonumber(left[i]) >= message) then
      unread[#unread + 1] = span
      if ahead[i] and tonumber(ahead[i]) >= message then
        arrived[#arrived + 1] = span
      end
    end
  end
end

-- im_readers: a page of the spans behind a tally, from which the caller takes the names. After the last of several pages come the
-- spans that ended since the first one: their keys have changed.
-- Keys: meta, stream, acked, joined, left, recalled, ahead, ahead_acked, erasing. Arguments: packed msgid, cursor ('0' at first),
-- approximate count, packed msgid of the group's newest message as the first page was answered ('' at first).
-- Answer: {entry or '' if trimmed, cursor of the next page or '0', spans that have read it, spans that have not, those of the latter
-- where it has arrived, packed msgid of that newest message}, or NOMSG, FUTURE. Errors: NOGROUP.
define_for_group('im_readers', READ_ONLY, function(keys, args, _, last, trimmed, erased)
  local message, count, newest = tonumber(args[1]), tonumber(args[3]), args[4]
  local entry, problem = find_message(keys[2], message, last, trimmed)
  if not entry and problem ~= 'TRIMMED' then
    return problem
  end
  local spans, cursor, read, unread, arrived = {}, '0', {}, {}, {}
  local offset = string.match(args[2], '^ended:(%d+)$')
  if offset then
    local ended = redis.call('ZRANGEBYSCORE', keys[5], newest, '+inf', 'LIMIT', offset, count)
    for i, joined in ipairs(call_for_all('ZMSCORE', keys[4], ended, 1)) do
      if joined and tonumber(joined) < message then
        spans[#spans + 1] = ended[i]
      end
    end
    cursor = #ended < count and '0' or 'ended:' .. offset + #ended
  else
    local page = redis.call('ZSCAN', keys[4], args[2], 'COUNT', count)
    for i = 1, #page[2], 2 do
      if tonumber(page[2][i + 1]) < message then
        spans[#spans + 1] = page[2][i]
      end
    end
    cursor = page[1] == '0' and newest ~= '' and 'ended:0' or page[1]
  end
  split_spans(keys, message, spans, read, unread, arrived)
  local text = entry and hide_recalled({entry}, keys[6], erased)[1] or ''
  return {text, cursor, read, unread, arrived, newest ~= '' and newest or decimal(last)}
end)

-- Whether a message is of a user who was erased, whose alias gets no receipts.
local function is_of_erased(values)
  return values[14] == '' and #values[4] == 23 and string.find(values[4], '^erased%-%x+$')
end

-- im_changes: a page of the messages whose tallies were changed by moves of offsets, limited by count and by PAGE_BYTES. Those of
-- erased users are left out.
-- Keys: meta, stream. Arguments: count, then segments: packed msgid it begins after, packed msgid it ends with, and the uid if
-- a single member has moved over it (which does not change their own messages), else ''.
-- Answer: {trimmed, {sender, the sender's span, packed msgids} for each run of messages of one sender, where the next call begins
-- after or ''}.
-- Messages up to `trimmed` are in SQL only. Errors: NOGROUP.
define_for_group('im_changes', READ_ONLY, function(keys, args, _, _, trimmed, erased)
  local room, bytes, answers, next_after, run, n = tonumber(args[1]), PAGE_BYTES, {}, '', {}, 0
  for i = 2, #args, 3 do
    local first, final = '(' .. unpack_id(tonumber(args[i])), unpack_id(tonumber(args[i + 1]))
    local entries, more = read_page('XRANGE', keys[2], first, final, room, bytes)
    for _, entry in ipairs(entries) do
      bytes = bytes - bytes_of_text(entry[2])
    end
    for _, entry in ipairs(hide_erased(entries, erased)) do
      local sender = entry[2][4]
      next_after = decimal(pack(entry[1]))
      if sender ~= args[i + 2] and entry[2][15] ~= 'recalls' and not is_of_erased(entry[2]) then
        if run[1] ~= sender or run[2] ~= entry[2][6] then
          run, n = {sender, entry[2][6]}, 2
          answers[#answers + 1] = run
        end
        n = n + 1
        run[n] = next_after
      end
    end
    room = room - #entries
    if more or bytes <= 0 then
      return {trimmed, answers, next_after}
    end
  end
  return {trimmed, answers, ''}
end)

-- im_publish_receipts: mark messages as changed for their sender, and publish one digest to the sender's live sessions. Its
-- tallies are counted in the same step, so a higher version never has an older tally, whichever process publishes.
-- Each message gets a version of its own; the digest names the lowest. Where receipts are off, nothing is marked or published; nor
-- for a sender who was erased since the caller looked: there is no span of that name any more.
-- Keys: meta, version, acked, joined, left, dirty, ahead, ahead_acked. Arguments: inbox channel, gid, sender, then for each message,
-- in order, its packed msgid and the sender's span. Answer: how many connections got the digest. Errors: NOGROUP.
define('im_publish_receipts', ALLOW_OOM, function(keys, args)
  local head = redis.call('HMGET', keys[1], 'seq', 'receipts')
  if not head[1] then
    return no_group()
  elseif head[2] == 'off' then
    return 0
  end
  local gid, sender, count = args[2], args[3], (#args - 3) / 2
  local messages = {}
  for i = 4, #args, 2 do
    messages[#messages + 1] = args[i]
  end
  local context = tally_context(keys, messages, keys[7], keys[8])
  if args[5] ~= '' and positions_in_span(context, sender, args[5]) < 0 then
    return 0
  end
  local version = redis.call('INCRBY', keys[2], decimal(count)) - count + 1
  local digest = {'d', gid, decimal(version)}
  local dirty, n, before, numbers = {'ZADD', keys[6]}, 2, {}, nil
  for i = 4, #args, 2 do
    local read, not_read, delivered = tally(context, args[i], sender, args[i + 1])
    if read ~= before[1] or not_read ~= before[2] or delivered ~= before[3] then  -- mostly they are those of the message before
      before, numbers = {read, not_read, delivered}, ' ' .. read .. ' ' .. not_read .. ' ' .. delivered
    end
    digest[i / 2 + 2] = args[i] .. numbers
    dirty[n + 1], dirty[n + 2] = decimal(version), gid .. SEP .. args[i]
    n = n + 2
    version = version + 1
    if n > MAX_UNPACKED or i + 2 > #args then
      redis.call(unpack(dirty, 1, n))
      n = 2
    end
  end
  return redis.call('SPUBLISH', args[1], table.concat(digest, SEP))
end)

-- im_publish_positions: tell users' own live sessions where their offsets in a group are now.
-- Keys: acked. Arguments: gid, prefix of the inbox channels, 1 if what lies beside their offsets has changed, else 0, uids.
-- Answer: how many connections got one.
define('im_publish_positions', ALLOW_OOM, function(keys, args)
  local heard = 0
  for i, offset in ipairs(call_for_all('ZMSCORE', keys[1], args, 4)) do
    if offset then
      local data = table.concat({'p', args[1], offset, args[3]}, SEP)
      heard = heard + redis.call('SPUBLISH', args[2] .. args[i + 3], data)
    end
  end
  return heard
end)

-- im_confirm: the sender confirms these tallies. A message that has changed again since stays dirty.
-- The journal entry says how many readers were confirmed, and at how many members the message had arrived, so that SQL alone can
-- find the tallies that changed since.
-- Keys: dirty, journal. Arguments: for each message: gid SEP packed msgid, version, read, delivered. Answer: how many are confirmed.
define('im_confirm', ALLOW_OOM, function(keys, args)
  local messages, is_confirmed, confirmed = {}, {}, {}
  for i = 1, #args, 4 do
    messages[#messages + 1] = args[i]
  end
  for i, version in ipairs(call_for_all('ZMSCORE', keys[1], messages, 1)) do
    local message, a = messages[i], 4 * i - 3
    if version and tonumber(version) <= tonumber(args[a + 1]) and not is_confirmed[message] then
      is_confirmed[message] = true
      redis.call('ZREM', keys[1], message)
      confirmed[#confirmed + 1] = table.concat({message, args[a + 2], args[a + 3]}, SEP)
    end
  end
  if #confirmed > 0 then
    append_entry(keys[2], 'kind', 'confirm', 'tallies', table.concat(confirmed, RECORD))
  end
  return #confirmed
end)

-- im_dirty_receipts: a page of the messages whose tallies changed, in the order of their last change.
-- Keys: dirty. Arguments: version to start after, count. Answer: {gid SEP packed msgid, version, ...}.
define('im_dirty_receipts', READ_ONLY, function(keys, args)
  return redis.call('ZRANGE', keys[1], '(' .. args[1], '+inf', 'BYSCORE', 'LIMIT', 0, args[2], 'WITHSCORES')
end)
