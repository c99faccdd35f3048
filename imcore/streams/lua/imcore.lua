#!lua name=imcore

-- The Redis functions of imcore: every step that must happen as one.
--
-- Units. A packed msgid is (ms - EPOCH_MS) * 8192 + n for the stream entry id `ms-n`: exact in a double, so it is a
-- sorted-set score and a Lua number. It travels as decimal text. 0 is the position before the first message.
--
-- Keys of one group (all in the slot of its partition's hash tag):
--   meta    hash    seq (of the newest message), last (its packed msgid), trimmed (packed, newest entry trimmed away)
--   stream  stream  one entry a message, one consumer group a current member; its last-delivered-id is the offset
--   acked   zset    span key -> packed offset
--   joined  zset    span key -> newest message at the join
--   left    zset    span key of a closed span -> newest message at the leave
--   once    hash    uid SEP client_msgid -> "msgid seq"; two of them take turns, so that each entry lives long enough
--   own     list    per member: packed, oldest first; those past their offset are own messages that are not unread for
--                   them. What their offset has passed since is dropped when the next one comes.
--   uncounted zset  packed msgids of recalled messages and of the tombstones that recall them: they are never unread
-- Keys of one user in one partition:
--   groups_of set   gids of that partition which they are a member of
--   dirty   zset    gid SEP packed msgid -> version; their messages whose tallies changed and were not confirmed yet
-- Keys of one user in the partition of their uid:
--   sessions zset   session id -> when it expires (ms); `online`, of the partition: uid -> when their last session expires
-- A span key is the uid while the span is open, and uid SEP joined once it is closed.
--
-- Errors answer with a code as their first word: NOGROUP, EXISTS, CLOCK. An item of a call for many that fails is
-- answered by a code in its place (NOTMEMBER, NOMSG, FUTURE, TRIMMED), and the others go on.

local VERSION = 3
local EPOCH_MS = 1577836800000
local PER_MS = 8192
local SEP = '\31'
local RECORD = '\30'

local function decimal(number)
  return string.format('%d', number)  -- half of what %.0f takes
end

local function parts_of(id)
  local ms, n = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(n)
end

local function pack(id)
  local ms, n = parts_of(id)
  return (ms - EPOCH_MS) * PER_MS + n
end

-- Note in the journal what happened. An entry's id has to be packable like a msgid: when the counter of a millisecond is
-- full (10,000 members at once, or a clock that was put back), go on to the next one.
local function note(journal, ...)
  local id = redis.call('XADD', journal, '*', ...)
  if string.find(id, '-', -4, true) then
    return id  -- a counter of at most three digits
  end
  local ms, n = parts_of(id)
  if n >= PER_MS then
    redis.call('XDEL', journal, id)
    id = redis.call('XADD', journal, string.format('%.0f-0', ms + 1), ...)
  end
  return id
end

local function unpack_id(packed)
  if packed == 0 then
    return '0-0'
  end
  local n = packed % PER_MS
  return string.format('%d-%d', (packed - n) / PER_MS + EPOCH_MS, n)
end

local function no_group()
  return redis.error_reply('NOGROUP there is no such group')
end

local function head_of(meta)
  local head = redis.call('HMGET', meta, 'seq', 'last')
  return tonumber(head[1]), tonumber(head[2])
end

local function member_count(acked, left)
  return redis.call('ZCARD', acked) - redis.call('ZCARD', left)
end

-- The stream entry of a packed msgid, or nil and why not: NOGROUP, FUTURE, TRIMMED or NOMSG.
local function find(stream, meta, packed)
  local id = unpack_id(packed)
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if entry then
    return entry
  end
  local head = redis.call('HMGET', meta, 'last', 'trimmed')
  if not head[1] then
    return nil, 'NOGROUP'
  elseif packed > tonumber(head[1]) then
    return nil, 'FUTURE'
  end
  return nil, packed <= tonumber(head[2] or '0') and 'TRIMMED' or 'NOMSG'
end

-- im_version: which version of this library the server holds.
-- Keys: none. Arguments: none. Answer: an integer.
local function version()
  return VERSION
end

-- im_init: fix how many partitions the data has, once.
-- Keys: config. Arguments: partitions, dataset id for new data. Answer: {partitions, dataset id} as they stand.
local function init(keys, args)
  redis.call('HSETNX', keys[1], 'partitions', args[1])
  redis.call('HSETNX', keys[1], 'dataset', args[2])
  return redis.call('HMGET', keys[1], 'partitions', 'dataset')
end

-- A user's live sessions listen on the inbox of every partition.
local function tell(inboxes, uid, fields)
  redis.call('SPUBLISH', inboxes .. uid, table.concat(fields, SEP))
end

local function join(group, uid, groups_of)
  if redis.call('ZSCORE', group.acked, uid) then
    return
  end
  local joined = decimal(group.last)
  redis.call('ZADD', group.acked, joined, uid)
  redis.call('ZADD', group.joined, joined, uid)
  redis.call('XGROUP', 'CREATE', group.stream, uid, unpack_id(group.last), 'MKSTREAM', 'ENTRIESREAD', group.seq)
  redis.call('SADD', groups_of, group.gid)
  note(group.journal, 'kind', 'join', 'gid', group.gid, 'uid', uid, 'joined', joined)
  tell(group.inboxes, uid, {'j', group.gid})
end

-- im_create: a new group with its first members; the same group again changes nothing.
-- Keys: meta, stream, acked, joined, left, journal, groups, then groups_of of each member.
-- Arguments: gid, start of the inbox channels, then the uid of each member. Answer: {members, seq, last}.
-- Errors: EXISTS, CLOCK.
local function create(keys, args)
  local seq, last = head_of(keys[1])
  if seq then
    local same = member_count(keys[3], keys[5]) == #args - 2
    for i = 3, #args do
      same = same and redis.call('ZSCORE', keys[3], args[i])
    end
    if not same then
      return redis.error_reply('EXISTS the group exists with other members')
    end
    return {#args - 2, seq, decimal(last)}
  end
  if tonumber(redis.call('TIME')[1]) * 1000 <= EPOCH_MS then
    return redis.error_reply('CLOCK the clock of the server stands before 2020')
  end
  redis.call('HSET', keys[1], 'seq', 0, 'last', 0)
  redis.call('SADD', keys[7], args[1])
  note(keys[6], 'kind', 'group', 'gid', args[1])
  local group = {gid = args[1], inboxes = args[2], stream = keys[2], acked = keys[3], joined = keys[4], journal = keys[6],
    seq = 0, last = 0}
  for i = 3, #args do
    join(group, args[i], keys[5 + i])
  end
  return {#args - 2, 0, '0'}
end

-- im_join: add members; one who is a member already stays as they are.
-- Keys: meta, stream, acked, joined, left, journal, then groups_of of each.
-- Arguments: gid, start of the inbox channels, then each uid. Answer: {members, seq, last}. Errors: NOGROUP.
local function join_many(keys, args)
  local seq, last = head_of(keys[1])
  if not seq then
    return no_group()
  end
  local group = {gid = args[1], inboxes = args[2], stream = keys[2], acked = keys[3], joined = keys[4], journal = keys[6],
    seq = seq, last = last}
  for i = 3, #args do
    join(group, args[i], keys[4 + i])
  end
  return {member_count(keys[3], keys[5]), seq, decimal(last)}
end

-- im_leave: end memberships; one who is no member is passed over.
-- A closed span keeps its scores under its own key; a span that covers no message is dropped.
-- Keys: meta, stream, acked, joined, left, journal, then groups_of and own of each.
-- Arguments: gid, start of the inbox channels, then each uid. Answer: {members, seq, last}. Errors: NOGROUP.
local function leave_many(keys, args)
  local seq, last = head_of(keys[1])
  if not seq then
    return no_group()
  end
  local stream, acked, joined, left = keys[2], keys[3], keys[4], keys[5]
  for i = 3, #args do
    local uid = args[i]
    local offset = redis.call('ZSCORE', acked, uid)
    if offset then
      local from = redis.call('ZSCORE', joined, uid)
      redis.call('ZREM', acked, uid)
      redis.call('ZREM', joined, uid)
      if last > tonumber(from) then
        local span = uid .. SEP .. from
        redis.call('ZADD', acked, offset, span)
        redis.call('ZADD', joined, from, span)
        redis.call('ZADD', left, decimal(last), span)
      end
      redis.call('XGROUP', 'DESTROY', stream, uid)
      redis.call('SREM', keys[1 + 2 * i], args[1])
      redis.call('DEL', keys[2 + 2 * i])
      note(keys[6], 'kind', 'leave', 'gid', args[1], 'uid', uid, 'joined', from, 'left', decimal(last))
      tell(args[2], uid, {'l', args[1]})
    end
  end
  return {member_count(acked, left), seq, decimal(last)}
end

-- Two tables of client_msgids take turns: the older one is dropped when the newer one is `once_ms` old.
local function rotate_once(newer, older, once_ms)
  local ttl = redis.call('PTTL', newer)
  if ttl >= 0 and ttl <= once_ms then
    redis.call('UNLINK', older)
    redis.call('RENAME', newer, older)
    ttl = -2
  end
  return ttl == -2
end

-- A sender as one call of im_send sees them, or nil if they are no member; `id` is set once their offset has moved.
local function sender_of(senders, uid, keys)
  local offset = redis.call('ZSCORE', keys[3], uid)
  if offset then
    senders[uid] = {offset = tonumber(offset), span = redis.call('ZSCORE', keys[4], uid)}
  end
  return senders[uid]
end

-- Note an own message past the offset, and forget those that the offset has passed.
local function keep_own(own, packed, offset)
  local oldest = redis.call('LINDEX', own, 0)
  if oldest and tonumber(oldest) <= offset then
    if tonumber(redis.call('LINDEX', own, -1)) <= offset then
      redis.call('UNLINK', own)
    end
    while tonumber(redis.call('LINDEX', own, 0) or packed) <= offset do
      redis.call('LPOP', own)
    end
  end
  redis.call('RPUSH', own, decimal(packed))
end

-- How many own messages are past an offset.
local function own_past(own, offset)
  local low, high = 0, redis.call('LLEN', own)
  local all = high
  if all == 0 or tonumber(redis.call('LINDEX', own, 0)) > offset then
    return all
  end
  while low < high do  -- the first `low` are passed, those from `high` on are not
    local middle = math.floor((low + high) / 2)
    if tonumber(redis.call('LINDEX', own, middle)) <= offset then
      low = middle + 1
    else
      high = middle
    end
  end
  return all - low
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
  local fresh_once = nil
  for i = 8, #keys do
    local a = 4 * (i - 7)
    local uid, cid, sent, text = args[a], args[a + 1], args[a + 2], args[a + 3]
    local known = nil
    if cid ~= '' then
      if fresh_once == nil then
        fresh_once = rotate_once(keys[5], keys[6], once_ms)
      end
      local field = uid .. SEP .. cid
      known = redis.call('HGET', keys[5], field) or redis.call('HGET', keys[6], field)
    end
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
        'up', caught_up and 1 or 0, 'text', text)
      last = pack(id)
      if caught_up then
        sender.offset, sender.id, sender.seq = last, id, seq
      else
        keep_own(keys[i], last, sender.offset)
      end
      if cid ~= '' then
        redis.call('HSET', keys[5], uid .. SEP .. cid, id .. ' ' .. seq)
        if fresh_once then
          redis.call('PEXPIRE', keys[5], 2 * once_ms)
          fresh_once = false
        end
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
  if stored > 0 then
    redis.call('HSET', keys[1], 'seq', seq, 'last', decimal(last))
    if stored == 1 then
      redis.call('XADD', keys[7], '*', 'kind', 'msg', 'gid', gid, 'first', first_id)
    else
      redis.call('XADD', keys[7], '*', 'kind', 'msg', 'gid', gid, 'first', first_id, 'last', last_id, 'n', stored)
    end
  end
  return answers
end

-- Lua's stack ends at some thousands.
local AT_ONCE = 1000

-- The seq of the message that an ack names, or nil and the problem with it.
local function seq_of(keys, packed, seq, head, last)
  if packed == last then
    return head
  elseif packed > last then
    return nil, 'FUTURE'
  elseif seq ~= '' then
    return seq
  end
  local entry, why = find(keys[2], keys[1], packed)
  return entry and entry[2][2], why
end

-- Move the offsets of some members to a message, those that stand before it. Without a seq there is no such message, and
-- none moves. Names who did not move in `unmoved`, and notes the moves by where they began.
local function move(keys, args, first, last, zeroth, packed, seq, unmoved, moves)
  local stream, acked, text, id = keys[2], keys[3], unmoved[1], seq and unpack_id(packed)
  local offsets = redis.call('ZMSCORE', acked, unpack(args, first, last))
  local joined, scored, n = nil, {'ZADD', acked}, 2
  local before, behind, since, record = nil, false, nil, nil
  for i, offset in ipairs(offsets) do
    if offset ~= before then  -- most stand where the one before them stands
      before, behind, since = offset, seq and offset and packed > tonumber(offset), nil
    end
    if behind then
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
end

-- im_ack: move offsets forward, never back.
-- Keys: meta, stream, acked, joined, journal.
-- Arguments: gid, then for each message that is acked: its packed msgid or '' for the newest, its seq where the caller has
-- it from the message itself or from SQL, else '' to have it looked up, how many uids follow, these.
-- Answer: for each message {its packed msgid, or NOMSG, FUTURE, TRIMMED, then for each uid who is no member or whose offset
-- is there already: its number from 0 on, and NOTMEMBER or the packed offset}. Errors: NOGROUP.
local function ack(keys, args)
  local head, newest = head_of(keys[1])
  if not head then
    return no_group()
  end
  local answers, records, a = {}, {}, 2
  while args[a] do
    local packed = args[a] == '' and newest or tonumber(args[a])
    local seq, problem = seq_of(keys, packed, args[a + 1], head, newest)
    local first, last = a + 3, a + 2 + tonumber(args[a + 2])
    local unmoved, moves = {problem or decimal(packed)}, {}
    for start = first, last, AT_ONCE do
      move(keys, args, start, math.min(start + AT_ONCE - 1, last), first, packed, seq, unmoved, moves)
    end
    answers[#answers + 1] = unmoved
    for _, record in ipairs(moves) do
      records[#records + 1] = table.concat(record, SEP)
    end
    a = last + 1
  end
  if records[1] then
    note(keys[5], 'kind', 'ack', 'gid', args[1], 'moves', table.concat(records, RECORD))
  end
  return answers
end

-- im_recall: withdraw a message. A tombstone goes its way, through the stream to every member; the message keeps its seq,
-- its receipts stay answerable, and neither of the two is unread for anyone.
-- Keys: meta, stream, acked, joined, uncounted, journal, own of the message's sender. Arguments: gid, push channel, uid
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
  local offset = tonumber(redis.call('ZSCORE', keys[3], uid))
  local caught_up = offset == last
  local id = last % PER_MS == PER_MS - 1 and unpack_id(last + 1) or '*'
  id = redis.call('XADD', keys[2], id, 'seq', seq + 1, 'uid', uid, 'span', redis.call('ZSCORE', keys[4], uid) or '',
    'cid', '', 'sent', '', 'up', caught_up and 1 or 0, 'text', '', 'recalls', target)
  local packed = decimal(pack(id))
  redis.call('HSET', keys[1], 'seq', seq + 1, 'last', packed)
  redis.call('ZADD', keys[5], target, target, packed, packed)
  redis.call('LREM', keys[7], 0, target)
  if caught_up then
    redis.call('ZADD', keys[3], packed, uid)
    redis.call('XGROUP', 'SETID', keys[2], uid, id, 'ENTRIESREAD', seq + 1)
  end
  note(keys[6], 'kind', 'msg', 'gid', gid, 'first', id)
  redis.call('SPUBLISH', args[2], table.concat({'r', gid, id, seq + 1, uid, target}, SEP))
  return {id, seq + 1}
end

-- im_group: what a group is now.
-- Keys: meta, acked, left. Arguments: none. Answer: {members, seq, last}. Errors: NOGROUP.
local function show(keys)
  local seq, last = head_of(keys[1])
  if not seq then
    return no_group()
  end
  return {member_count(keys[2], keys[3]), seq, decimal(last)}
end

-- Entries as members may see them: of a recalled message the text is gone, and a field more says so. A tombstone has a
-- field more that names what it recalls.
local function seen(entries, uncounted)
  if #entries == 0 or redis.call('EXISTS', uncounted) == 0 then
    return entries
  end
  for _, entry in ipairs(entries) do
    local values = entry[2]
    if not values[15] and redis.call('ZSCORE', uncounted, decimal(pack(entry[1]))) then
      values[14], values[15], values[16] = '', 'recalled', '1'
    end
  end
  return entries
end

-- im_range: entries of a group's stream, oldest first.
-- Keys: stream, uncounted. Arguments: first id, last id (XRANGE forms), count. Answer: entries.
local function range(keys, args)
  return seen(redis.call('XRANGE', keys[1], args[1], args[2], 'COUNT', args[3]), keys[2])
end

-- im_pull: what a member has not acked, oldest first.
-- Keys: meta, stream, acked, joined, uncounted. Arguments: uid, packed msgid to start after or '' for the offset, count.
-- A start before the member joined is moved up to there.
-- Answer: {start, trimmed, seq of the newest, entries}; entries up to `trimmed` are in SQL only. Or NOTMEMBER. Errors: NOGROUP.
local function pull(keys, args)
  local meta = redis.call('HMGET', keys[1], 'seq', 'trimmed')
  if not meta[1] then
    return no_group()
  end
  local start = redis.call('ZSCORE', keys[3], args[1])
  if not start then
    return 'NOTMEMBER'
  end
  if args[2] ~= '' then
    local joined = redis.call('ZSCORE', keys[4], args[1])
    start = tonumber(joined) > tonumber(args[2]) and joined or args[2]
  end
  local after = '(' .. unpack_id(tonumber(start))
  local entries = redis.call('XRANGE', keys[2], after, '+', 'COUNT', args[3])
  return {start, meta[2] or '0', tonumber(meta[1]), seen(entries, keys[5])}
end

-- im_unread: how far a member is behind, all of one moment.
-- Keys: meta, stream, acked, own, uncounted. Arguments: uid.
-- Answer: {seq of the newest, last, offset, seq at the offset or '' if that entry is trimmed, how many past the offset do
-- not count: own ones, recalled ones and tombstones}, or NOTMEMBER. Errors: NOGROUP.
local function unread(keys, args)
  local head, last = head_of(keys[1])
  if not head then
    return no_group()
  end
  local offset = redis.call('ZSCORE', keys[3], args[1])
  if not offset then
    return 'NOTMEMBER'
  end
  local packed, seq = tonumber(offset), ''
  if packed == last then
    seq = head
  elseif packed == 0 then
    seq = 0
  else
    -- By the message after it: the one at the offset may be trimmed, or be one that a crash of the server took back.
    if packed >= tonumber(redis.call('HGET', keys[1], 'trimmed') or '0') then
      local after = redis.call('XRANGE', keys[2], '(' .. unpack_id(packed), '+', 'COUNT', 1)[1]
      seq = after and tonumber(after[2][2]) - 1 or head
    end
  end
  local not_counted = own_past(keys[4], packed) + redis.call('ZCOUNT', keys[5], '(' .. offset, '+inf')
  return {head, decimal(last), offset, seq, not_counted}
end

-- What tallies have in common. All messages are within these two (packed); where nobody came or went between them, how many
-- spans began before a message and how many ended before it is the same for all.
local function tallying(keys, lowest, highest)
  local common = {acked = keys[3], joined = keys[4], left = keys[5], spans = redis.call('ZCARD', keys[4]), offsets = {}}
  local before = redis.call('ZCOUNT', keys[4], '-inf', '(' .. lowest)
  local ended = redis.call('ZCOUNT', keys[5], '-inf', '(' .. lowest)
  if lowest == highest or before == redis.call('ZCOUNT', keys[4], '-inf', '(' .. highest)
      and ended == redis.call('ZCOUNT', keys[5], '-inf', '(' .. highest) then
    common.before, common.ended = before, ended
  end
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
  local read = redis.call('ZCOUNT', common.acked, message, '+inf') - (common.spans - before)
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
  local answers, lowest, highest = {}, math.huge, 0
  for i = 1, #args, 3 do
    local packed = tonumber(args[i])
    lowest, highest = math.min(lowest, packed), math.max(highest, packed)
  end
  local common = args[1] and tallying(keys, decimal(lowest), decimal(highest))
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
-- Keys: meta, stream, acked, joined, left, uncounted. Arguments: id to start before (XREVRANGE form, '+' for the newest),
-- count.
-- Answer: {trimmed, {entry, read, unread} for each}. Errors: NOGROUP.
local function status(keys, args)
  local trimmed = redis.call('HMGET', keys[1], 'seq', 'trimmed')
  if not trimmed[1] then
    return no_group()
  end
  local answers = {}
  local entries = seen(redis.call('XREVRANGE', keys[2], args[1], '-', 'COUNT', args[2]), keys[6])
  if #entries > 0 then
    local common = tallying(keys, decimal(pack(entries[#entries][1])), decimal(pack(entries[1][1])))
    for i, entry in ipairs(entries) do
      local read, not_read = tally(common, decimal(pack(entry[1])), entry[2][4], entry[2][6])
      answers[i] = {entry, read, not_read}
    end
  end
  return {trimmed[2] or '0', answers}
end

-- im_readers: the spans behind a tally, from which the caller takes the names.
-- Keys: meta, stream, acked, joined, left, uncounted. Arguments: packed msgid.
-- Answer: {entry or '' if trimmed, acked it, began at or after it, began before it, ended before it}, or NOMSG, FUTURE.
-- Errors: NOGROUP.
local function readers(keys, args)
  local entry, problem = find(keys[2], keys[1], tonumber(args[1]))
  if problem == 'NOGROUP' then
    return no_group()
  elseif not entry and problem ~= 'TRIMMED' then
    return problem
  end
  local before = '(' .. args[1]
  return {
    entry and seen({entry}, keys[6])[1] or '',
    redis.call('ZRANGEBYSCORE', keys[3], args[1], '+inf'),
    redis.call('ZRANGEBYSCORE', keys[4], args[1], '+inf'),
    redis.call('ZRANGEBYSCORE', keys[4], '-inf', before),
    redis.call('ZRANGEBYSCORE', keys[5], '-inf', before),
  }
end

-- im_changes: the tallies that moves of offsets have changed.
-- Keys: meta, stream, acked, joined, left. Arguments: count, then segments: packed msgid it begins after, packed msgid it
-- ends with, and the uid if one member alone has moved over it (whose own messages it does not change), else ''.
-- Answer: {trimmed, {sender, packed msgid, read, unread} for each message, where the next call begins after or ''}.
-- Messages up to `trimmed` are in SQL only. Errors: NOGROUP.
local function changes(keys, args)
  local meta = redis.call('HMGET', keys[1], 'seq', 'trimmed')
  if not meta[1] then
    return no_group()
  end
  local room, answers, next_after = tonumber(args[1]), {}, ''
  local common = args[2] and tallying(keys, decimal(tonumber(args[2]) + 1), args[#args - 1])
  for i = 2, #args, 3 do
    local first, final = '(' .. unpack_id(tonumber(args[i])), unpack_id(tonumber(args[i + 1]))
    local entries = redis.call('XRANGE', keys[2], first, final, 'COUNT', room)
    for _, entry in ipairs(entries) do
      local sender = entry[2][4]
      next_after = decimal(pack(entry[1]))
      if sender ~= args[i + 2] and entry[2][15] ~= 'recalls' then
        local read, not_read = tally(common, next_after, sender, entry[2][6])
        answers[#answers + 1] = {sender, next_after, read, not_read}
      end
    end
    room = room - #entries
    if room <= 0 then
      return {meta[2] or '0', answers, next_after}
    end
  end
  return {meta[2] or '0', answers, ''}
end

-- im_tell: mark messages as changed for their sender, and push one digest to the sender's live sessions.
-- Each message gets a version of its own, from the one that the digest names upwards.
-- Keys: version counter, dirty. Arguments: inbox channel, gid, then for each message its packed msgid, read, unread.
-- Answer: how many connections got the digest.
local function tell_sender(keys, args)
  local count = (#args - 2) / 3
  local version = redis.call('INCRBY', keys[1], decimal(count)) - count + 1
  local digest = {'d', args[2], decimal(version)}
  for i = 3, #args, 3 do
    redis.call('ZADD', keys[2], decimal(version), args[2] .. SEP .. args[i])
    digest[#digest + 1] = args[i] .. ' ' .. args[i + 1] .. ' ' .. args[i + 2]
    version = version + 1
  end
  return redis.call('SPUBLISH', args[1], table.concat(digest, SEP))
end

-- im_confirm: the sender has taken over these tallies. A message that changed again since stays marked.
-- The journal notes how many readers were confirmed: with that, SQL alone tells which tallies changed since.
-- Keys: dirty, journal. Arguments: for each message: gid SEP packed msgid, version, read. Answer: how many are confirmed.
local function confirm(keys, args)
  local confirmed = {}
  for i = 1, #args, 3 do
    local version = redis.call('ZSCORE', keys[1], args[i])
    if version and tonumber(version) <= tonumber(args[i + 1]) then
      redis.call('ZREM', keys[1], args[i])
      confirmed[#confirmed + 1] = args[i] .. SEP .. args[i + 2]
    end
  end
  if #confirmed > 0 then
    redis.call('XADD', keys[2], '*', 'kind', 'confirm', 'tallies', table.concat(confirmed, RECORD))
  end
  return #confirmed
end

-- im_dirty: a page of the messages whose tallies changed, in the order they last changed.
-- Keys: dirty. Arguments: version to start after, count. Answer: {gid SEP packed msgid, version, ...}.
local function dirty(keys, args)
  return redis.call('ZRANGE', keys[1], '(' .. args[1], '+inf', 'BYSCORE', 'LIMIT', 0, args[2], 'WITHSCORES')
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- im_beat: open a session or keep it alive.
-- Keys: sessions, online. Arguments: uid, session id, for how long it lives without another beat (ms), 1 to open it.
-- Answer: when it expires (ms), or EXPIRED.
local function beat(keys, args)
  local now = now_ms()
  redis.call('ZREMRANGEBYSCORE', keys[1], '-inf', now)
  redis.call('ZREMRANGEBYSCORE', keys[2], '-inf', now)
  if args[4] ~= '1' and not redis.call('ZSCORE', keys[1], args[2]) then
    return 'EXPIRED'
  end
  local expires = now + tonumber(args[3])
  redis.call('ZADD', keys[1], expires, args[2])
  redis.call('PEXPIREAT', keys[1], redis.call('ZREVRANGE', keys[1], 0, 0, 'WITHSCORES')[2])
  redis.call('ZADD', keys[2], 'GT', expires, args[1])
  return expires
end

-- im_bye: end a session.
-- Keys: sessions, online. Arguments: uid, session id. Answer: how many sessions of the user still live.
local function bye(keys, args)
  redis.call('ZREM', keys[1], args[2])
  redis.call('ZREMRANGEBYSCORE', keys[1], '-inf', now_ms())
  local newest = redis.call('ZREVRANGE', keys[1], 0, 0, 'WITHSCORES')
  if newest[2] then
    redis.call('ZADD', keys[2], newest[2], args[1])
  else
    redis.call('ZREM', keys[2], args[1])
  end
  return redis.call('ZCARD', keys[1])
end

-- im_online: which users have a live session.
-- Keys: online. Arguments: uids, all of this partition; none to count them all. Answer: 1 or 0 for each, or {how many}.
local function online(keys, args)
  local now = now_ms()
  if #args == 0 then
    return {redis.call('ZCOUNT', keys[1], '(' .. now, '+inf')}
  end
  local answers = {}
  for i, uid in ipairs(args) do
    local expires = redis.call('ZSCORE', keys[1], uid)
    answers[i] = expires and tonumber(expires) > now and 1 or 0
  end
  return answers
end

-- im_trim: drop the entries of a stream up to a message, which stays known as the trim point.
-- Keys: meta, stream. Arguments: packed msgid. Answer: how many were dropped, or NOMSG, FUTURE, TRIMMED. Errors: NOGROUP.
local function trim(keys, args)
  local packed = tonumber(args[1])
  local entry, problem = find(keys[2], keys[1], packed)
  if problem == 'NOGROUP' then
    return no_group()
  elseif not entry then
    return problem
  end
  redis.call('HSET', keys[1], 'trimmed', args[1])
  return redis.call('XTRIM', keys[2], 'MINID', unpack_id(packed + 1))
end

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

-- im_entries: entries of a journal or dead letters, oldest first, without taking them.
-- Keys: either. Arguments: first id, last id (XRANGE forms), count. Answer: entries.
local function entries(keys, args)
  return redis.call('XRANGE', keys[1], args[1], args[2], 'COUNT', args[3])
end

-- im_done: entries are handled.
-- Keys: journal. Arguments: kind, then the id of each. Answer: how many of them were still open.
local function done(keys, args)
  return redis.call('XACK', keys[1], unpack(args))
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

-- im_fail: an entry could not be handled. It stays open, and after so many deliveries becomes a dead letter.
-- Keys: journal, dead letters. Arguments: kind, id, reason, deliveries.
-- Answer: {deliveries so far, id of the dead letter or ''}; 0 deliveries if somebody has done it meanwhile.
local function fail(keys, args)
  local open = redis.call('XPENDING', keys[1], args[1], args[2], args[2], 1)[1]
  if not open then
    return {0, ''}
  end
  if open[4] < tonumber(args[4]) then
    return {open[4], ''}
  end
  local entry = redis.call('XRANGE', keys[1], args[2], args[2])[1]
  local fields = {'dead_worker', args[1], 'dead_reason', args[3], 'dead_entry', args[2], 'dead_deliveries', open[4]}
  for _, field in ipairs(entry and entry[2] or {}) do
    fields[#fields + 1] = field
  end
  local id = redis.call('XADD', keys[2], '*', unpack(fields))
  redis.call('XACK', keys[1], args[1], args[2])
  return {open[4], id}
end

-- im_requeue: put a dead letter back into the journal. The new entry says in `of` which one it was at first: when it
-- happened, and before what, stays as it was.
-- Keys: dead letters, journal. Arguments: id. Answer: id of the new entry, NONE if there is no such dead letter, or EMPTY
-- if nothing is left of its entry.
local function requeue(keys, args)
  local letter = redis.call('XRANGE', keys[1], args[1], args[1])[1]
  if not letter then
    return 'NONE'
  end
  local fields, told = {unpack(letter[2], 9)}, false
  if #fields == 0 then
    return 'EMPTY'
  end
  for i = 1, #fields, 2 do
    told = told or fields[i] == 'of'
  end
  if not told then
    fields[#fields + 1] = 'of'
    fields[#fields + 1] = letter[2][6]
  end
  redis.call('XDEL', keys[1], args[1])
  return note(keys[2], unpack(fields))
end

-- im_drop: forget a dead letter.
-- Keys: dead letters. Arguments: id. Answer: 1 if it was there.
local function drop(keys, args)
  return redis.call('XDEL', keys[1], args[1])
end

-- im_lease: the sign of life of a worker process; who holds it keeps it for so long, or gives it back.
-- Keys: lease. Arguments: token of the process, ms (0: give it back). Answer: 1, or 0 if another process holds it.
local function lease(keys, args)
  local holder = redis.call('GET', keys[1])
  if holder and holder ~= args[1] then
    return 0
  end
  if args[2] == '0' then
    redis.call('DEL', keys[1])
  else
    redis.call('SET', keys[1], args[1], 'PX', args[2])
  end
  return 1
end

-- im_undone: where the entries begin that some kind of worker has not done.
-- Keys: journal. Arguments: 1 if only these kinds count, 0 if all that follow the journal, then each kind that must have
-- begun. Answer: an id, or '' if one has not.
local function undone(keys, args)
  return lowest_undone(keys[1], args[1] == '1', {unpack(args, 2)}) or ''
end

-- im_trim_journal: drop the entries that every kind of worker has done.
-- Keys: journal. Arguments: each kind that must have begun. Answer: how many were dropped.
local function trim_journal(keys, args)
  local lowest = lowest_undone(keys[1], false, args)
  return lowest and redis.call('XTRIM', keys[1], 'MINID', lowest) or 0
end

-- Restoring: what `check --repair`, `rebuild` and the reconciliation of an older Redis need beside the rest. A stream takes
-- entries at its end only; so where some are missing, a new stream is made beside it (the shadow) and takes its place.

local function last_id(stream)
  if redis.call('EXISTS', stream) == 0 then
    return '0-0'
  end
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      return info[i + 1]
    end
  end
end

local function is_after(one, other)
  local ms, n = parts_of(one)
  local other_ms, other_n = parts_of(other)
  return ms > other_ms or ms == other_ms and n > other_n
end

-- Make the stream, if it is not there, and let it give ids after this one from now on. `added` is how many entries it has
-- had, as far as lags are counted from it.
local function raise_last_id(stream, id, added)
  if redis.call('EXISTS', stream) == 0 then
    redis.call('XGROUP', 'CREATE', stream, SEP, '0', 'MKSTREAM')
    redis.call('XGROUP', 'DESTROY', stream, SEP)
  end
  local top = last_id(stream)
  if is_after(id, top) then
    top = id
  end
  if added then
    added = math.max(added, redis.call('XLEN', stream))
    redis.call('XSETID', stream, top, 'ENTRIESADDED', added, 'MAXDELETEDID', '0-0')
  else
    redis.call('XSETID', stream, top)
  end
end

-- im_restore_copy: copy a page of a stream's entries into its shadow, after those that it has.
-- Keys: stream, shadow. Arguments: first and last id (inclusive), count, 1 if the shadow begins anew.
-- Answer: how many were copied.
local function restore_copy(keys, args)
  if args[4] == '1' then
    redis.call('UNLINK', keys[2])
  end
  local top = last_id(keys[2])
  local first = is_after(args[1], top) and args[1] or '(' .. top
  if is_after(top, args[2]) or top == args[2] then
    return 0
  end
  local entries = redis.call('XRANGE', keys[1], first, args[2], 'COUNT', args[3])
  for _, entry in ipairs(entries) do
    redis.call('XADD', keys[2], entry[1], unpack(entry[2]))
  end
  return #entries
end

-- im_restore_add: add messages to a shadow, after those that it has; what it has already is passed over.
-- Keys: shadow, uncounted. Arguments: 1 if the shadow begins anew, then for each message: msgid, seq, uid, span, client_msgid
-- or '', sent_at in ms or '', 1 if the sender's offset moved with it, content, packed msgid that it recalls or ''.
-- Answer: how many were added.
local function restore_add(keys, args)
  if args[1] == '1' then
    redis.call('UNLINK', keys[1])
  end
  local top, added = last_id(keys[1]), 0
  for i = 2, #args, 9 do
    if is_after(args[i], top) then
      local fields = {'seq', args[i + 1], 'uid', args[i + 2], 'span', args[i + 3], 'cid', args[i + 4], 'sent', args[i + 5],
        'up', args[i + 6], 'text', args[i + 7]}
      local recalls = args[i + 8]
      if recalls ~= '' then
        fields[15], fields[16] = 'recalls', recalls
        local packed = decimal(pack(args[i]))
        redis.call('ZADD', keys[2], recalls, recalls, packed, packed)
      end
      redis.call('XADD', keys[1], args[i], unpack(fields))
      added = added + 1
    end
  end
  return added
end

-- im_restore_uncounted: recalled messages and tombstones are never unread.
-- Keys: uncounted. Arguments: 1 if these are neither, then packed msgids. Answer: how many were not known as what they are.
local function restore_uncounted(keys, args)
  local changed = 0
  for i = 2, #args do
    if args[1] == '1' then
      changed = changed + redis.call('ZREM', keys[1], args[i])
    else
      changed = changed + redis.call('ZADD', keys[1], args[i], args[i])
    end
  end
  return changed
end

-- Call a function with each entry of a stream, from an id on (an XRANGE form).
local function each_entry(stream, first, visit)
  while first do
    local page = redis.call('XRANGE', stream, first, '+', 'COUNT', 1000)
    for _, entry in ipairs(page) do
      visit(entry[1], entry[2])
    end
    first = #page == 1000 and '(' .. page[1000][1]
  end
end

-- Acks of messages at or after `lost` that the journal tells and `persist` has not done: they are taken back.
local function withdraw_acks(journal, gid, undone, lost)
  local kinds = {}
  for _, fields in ipairs(redis.call('XINFO', 'GROUPS', journal)) do
    kinds[#kinds + 1] = fields[2]
  end
  each_entry(journal, undone, function(id, fields)
    local passed = false
    if fields[2] == 'ack' and fields[4] == gid then
      for to in string.gmatch(RECORD .. fields[6], RECORD .. '%d+' .. SEP .. '%d+' .. SEP .. '(%d+)') do
        passed = passed or tonumber(to) >= lost
      end
    end
    if passed then
      redis.call('XDEL', journal, id)
      for _, kind in ipairs(kinds) do
        redis.call('XACK', journal, kind, id)
      end
    end
  end)
end

-- Whether the journal tells, since an id, that members of a group came or went.
local function has_changed(journal, since, gid)
  local changed = false
  each_entry(journal, '(' .. since, function(_, fields)
    changed = changed or fields[4] == gid and fields[2] ~= 'msg' and fields[2] ~= 'ack'
  end)
  return changed
end

-- Give a shadow the consumer groups of the members, at their offsets.
local function follow_offsets(shadow, acked, trimmed, trimmed_seq)
  local seqs = {['0'] = 0, [trimmed] = tonumber(trimmed_seq)}
  local found = redis.call('ZRANGE', acked, 0, -1, 'WITHSCORES')
  for i = 1, #found, 2 do
    local uid, offset = found[i], found[i + 1]
    if not string.find(uid, SEP, 1, true) then
      local id = unpack_id(tonumber(offset))
      if not seqs[offset] then
        local entry = redis.call('XRANGE', shadow, id, id)[1]
        seqs[offset] = entry and tonumber(entry[2][2])
      end
      if seqs[offset] then
        redis.call('XGROUP', 'CREATE', shadow, uid, id, 'ENTRIESREAD', seqs[offset])
      else
        redis.call('XGROUP', 'CREATE', shadow, uid, id)
      end
    end
  end
end

-- im_restore_swap: a shadow takes the place of a group's stream, and the group is there from now on, if it was not.
-- Messages that came since the caller looked follow in the shadow, with seqs that go on from there. Offsets that have
-- passed messages which were missing go back to before these, unless SQL knows better; the journal says where they are.
-- Keys: meta, stream, shadow, acked, uncounted, journal, groups.
-- Arguments: gid, start of the inbox channels, last id of the journal when the caller looked, newest id of the stream that it
-- saw, newest id of the shadow and its seq, trim point (packed) and its seq, id after which ids are given, where the
-- entries begin that `persist` has not done ('' if there are none), packed msgid of the first message that was missing ('' if
-- there is none), then, if there is one, for each span: span key, the first missing message that SQL does not know it to have
-- passed (or a higher number than any), its offset before that, where it joined, the offset that SQL knows.
-- Answer: {seq, packed msgid} of the newest, or CHANGED if members came or went meanwhile, or ids do not fit.
local function restore_swap(keys, args)
  local meta, stream, shadow, acked, journal = keys[1], keys[2], keys[3], keys[4], keys[6]
  local gid, newest, seq, trimmed, trimmed_seq, lost = args[1], args[5], tonumber(args[6]), args[7], args[8], args[11]
  local tail = redis.call('XRANGE', stream, '(' .. args[4], '+')
  if has_changed(journal, args[3], gid) or tail[1] and not is_after(tail[1][1], newest) then
    return 'CHANGED'
  end
  for _, entry in ipairs(tail) do
    local fields = entry[2]
    seq, newest = seq + 1, entry[1]
    fields[2], fields[12] = seq, lost == '' and fields[12] or '0'
    redis.call('XADD', shadow, newest, unpack(fields))
  end
  local moves = {}
  for i = 12, #args, 5 do
    local span, known = args[i], args[i + 4]
    local offset = redis.call('ZSCORE', acked, span)
    if offset and tonumber(offset) >= tonumber(args[i + 1]) then
      offset = args[i + 2]
      redis.call('ZADD', acked, offset, span)
    end
    if offset and tonumber(offset) > tonumber(known) then
      moves[#moves + 1] = table.concat({args[i + 3], known, offset, string.match(span, '^[^' .. SEP .. ']+')}, SEP)
    end
  end
  if lost ~= '' and args[10] ~= '' then
    withdraw_acks(journal, gid, args[10], tonumber(lost))
  end
  for first = 1, #moves, 1000 do
    local some = table.concat(moves, RECORD, first, math.min(first + 999, #moves))
    note(journal, 'kind', 'ack', 'gid', gid, 'moves', some)
  end
  raise_last_id(shadow, args[9], seq)
  follow_offsets(shadow, acked, trimmed, trimmed_seq)
  redis.call('RENAME', shadow, stream)
  local last = newest == '0-0' and '0' or decimal(pack(newest))
  redis.call('HSET', meta, 'seq', seq, 'last', last, 'trimmed', trimmed)
  redis.call('SADD', keys[7], gid)
  return {seq, last}
end

-- End what a group knows of a member as one.
local function forget_member(stream, uid, groups_of, own, gid)
  redis.call('XGROUP', 'DESTROY', stream, uid)
  redis.call('SREM', groups_of, gid)
  redis.call('UNLINK', own)
end

-- Set a member's consumer group, which may not be there, to an offset. Its seq is looked up if it is not given.
local function set_offset(stream, uid, offset, seq, trimmed)
  local id = unpack_id(offset)
  if seq == '' and offset >= trimmed then
    local after = redis.call('XRANGE', stream, '(' .. id, '+', 'COUNT', 1)[1]
    local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
    seq = after and tonumber(after[2][2]) - 1 or newest and newest[2][2] or ''
  end
  redis.pcall('XGROUP', 'CREATE', stream, uid, id)
  if seq == '' then
    redis.call('XGROUP', 'SETID', stream, uid, id)
  else
    redis.call('XGROUP', 'SETID', stream, uid, id, 'ENTRIESREAD', seq)
  end
end

-- im_restore_spans: make spans what they should be. Offsets go forward only.
-- Keys: stream, acked, joined, left, then groups_of and own of each span's uid.
-- Arguments: gid, start of the inbox channels, trim point, then for each span: what to do, uid, where it joined, where it
-- left, its offset and the seq of that (or ''), and where the uid's open span joined when the caller looked ('' if there was
-- none). What to do: `open` it, `close` it, or `drop` its key, which then stands for the uid.
-- Answer: how many members came or went meanwhile: nothing was done about these.
local function restore_spans(keys, args)
  local stream, acked, joined, left = keys[1], keys[2], keys[3], keys[4]
  local missed = 0
  for i = 4, #args, 7 do
    local what, uid, from, to, offset, seq = args[i], args[i + 1], args[i + 2], args[i + 3], args[i + 4], args[i + 5]
    local k = 5 + 2 * (i - 4) / 7
    local began = redis.call('ZSCORE', joined, uid)
    if what == 'drop' then
      for z = 2, 4 do
        redis.call('ZREM', keys[z], uid)
      end
      if not string.find(uid, SEP, 1, true) then
        forget_member(stream, uid, keys[k], keys[k + 1], args[1])
      end
    elseif (began or '') ~= args[i + 6] then
      missed = missed + 1
    elseif what == 'open' then
      local is_new = not redis.call('ZSCORE', acked, uid)
      redis.call('ZADD', acked, 'GT', offset, uid)
      redis.call('ZADD', joined, from, uid)
      redis.call('ZREM', left, uid)
      local stands = redis.call('ZSCORE', acked, uid)
      set_offset(stream, uid, tonumber(stands), stands == offset and seq or '', tonumber(args[3]))
      redis.call('SADD', keys[k], args[1])
      if is_new then
        tell(args[2], uid, {'j', args[1]})
      end
    else
      if began == from then
        local stands = redis.call('ZSCORE', acked, uid) or offset
        offset = decimal(math.min(math.max(tonumber(stands), tonumber(offset)), tonumber(to)))
        redis.call('ZREM', acked, uid)
        redis.call('ZREM', joined, uid)
        forget_member(stream, uid, keys[k], keys[k + 1], args[1])
        tell(args[2], uid, {'l', args[1]})
      end
      if tonumber(to) > tonumber(from) then
        local span = uid .. SEP .. from
        redis.call('ZADD', acked, 'GT', offset, span)
        redis.call('ZADD', joined, from, span)
        redis.call('ZADD', left, to, span)
      end
    end
  end
  return missed
end

-- im_restore_own: find the own messages past their offsets that count, from the stream and, where it is trimmed, as given.
-- Keys: stream, acked, uncounted, then the own list of each uid.
-- Arguments: for each uid: uid, how many packed msgids follow, these: its own ones up to the trim point.
-- Answer: how many there are.
local function restore_own(keys, args)
  local offsets, lists, lowest, a = {}, {}, nil, 1
  for _ = 4, #keys do
    local uid, count = args[a], tonumber(args[a + 1])
    local offset = tonumber(redis.call('ZSCORE', keys[2], uid))
    lists[#lists + 1] = {uid = uid}
    if offset then
      offsets[uid] = {at = offset, own = lists[#lists]}
      lowest = math.min(lowest or offset, offset)
      for i = a + 2, a + 1 + count do
        if tonumber(args[i]) > offset and not redis.call('ZSCORE', keys[3], args[i]) then
          table.insert(lists[#lists], args[i])
        end
      end
    end
    a = a + 2 + count
  end
  local start, total = lowest and unpack_id(lowest), 0
  while start do
    local page = redis.call('XRANGE', keys[1], '(' .. start, '+', 'COUNT', 500)
    for _, entry in ipairs(page) do
      local sender, packed = offsets[entry[2][4]], pack(entry[1])
      if sender and packed > sender.at and not redis.call('ZSCORE', keys[3], decimal(packed)) then
        table.insert(sender.own, decimal(packed))
      end
    end
    start = #page == 500 and page[500][1]
  end
  for i, own in ipairs(lists) do
    redis.call('DEL', keys[3 + i])
    for first = 1, #own, 1000 do
      redis.call('RPUSH', keys[3 + i], unpack(own, first, math.min(first + 999, #own)))
    end
    total = total + #own
  end
  return total
end

-- im_restore_again: tell the live sessions of members to begin again in a group, from their offsets.
-- Keys: acked. Arguments: gid, start of the inbox channels, uids. Answer: how many are members.
local function restore_again(keys, args)
  local count = 0
  for i = 3, #args do
    if redis.call('ZSCORE', keys[1], args[i]) then
      tell(args[2], args[i], {'j', args[1], 'again'})
      count = count + 1
    end
  end
  return count
end

-- im_restore_once: know client_msgids again.
-- Keys: once newer. Arguments: once_ms, 1 if what is known is wrong, then for each: uid SEP client_msgid, msgid, seq.
-- Answer: how many were not known.
local function restore_once(keys, args)
  local added, is_new = 0, redis.call('EXISTS', keys[1]) == 0
  for i = 3, #args, 3 do
    local value = args[i + 1] .. ' ' .. args[i + 2]
    added = added + redis.call(args[2] == '1' and 'HSET' or 'HSETNX', keys[1], args[i], value)
  end
  if is_new then
    redis.call('PEXPIRE', keys[1], 2 * tonumber(args[1]))
  end
  return added
end

-- im_restore_dirty: mark messages as changed for their sender. New versions are above all that were given before: they
-- begin with the time, packed like a msgid.
-- Keys: version counter, dirty. Arguments: gid SEP packed msgid of each. Answer: how many were not marked.
local function restore_dirty(keys, args)
  local floor, added = (now_ms() - EPOCH_MS) * PER_MS, 0
  if tonumber(redis.call('GET', keys[1]) or '0') < floor then
    redis.call('SET', keys[1], decimal(floor))
  end
  for _, message in ipairs(args) do
    if not redis.call('ZSCORE', keys[2], message) then
      redis.call('ZADD', keys[2], decimal(redis.call('INCR', keys[1])), message)
      added = added + 1
    end
  end
  return added
end

-- im_restore_journal: let a journal give ids after this one from now on.
-- Keys: journal. Arguments: id. Answer: the last id as it stands.
local function restore_journal(keys, args)
  raise_last_id(keys[1], args[1])
  return last_id(keys[1])
end

-- The field of the marks that changes whenever somebody mends.
local MENDED = SEP .. 'mended'

-- im_restore_mark: a worker is about to store entries of a journal up to this one. Before that it says so here, and so
-- Redis knows of everything that SQL has, unless Redis has lost what it knew.
-- Keys: marks, journal. Arguments: consumer, id of the newest entry, that packed, the state of mending when the worker
-- took the entries, then for each consumer that has stored anything: its name, packed id up to which it has.
-- Answer: OK; or OLDER if Redis has lost what it knew, GONE if it has lost these entries, HELD while somebody mends, MENDED
-- if somebody has mended since: nothing may be stored.
local function restore_mark(keys, args)
  local marks, consumer, packed = keys[1], args[1], args[3]
  if tonumber(redis.call('HGET', marks, SEP) or '0') > now_ms() then
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
-- Keys: marks. Arguments: ms (0: let them go on). Answer: until when (ms).
local function restore_hold(keys, args)
  if args[1] == '0' then
    redis.call('HDEL', keys[1], SEP)
    return 0
  end
  local now = now_ms()
  local until_ms = now + tonumber(args[1])
  redis.call('HSET', keys[1], SEP, decimal(until_ms), MENDED, decimal(now))
  return until_ms
end

local READS = {'no-writes'}
local WRITES_LITTLE = {'allow-oom'}

redis.register_function{function_name = 'im_version', callback = version, flags = READS}
redis.register_function{function_name = 'im_init', callback = init}
redis.register_function{function_name = 'im_create', callback = create}
redis.register_function{function_name = 'im_join', callback = join_many}
redis.register_function{function_name = 'im_leave', callback = leave_many, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_send', callback = send}
redis.register_function{function_name = 'im_ack', callback = ack, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_recall', callback = recall, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_group', callback = show, flags = READS}
redis.register_function{function_name = 'im_range', callback = range, flags = READS}
redis.register_function{function_name = 'im_pull', callback = pull, flags = READS}
redis.register_function{function_name = 'im_unread', callback = unread, flags = READS}
redis.register_function{function_name = 'im_tally', callback = tally_many, flags = READS}
redis.register_function{function_name = 'im_status', callback = status, flags = READS}
redis.register_function{function_name = 'im_readers', callback = readers, flags = READS}
redis.register_function{function_name = 'im_changes', callback = changes, flags = READS}
redis.register_function{function_name = 'im_tell', callback = tell_sender, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_confirm', callback = confirm, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_dirty', callback = dirty, flags = READS}
redis.register_function{function_name = 'im_beat', callback = beat, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_bye', callback = bye, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_online', callback = online, flags = READS}
redis.register_function{function_name = 'im_trim', callback = trim, flags = WRITES_LITTLE}
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
redis.register_function{function_name = 'im_undone', callback = undone, flags = READS}
redis.register_function{function_name = 'im_trim_journal', callback = trim_journal, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_restore_copy', callback = restore_copy}
redis.register_function{function_name = 'im_restore_add', callback = restore_add}
redis.register_function{function_name = 'im_restore_uncounted', callback = restore_uncounted}
redis.register_function{function_name = 'im_restore_swap', callback = restore_swap}
redis.register_function{function_name = 'im_restore_spans', callback = restore_spans}
redis.register_function{function_name = 'im_restore_own', callback = restore_own}
redis.register_function{function_name = 'im_restore_again', callback = restore_again, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_restore_once', callback = restore_once}
redis.register_function{function_name = 'im_restore_dirty', callback = restore_dirty}
redis.register_function{function_name = 'im_restore_journal', callback = restore_journal}
redis.register_function{function_name = 'im_restore_mark', callback = restore_mark, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_restore_marks', callback = restore_marks, flags = WRITES_LITTLE}
redis.register_function{function_name = 'im_restore_hold', callback = restore_hold, flags = WRITES_LITTLE}
