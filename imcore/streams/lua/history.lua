-- History: pages of what a member may see, from any place.

-- The first unread message (packed) after a position at or past the trim point: one of others that is not recalled, and is no
-- tombstone. Nil without one. The seq of a message says how many of those up to it are unread, so it is found by halving, however
-- many own and recalled messages come before it.
local function first_unread_after(stream, recalled, own, position, head, last)
  local first = first_message('XRANGE', stream, '(' .. unpack_id(position), '+')
  local passed_own = count_acked_own(own, position)
  local function has_unread(packed, seq)
    local not_unread = count_acked_own(own, packed) - passed_own
      + redis.call('ZCOUNT', recalled, '(' .. decimal(position), decimal(packed))
    return seq - tonumber(first[2][2]) + 1 > not_unread
  end
  if not first or not has_unread(last, head) then
    return nil
  elseif has_unread(pack(first[1]), tonumber(first[2][2])) then
    return pack(first[1])
  end
  local low, high = pack(first[1]), last  -- there is none up to `low`, and one up to `high`
  while true do
    local middle = math.floor((low + high) / 2)
    local after = first_message('XRANGE', stream, '(' .. unpack_id(middle), unpack_id(high))
    if not after then
      return high  -- an entry that is no message has this id
    elseif not has_unread(pack(after[1]), tonumber(after[2][2])) then
      low = pack(after[1])
    else
      local before = first_message('XREVRANGE', stream, unpack_id(middle), '(' .. unpack_id(low))
      if not before or not has_unread(pack(before[1]), tonumber(before[2][2])) then
        return pack(after[1])
      end
      high = pack(before[1])
    end
  end
end

-- im_first_unread: where the first unread message of a member is, as far as Redis knows.
-- Keys: meta, stream, acked, joined, recalled, own_unacked, bookmarks. Arguments: uid, 1 for where it is to anybody else: after the
-- offset.
-- Answer: {position after which messages are unread, packed msgid after which they joined, trimmed, packed msgid of the first unread message past `trimmed`, '' without
-- one}; messages up to `trimmed` are in SQL only. Or NOTMEMBER. Errors: NOGROUP.
define_for_group('im_first_unread', READ_ONLY, function(keys, args, head, last, trimmed)
  local offset = redis.call('ZSCORE', keys[3], args[1])
  if not offset then
    return 'NOTMEMBER'
  end
  local private, mark = parse_bookmark(args[2] ~= '1' and redis.call('HGET', keys[7], args[1]))
  local position = unread_position(tonumber(offset), private, mark)
  local first = first_unread_after(keys[2], keys[5], keys[6], math.max(position, tonumber(trimmed)), head, last)
  return {decimal(position), redis.call('ZSCORE', keys[4], args[1]), trimmed, first and decimal(first) or ''}
end)

-- im_history: the messages on both sides of a position, or of the page that is there already, as far as a member may see them.
-- Keys: meta, stream, joined, recalled. Arguments: uid, packed msgid that older messages are before, how many of them, packed msgid
-- from which on newer messages are, how many of them, limit of bytes of text and meta, exceeded by the first message of a side only.
-- Answer: {packed msgid after which the member joined, trimmed, packed msgid of the newest, older entries, 1 if the limit of bytes
-- has kept some back else 0, newer entries, 1 if the member may see an entry in Redis before all these else 0}; entries are oldest
-- first, and messages up to `trimmed` are in SQL only. Or NOTMEMBER. Errors: NOGROUP.
define_for_group('im_history', READ_ONLY, function(keys, args, _, last, trimmed, erased)
  local joined = redis.call('ZSCORE', keys[3], args[1])
  if not joined then
    return 'NOTMEMBER'
  end
  local stream, floor, start, left = keys[2], tonumber(joined), args[2], tonumber(args[6])
  local after_floor = '(' .. unpack_id(floor)
  local count, newest_first, kept_back = tonumber(args[3]), {}, false
  if count > 0 then
    newest_first, kept_back = read_page('XREVRANGE', stream, '(' .. unpack_id(tonumber(start)), after_floor, count, left)
    kept_back = kept_back and #newest_first < count
  end
  local older = {}
  for i, entry in ipairs(newest_first) do
    older[#newest_first + 1 - i] = entry
    left = left - bytes_of_text(entry[2])
  end
  local newer, from = {}, math.max(floor + 1, tonumber(args[4]))
  count = tonumber(args[5])
  if count > 0 and left > 0 and not kept_back and from > tonumber(trimmed) then  -- else SQL has what comes first, or the next call
    newer = read_page('XRANGE', stream, unpack_id(from), '+', count, left)
  end
  local before = '(' .. (older[1] and older[1][1] or unpack_id(tonumber(start)))
  local more = kept_back or first_message('XREVRANGE', stream, before, after_floor)
  return {joined, trimmed, decimal(last), hide_recalled(older, keys[4], erased), kept_back and 1 or 0,
    hide_recalled(newer, keys[4], erased), more and 1 or 0}
end)
