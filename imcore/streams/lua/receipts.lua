-- Receipts: who has read what, and what senders are told of it.

local function is_before(one, other)
  return tonumber(one) < tonumber(other)
end

-- How many spans have acked each message from one to another, which are counted. The later, the fewer: where it is the
-- same on both sides, it is the same between.
local function count_between(acked, messages, low, high, counts)
  local count = counts[messages[low]]
  if count == counts[messages[high]] then
    for i = low + 1, high - 1 do
      counts[messages[i]] = count
    end
  elseif high - low > 1 then
    local middle = math.floor((low + high) / 2)
    counts[messages[middle]] = redis.call('ZCOUNT', acked, messages[middle], '+inf')
    count_between(acked, messages, low, middle, counts)
    count_between(acked, messages, middle, high, counts)
  end
end

-- What the tallies of some messages (packed, as decimals; one at least) are made of. Where nobody came or went between
-- them, how many spans began before a message and how many ended before it is the same for all.
local function tallying(keys, messages)
  for i = 2, #messages do
    if is_before(messages[i], messages[i - 1]) then
      table.sort(messages, is_before)
      break
    end
  end
  local lowest, highest = messages[1], messages[#messages]
  local common = {joined = keys[4], left = keys[5], acked = keys[3], spans = redis.call('ZCARD', keys[4]), offsets = {}}
  local before = redis.call('ZCOUNT', keys[4], '-inf', '(' .. lowest)
  local ended = redis.call('ZCOUNT', keys[5], '-inf', '(' .. lowest)
  local counts = {[lowest] = redis.call('ZCOUNT', keys[3], lowest, '+inf')}
  if lowest ~= highest then
    counts[highest] = redis.call('ZCOUNT', keys[3], highest, '+inf')
    count_between(keys[3], messages, 1, #messages, counts)
  end
  if lowest == highest or before == redis.call('ZCOUNT', keys[4], '-inf', '(' .. highest)
      and ended == redis.call('ZCOUNT', keys[5], '-inf', '(' .. highest) then
    common.before, common.ended = before, ended
  end
  common.counts = counts
  return common
end

-- The offset of a sender within the span that they sent in; -1 where there is none.
local function offset_in_span(common, sender, span)
  local key = sender .. SEP .. span
  local offset = common.offsets[key]
  if not offset then
    local is_open = redis.call('ZSCORE', common.joined, sender) == span
    offset = tonumber(redis.call('ZSCORE', common.acked, is_open and sender or key) or '-1')
    common.offsets[key] = offset
  end
  return offset
end

-- Read and unread of one message; the sender is a recipient in none of the counts (an admin who recalls has no span).
--   read       = spans that have acked it - spans that began at or after it - the sender, if they have acked it
--   recipients = spans that began before it - spans that ended before it - the sender
local function tally(common, message, sender, span)
  local before = common.before or redis.call('ZCOUNT', common.joined, '-inf', '(' .. message)
  local ended = common.ended or redis.call('ZCOUNT', common.left, '-inf', '(' .. message)
  local read = common.counts[message] - (common.spans - before)
  local recipients = before - ended
  if span ~= '' then
    recipients = recipients - 1
    if offset_in_span(common, sender, span) >= tonumber(message) then
      read = read - 1
    end
  end
  return read, recipients - read
end

-- im_tally: read and unread of messages.
-- Keys: meta, stream, acked, joined, left. Arguments: for each message its packed msgid, sender and the sender's span; the
-- last two '' to have them looked up.
-- Answer: for each {read, unread}, or NOMSG, FUTURE, TRIMMED. Errors: NOGROUP.
local function tally_many(keys, args)
  local answers, messages = {}, {}
  for i = 1, #args, 3 do
    messages[#messages + 1] = args[i]
  end
  local common = args[1] and tallying(keys, messages)
  for i = 1, #args, 3 do
    local message, sender, span, problem = args[i], args[i + 1], args[i + 2], nil
    if sender == '' then
      local entry, why = find(keys[2], keys[1], tonumber(message))
      problem = why
      if entry then
        sender, span = entry[2][4], entry[2][6]
      end
    end
    if problem == 'NOGROUP' then
      return no_group()
    elseif problem then
      answers[#answers + 1] = problem
    else
      local read, not_read = tally(common, message, sender, span)
      answers[#answers + 1] = {read, not_read}
    end
  end
  return answers
end

-- im_status: the newest messages in Redis with their tallies, newest first.
-- Keys: meta, stream, acked, joined, left, recalled. Arguments: id to start before (XREVRANGE form, '+' for the newest); at most so
-- many messages; at most so many bytes of text, but one message in any case.
-- Answer: {trimmed, {entry, read, unread} for each, 1 if Redis has more before these else 0}. Errors: NOGROUP.
local function status(keys, args)
  local trimmed = redis.call('HMGET', keys[1], 'seq', 'trimmed')
  if not trimmed[1] then
    return no_group()
  end
  local answers = {}
  local entries, more = messages_within('XREVRANGE', keys[2], args[1], '-', tonumber(args[2]), tonumber(args[3]))
  if #seen(entries, keys[6]) > 0 then
    local messages = {}
    for i, entry in ipairs(entries) do
      messages[#entries + 1 - i] = decimal(pack(entry[1]))
    end
    local common = tallying(keys, messages)
    for i, entry in ipairs(entries) do
      local read, not_read = tally(common, messages[#entries + 1 - i], entry[2][4], entry[2][6])
      answers[i] = {entry, read, not_read}
    end
  end
  return {trimmed[2] or '0', answers, more and 1 or 0}
end

-- Put spans, some of those that began before a message, to those that have read it or to those that have not. One that ended before the
-- message, or is no more, is of neither.
local function sort_spans(keys, message, spans, read, unread)
  for first = 1, #spans, AT_ONCE do
    local last = math.min(first + AT_ONCE - 1, #spans)
    local acked = redis.call('ZMSCORE', keys[3], unpack(spans, first, last))
    local left = redis.call('ZMSCORE', keys[5], unpack(spans, first, last))
    for i = 1, #acked do
      if acked[i] and tonumber(acked[i]) >= message then
        read[#read + 1] = spans[first + i - 1]
      elseif acked[i] and (not left[i] or tonumber(left[i]) >= message) then
        unread[#unread + 1] = spans[first + i - 1]
      end
    end
  end
end

-- im_readers: the spans behind a tally, a page of them, from which the caller takes the names.
-- Keys: meta, stream, acked, joined, left, recalled. Arguments: packed msgid, cursor ('0' at first), about how many.
-- Answer: {entry or '' if trimmed, cursor of the next page or '0', spans that have read it, spans that have not, packed msgid of the
-- newest message}, or NOMSG, FUTURE. Errors: NOGROUP.
local function readers(keys, args)
  local message = tonumber(args[1])
  local entry, problem = find(keys[2], keys[1], message)
  if problem == 'NOGROUP' then
    return no_group()
  elseif not entry and problem ~= 'TRIMMED' then
    return problem
  end
  local page = redis.call('ZSCAN', keys[4], args[2], 'COUNT', args[3])
  local spans, read, unread = {}, {}, {}
  for i = 1, #page[2], 2 do
    if tonumber(page[2][i + 1]) < message then
      spans[#spans + 1] = page[2][i]
    end
  end
  sort_spans(keys, message, spans, read, unread)
  return {entry and seen({entry}, keys[6])[1] or '', page[1], read, unread, redis.call('HGET', keys[1], 'last')}
end

-- im_readers_left: the same of spans that have ended since the newest message was this one: their names have changed meanwhile.
-- Keys: meta, stream, acked, joined, left, recalled. Arguments: packed msgid, packed msgid of the newest, how many to pass over, count.
-- Answer: {spans that have read it, spans that have not, how many were looked at}.
local function readers_left(keys, args)
  local ended = redis.call('ZRANGEBYSCORE', keys[5], args[2], '+inf', 'LIMIT', args[3], args[4])
  local spans, read, unread = {}, {}, {}
  for first = 1, #ended, AT_ONCE do
    local last = math.min(first + AT_ONCE - 1, #ended)
    for i, joined in ipairs(redis.call('ZMSCORE', keys[4], unpack(ended, first, last))) do
      if joined and tonumber(joined) < tonumber(args[1]) then
        spans[#spans + 1] = ended[first + i - 1]
      end
    end
  end
  sort_spans(keys, tonumber(args[1]), spans, read, unread)
  return {read, unread, #ended}
end

-- im_changes: the messages whose tallies moves of offsets have changed, at most so many, and so many bytes as go into a page.
-- Keys: meta, stream. Arguments: count, then segments: packed msgid it begins after, packed msgid it ends with, and the uid
-- if one member alone has moved over it (whose own messages it does not change), else ''.
-- Answer: {trimmed, {sender, packed msgid, the sender's span} for each message, where the next call begins after or ''}.
-- Messages up to `trimmed` are in SQL only. Errors: NOGROUP.
local function changes(keys, args)
  local meta = redis.call('HMGET', keys[1], 'seq', 'trimmed')
  if not meta[1] then
    return no_group()
  end
  local room, bytes, answers, next_after = tonumber(args[1]), PAGE_BYTES, {}, ''
  for i = 2, #args, 3 do
    local first, final = '(' .. unpack_id(tonumber(args[i])), unpack_id(tonumber(args[i + 1]))
    local entries, more = messages_within('XRANGE', keys[2], first, final, room, bytes)
    for _, entry in ipairs(entries) do
      bytes = bytes - #entry[2][14]
      local sender = entry[2][4]
      next_after = decimal(pack(entry[1]))
      if sender ~= args[i + 2] and entry[2][15] ~= 'recalls' then
        answers[#answers + 1] = {sender, next_after, entry[2][6]}
      end
    end
    room = room - #entries
    if more or bytes <= 0 then
      return {meta[2] or '0', answers, next_after}
    end
  end
  return {meta[2] or '0', answers, ''}
end

-- im_tell: mark messages as changed for their sender, and push one digest to the sender's live sessions, with the tallies
-- as they are now: so a higher version never has an older tally, whoever tells.
-- Each message gets a version of its own, from the one that the digest names upwards.
-- Keys: meta, version counter, acked, joined, left, dirty. Arguments: inbox channel, gid, sender, then for each message, in
-- order, its packed msgid and the sender's span. Answer: how many connections got the digest. Errors: NOGROUP.
local function tell_sender(keys, args)
  if redis.call('EXISTS', keys[1]) == 0 then
    return no_group()
  end
  local gid, sender, count = args[2], args[3], (#args - 3) / 2
  local version = redis.call('INCRBY', keys[2], decimal(count)) - count + 1
  local messages = {}
  for i = 4, #args, 2 do
    messages[#messages + 1] = args[i]
  end
  local digest, common = {'d', gid, decimal(version)}, tallying(keys, messages)
  local marks, n = {'ZADD', keys[6]}, 2
  for i = 4, #args, 2 do
    local read, not_read = tally(common, args[i], sender, args[i + 1])
    digest[#digest + 1] = args[i] .. ' ' .. read .. ' ' .. not_read
    marks[n + 1], marks[n + 2] = decimal(version), gid .. SEP .. args[i]
    n = n + 2
    version = version + 1
    if n > AT_ONCE or i + 2 > #args then
      redis.call(unpack(marks, 1, n))
      n = 2
    end
  end
  return redis.call('SPUBLISH', args[1], table.concat(digest, SEP))
end

-- im_confirm: the sender has taken over these tallies. A message that changed again since stays marked.
-- The journal notes how many readers were confirmed: with that, SQL alone tells which tallies changed since.
-- Keys: dirty, journal. Arguments: for each message: gid SEP packed msgid, version, read. Answer: how many are confirmed.
local function confirm(keys, args)
  local marks, gone, confirmed = {}, {}, {}
  for i = 1, #args, 3 do
    marks[#marks + 1] = args[i]
  end
  for first = 1, #marks, AT_ONCE do
    local versions = redis.call('ZMSCORE', keys[1], unpack(marks, first, math.min(first + AT_ONCE - 1, #marks)))
    local told = {'ZREM', keys[1]}
    for i, version in ipairs(versions) do
      local a = 3 * (first + i) - 5
      if version and tonumber(version) <= tonumber(args[a + 1]) and not gone[args[a]] then
        gone[args[a]] = true
        told[#told + 1] = args[a]
        confirmed[#confirmed + 1] = args[a] .. SEP .. args[a + 2]
      end
    end
    if told[3] then
      redis.call(unpack(told))
    end
  end
  if #confirmed > 0 then
    note(keys[2], 'kind', 'confirm', 'tallies', table.concat(confirmed, RECORD))
  end
  return #confirmed
end

-- im_dirty: a page of the messages whose tallies changed, in the order they last changed.
-- Keys: dirty. Arguments: version to start after, count. Answer: {gid SEP packed msgid, version, ...}.
local function dirty(keys, args)
  return redis.call('ZRANGE', keys[1], '(' .. args[1], '+inf', 'BYSCORE', 'LIMIT', 0, args[2], 'WITHSCORES')
end

redis.register_function{function_name = 'im_tally', callback = tally_many, flags = READS}
redis.register_function{function_name = 'im_status', callback = status, flags = READS}
redis.register_function{function_name = 'im_readers', callback = readers, flags = READS}
redis.register_function{function_name = 'im_readers_left', callback = readers_left, flags = READS}
redis.register_function{function_name = 'im_changes', callback = changes, flags = READS}
redis.register_function{function_name = 'im_tell', callback = tell_sender, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_confirm', callback = confirm, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_dirty', callback = dirty, flags = READS}
