-- Acks and unread counts.

-- The seq of the message that an ack names, or nil and the reason.
local function seq_of(stream, packed, seq, head, last, trimmed)
  if packed == last then
    return head
  elseif packed > last then
    return nil, 'FUTURE'
  elseif seq ~= '' then
    return seq
  end
  local entry, why = find_message(stream, packed, last, trimmed)
  return entry and entry[2][2], why
end

-- Which of some uids read in private: a list of 1 and 0, nil if nobody does.
local function private_readers(keys, args, first, last, is_private)
  local readers = not is_private and redis.call('SMISMEMBER', keys[9], unpack(args, first, last)) or {}
  local anybody = is_private
  for i = 1, last - first + 1 do
    readers[i] = is_private and 1 or readers[i]
    anybody = anybody or readers[i] == 1
  end
  return anybody and readers or nil
end

-- Correct what members have beside their offsets, after these have moved from `offsets` to a message.
local function pass_positions(keys, args, first, last, offsets, packed, readers, bookmarks)
  local delivered = redis.call('ZMSCORE', keys[6], unpack(args, first, last))
  local values = redis.call('HMGET', keys[8], unpack(args, first, last))
  for i, offset in ipairs(offsets) do
    if offset and not (readers and readers[i] == 1) then
      local uid = args[first + i - 1]
      if delivered[i] and tonumber(offset) < packed then
        set_ahead(keys[6], keys[7], uid, tonumber(delivered[i]), packed)
      end
      if values[i] then
        pass_bookmark(keys[8], redis.call('ZSCORE', keys[4], uid), uid, values[i], tonumber(offset), packed, bookmarks)
      end
    end
  end
end

-- Move the offsets of members to a message, where they are before it; those who read in private move their bookmarks. Without a
-- seq there is no such message, and nothing moves. Appends the others to `unmoved`, and groups the moves by where they began.
-- `bookmarks` are the bookmarks that change, nil if nobody of the group can have anything beside the offset.
local function move(keys, args, first, last, zeroth, packed, seq, unmoved, moves, bookmarks, is_private)
  local stream, acked, text, id = keys[2], keys[3], unmoved[1], seq and unpack_id(packed)
  local offsets = redis.call('ZMSCORE', acked, unpack(args, first, last))
  local readers = bookmarks and seq and private_readers(keys, args, first, last, is_private)
  local joined, scored, n = nil, {'ZADD', acked}, 2
  local before, behind, since, record = nil, false, nil, nil
  for i, offset in ipairs(offsets) do
    if offset ~= before then  -- most members have the same offset as the one before them
      before, behind, since = offset, seq and offset and packed > tonumber(offset), nil
    end
    if readers and readers[i] == 1 and offset then
      local uid = args[first + i - 1]
      unmoved[#unmoved + 1] = first - zeroth + i - 1
      unmoved[#unmoved + 1] = read_in_private(keys[8], redis.call('ZSCORE', keys[4], uid), uid, offset, packed, bookmarks)
    elseif behind then
      local uid = args[first + i - 1]
      joined = joined or redis.call('ZMSCORE', keys[4], unpack(args, first, last))
      redis.call('XGROUP', 'SETID', stream, uid, id, 'ENTRIESREAD', seq)
      scored[n + 1], scored[n + 2] = text, uid
      n = n + 2
      if joined[i] ~= since then
        since = joined[i]
        local from = since .. SEP .. offset
        record = moves[from]
        if not record then
          record = {from, text}
          moves[from], moves[#moves + 1] = record, record
        end
      end
      record[#record + 1] = uid
    elseif seq or not offset then
      unmoved[#unmoved + 1] = first - zeroth + i - 1
      unmoved[#unmoved + 1] = offset or 'NOTMEMBER'
    end
  end
  if n > 2 then
    redis.call(unpack(scored))
  end
  if bookmarks and seq then
    pass_positions(keys, args, first, last, offsets, packed, readers, bookmarks)
  end
end

-- im_ack: move offsets forward, never back. Whoever reads in private, by this call or by their own choice (`receipts_off`), keeps
-- their offset: their bookmark moves.
-- Keys: meta, stream, acked, joined, journal, ahead, ahead_acked, bookmarks, receipts_off.
-- Arguments: gid, 1 to read in private, then for each acked message: its packed msgid or '' for the newest, its seq if the caller
-- knows it from the message itself or from SQL, else '' to look it up, how many uids follow, these.
-- Answer: for each message {its packed msgid, or NOMSG, FUTURE, TRIMMED, then for each uid that is no member or whose offset does
-- not move: its number from 0 on, and NOTMEMBER or the packed offset, with a `p` before it if their bookmark has made less unread}.
-- Errors: NOGROUP.
define_for_group('im_ack', ALLOW_OOM, function(keys, args, head, newest, trimmed)
  local answers, records, a = {}, {}, 3
  local is_private = args[2] == '1'
  local bookmarks = (is_private or redis.call('EXISTS', keys[6], keys[8], keys[9]) > 0) and {} or nil
  while args[a] do
    local packed = args[a] == '' and newest or tonumber(args[a])
    local seq, problem = seq_of(keys[2], packed, args[a + 1], head, newest, trimmed)
    local first, last = a + 3, a + 2 + tonumber(args[a + 2])
    local unmoved, moves = {problem or args[a] ~= '' and args[a] or decimal(packed)}, {}
    for start = first, last, MAX_UNPACKED do
      local stop = math.min(start + MAX_UNPACKED - 1, last)
      move(keys, args, start, stop, first, packed, seq, unmoved, moves, bookmarks, is_private)
    end
    answers[#answers + 1] = unmoved
    for _, record in ipairs(moves) do
      records[#records + 1] = record
    end
    a = last + 1
  end
  append_records(keys[5], 'ack', args[1], 'moves', records)
  append_bookmarks(keys[5], args[1], bookmarks or {})
  return answers
end)

-- The most own messages that are looked through for one of others before a message that came alone.
local MOST_OWN_BETWEEN = 1000

-- Whether no message of others lies between a position at or past the trim point and a message.
local function is_next(stream, uid, position, packed)
  local from, to = '(' .. unpack_id(position), '(' .. unpack_id(packed)
  for _ = 1, MOST_OWN_BETWEEN / 100 do
    local page = redis.call('XRANGE', stream, from, to, 'COUNT', 100)
    for _, entry in ipairs(page) do
      if is_message(entry) and entry[2][4] ~= uid then
        return false
      end
    end
    if #page < 100 then
      return true
    end
    from = '(' .. page[100][1]
  end
  return false
end

-- The most own messages between a position and the beginning of what has arrived: this is looked up for those who skip messages.
local MOST_OWN_BEFORE = 10

-- Whether all messages after a position, up to where what has arrived begins, are own ones: mostly there are none.
local function joins(stream, uid, position, since)
  local page = redis.call('XRANGE', stream, '(' .. unpack_id(position), unpack_id(since), 'COUNT', MOST_OWN_BEFORE + 1)
  for _, entry in ipairs(page) do
    if is_message(entry) and entry[2][4] ~= uid then
      return false
    end
  end
  return #page <= MOST_OWN_BEFORE
end

-- Whether messages have arrived up to one of them, if they had up to a position; nil if only SQL knows. `arrived` says how, as
-- im_delivered gets it.
local function has_arrived(stream, uid, position, packed, arrived, trimmed)
  if not arrived.alone then
    return arrived.since <= position or position >= trimmed and joins(stream, uid, position, arrived.since)
  end
  position = math.max(position, arrived.since)
  if position >= trimmed then
    return is_next(stream, uid, position, packed)
  end
end

-- Let messages have arrived up to one of them for members; see im_delivered.
local function deliver(keys, args, first, last, zeroth, packed, arrived, trimmed, unmoved, moves)
  local offsets = redis.call('ZMSCORE', keys[3], unpack(args, first, last))
  local ahead = redis.call('ZMSCORE', keys[6], unpack(args, first, last))
  local joined = redis.call('ZMSCORE', keys[4], unpack(args, first, last))
  local text, scored, scored_acked, n = decimal(packed), {'ZADD', keys[6]}, {'ZADD', keys[7]}, 2
  for i, offset in ipairs(offsets) do
    local uid, at = args[first + i - 1], offset and math.max(tonumber(offset), tonumber(ahead[i] or '0'))
    local has = at and packed > at
    if has then
      has = has_arrived(keys[2], uid, at, packed, arrived, trimmed)
    end
    if has then
      scored[n + 1], scored[n + 2] = text, uid
      scored_acked[n + 1], scored_acked[n + 2] = offset, uid
      n = n + 2
      local begin = joined[i] .. SEP .. decimal(at)
      local record = moves[begin]
      if not record then
        record = {begin, text}
        moves[begin], moves[#moves + 1] = record, record
      end
      record[#record + 1] = uid
    else
      unmoved[#unmoved + 1] = first - zeroth + i - 1
      unmoved[#unmoved + 1] = at and (has == nil and 's' or '') .. decimal(at) or 'NOTMEMBER'
    end
  end
  if n > 2 then
    redis.call(unpack(scored))
    redis.call(unpack(scored_acked))
  end
end

-- im_delivered: messages have arrived at clients of members: move how far, forward and never over a hole.
-- Keys: meta, stream, acked, joined, journal, ahead, ahead_acked, bookmarks, receipts_off.
-- Arguments: gid, then for each message: its packed msgid or '' for the newest, its seq if the caller knows it, else '', 1 if it came
-- alone, the packed position from which on all messages up to it have arrived or, if it came alone, up to which SQL has none of
-- others that has not, how many uids follow, these.
-- Answer: for each message {its packed msgid, or NOMSG, FUTURE, TRIMMED, then for each uid that is no member or is not moved: its
-- number from 0 on, and NOTMEMBER or the packed position where it is, with an `s` before it if only SQL knows whether a message of
-- others comes before one that came alone}. Errors: NOGROUP.
define_for_group('im_delivered', ALLOW_OOM, function(keys, args, head, newest, trimmed)
  local answers, records, a = {}, {}, 2
  while args[a] do
    local packed = args[a] == '' and newest or tonumber(args[a])
    local seq, problem = seq_of(keys[2], packed, args[a + 1], head, newest, trimmed)
    local arrived = {alone = args[a + 2] == '1', since = tonumber(args[a + 3])}
    local first, last = a + 5, a + 4 + tonumber(args[a + 4])
    local unmoved, moves = {problem or decimal(packed)}, {}
    for start = first, seq and last or a, MAX_UNPACKED do
      local stop = math.min(start + MAX_UNPACKED - 1, last)
      deliver(keys, args, start, stop, first, packed, arrived, tonumber(trimmed), unmoved, moves)
    end
    answers[#answers + 1] = unmoved
    for _, record in ipairs(moves) do
      records[#records + 1] = record
    end
    a = last + 1
  end
  append_records(keys[5], 'delivered', args[1], 'moves', records)
  return answers
end)

-- The seq at a position, '' if only SQL knows it.
local function seq_at(stream, packed, head, last, trimmed)
  if packed >= last then
    return head
  elseif packed == 0 then
    return 0
  elseif packed < tonumber(trimmed) then
    return ''
  end
  -- From the next message: the one at the position may be trimmed, or a crash of the server may have lost it.
  local after = first_message('XRANGE', stream, '(' .. unpack_id(packed), '+')
  return after and tonumber(after[2][2]) - 1 or head
end

-- The position of a member, all of one moment: {seq of the newest, its packed msgid, packed offset, seq at the position after which
-- messages are unread, '' if only SQL knows it, own and recalled messages after it, packed msgid after which they joined, private
-- position, mark}. Keys: meta, stream, acked, own_unacked, recalled (nil if nothing is), joined, bookmarks. A caller who asks for many
-- members gives where this one joined, and a table that keeps the seqs at positions.
local function position_of(keys, uid, offset, bookmark, head, last, trimmed, joined, seqs)
  local private, mark = parse_bookmark(bookmark)
  local packed = unread_position(tonumber(offset), private, mark)
  local seq = seqs and seqs[packed] or seq_at(keys[2], packed, head, last, trimmed)
  if seqs then
    seqs[packed] = seq
  end
  local passed, all = count_acked_own(keys[4], packed)
  local recalled = keys[5] and redis.call('ZCOUNT', keys[5], '(' .. decimal(packed), '+inf') or 0
  joined = joined or redis.call('ZSCORE', keys[6], uid) or offset
  return {head, decimal(last), offset, seq, all - passed + recalled, joined, decimal(private), decimal(mark)}
end

-- im_unread: the position of a member, with the unread count of the member or, for anybody else, that of the offset.
-- Keys: meta, stream, acked, own_unacked, recalled, joined, bookmarks. Arguments: uid, 1 for anybody else.
-- Answer: that of position_of, or NOTMEMBER. Errors: NOGROUP.
define_for_group('im_unread', READ_ONLY, function(keys, args, head, last, trimmed)
  local offset = redis.call('ZSCORE', keys[3], args[1])
  if not offset then
    return 'NOTMEMBER'
  end
  local bookmark = args[2] ~= '1' and redis.call('HGET', keys[7], args[1])
  return position_of(keys, args[1], offset, bookmark, head, last, trimmed)
end)

-- im_positions: the positions of members, for themselves.
-- Keys: acked, joined, bookmarks. Arguments: uids. Answer: for each {packed offset, packed msgid after which they joined, private
-- position, mark}, or NOTMEMBER.
define('im_positions', READ_ONLY, function(keys, args)
  local joined, answers = call_for_all('ZMSCORE', keys[2], args, 1), {}
  local has_bookmarks = redis.call('EXISTS', keys[3]) == 1
  for i, offset in ipairs(call_for_all('ZMSCORE', keys[1], args, 1)) do
    local private, mark = parse_bookmark(has_bookmarks and redis.call('HGET', keys[3], args[i]))
    answers[i] = offset and {offset, joined[i] or offset, decimal(private), decimal(mark)} or 'NOTMEMBER'
  end
  return answers
end)

-- A mark may reach this many of the newest messages: own ones behind the offset have to be counted out again.
local MOST_MARKED = 100

-- Let a list of own messages begin after a mark, which is up to MOST_MARKED messages before the newest. Those that SQL has are the
-- arguments from `first` on, oldest first.
local function list_own_after(stream, own, recalled, uid, mark, floor, trimmed, args, first)
  redis.call('LTRIM', own, (count_acked_own(own, floor)), -1)
  for _, entry in ipairs(redis.call('XREVRANGE', stream, unpack_id(floor), '(' .. unpack_id(mark))) do
    local packed = decimal(pack(entry[1]))
    if is_message(entry) and entry[2][4] == uid and not redis.call('ZSCORE', recalled, packed) then
      redis.call('LPUSH', own, packed)
    end
  end
  for i = #args, first, -1 do
    if tonumber(args[i]) <= math.min(floor, trimmed) and not redis.call('ZSCORE', recalled, args[i]) then
      redis.call('LPUSH', own, args[i])
    end
  end
end

-- im_mark: mark messages of a member unread, from one of them on, for the member alone; or remove that mark. Their live sessions
-- are notified.
-- Keys: meta, stream, acked, own_unacked, recalled, joined, bookmarks, journal. Arguments: gid, inbox channel, uid, packed msgid of
-- the first message to be unread, '' to remove the mark; if only SQL has it, its seq, else '', and the packed msgids of own messages
-- from there on that SQL has.
-- Answer: that of position_of, or NOTMEMBER, NOMSG, FUTURE, TRIMMED, TOMBSTONE, UNSEEN for a message before the member joined, TOOOLD
-- for one that is not among the newest MOST_MARKED. Errors: NOGROUP.
define_for_group('im_mark', DENY_OOM, function(keys, args, head, last, trimmed)
  local gid, uid, mark, changes = args[1], args[3], 0, {}
  local offset, joined = redis.call('ZSCORE', keys[3], uid), redis.call('ZSCORE', keys[6], uid)
  if not offset or not joined then
    return 'NOTMEMBER'
  end
  local private, old_mark = parse_bookmark(redis.call('HGET', keys[7], uid))
  if args[4] ~= '' then
    local packed = tonumber(args[4])
    local entry, problem = find_message(keys[2], packed, last, trimmed)
    local seq = entry and entry[2][2] or args[5]
    problem = seq == '' and problem or packed <= tonumber(joined) and 'UNSEEN'
      or entry and entry[2][15] == 'recalls' and 'TOMBSTONE' or tonumber(seq) <= head - MOST_MARKED and 'TOOOLD'
    if problem then
      return problem
    end
    mark = packed - 1
    local floor = own_floor(tonumber(offset), old_mark)
    if mark < floor then
      list_own_after(keys[2], keys[4], keys[5], uid, mark, floor, tonumber(trimmed), args, 6)
    end
  end
  if mark ~= old_mark then
    change_bookmark(keys[7], joined, uid, private, mark, changes)
    append_bookmarks(keys[8], gid, changes)
    redis.call('SPUBLISH', args[2], table.concat({'p', gid, offset, '1'}, SEP))
  end
  return position_of(keys, uid, offset, decimal(private) .. ' ' .. decimal(mark), head, last, trimmed)
end)
