-- Positions of members beside the offset: up to where messages have arrived, and the bookmark.

-- The two parts of a bookmark: read in private up to `private`, marked unread after `mark`; 0 for neither. A message may be at `mark`
-- itself, if it is of the same millisecond as the marked one: an ack of it leaves the mark.
local function parse_bookmark(value)
  local private, mark = string.match(value or '', '^(%d+) (%d+)$')
  private, mark = tonumber(private or '0'), tonumber(mark or '0')
  return private <= HIGHEST and private or 0, mark <= HIGHEST and mark or 0
end

-- The position after which a member's messages are unread for the member.
local function unread_position(offset, private, mark)
  return mark > 0 and mark or math.max(offset, private)
end

-- The position up to which a list of own messages may forget them: no unread count begins before it.
local function own_floor(offset, mark)
  return mark > 0 and math.min(offset, mark) or offset
end

-- Store a bookmark, and note it among the changes of a journal entry: uids, and by uid the bookmark that it has now.
local function change_bookmark(bookmarks, joined, uid, private, mark, changes)
  if private == 0 and mark == 0 then
    redis.call('HDEL', bookmarks, uid)
  else
    redis.call('HSET', bookmarks, uid, decimal(private) .. ' ' .. decimal(mark))
  end
  if not changes[uid] then
    changes[#changes + 1] = uid
  end
  changes[uid] = table.concat({joined, decimal(private), decimal(mark)}, SEP)
end

-- Append an entry about offsets (`ack`), positions of delivery (`delivered`) or bookmarks (`bookmarks`), each record being a table
-- that `move`, `deliver` or `append_bookmarks` made. Without records: nothing.
local function append_records(journal, kind, gid, name, records)
  if records[1] then
    local texts = {}
    for i, record in ipairs(records) do
      texts[i] = table.concat(record, SEP)
    end
    append_entry(journal, 'kind', kind, 'gid', gid, name, table.concat(texts, RECORD))
  end
end

-- Append an entry about the bookmarks that have changed. Users with the same one are one record.
local function append_bookmarks(journal, gid, changes)
  local records = {}
  for _, uid in ipairs(changes) do
    local record = records[changes[uid]]
    if not record then
      record = {changes[uid]}
      records[changes[uid]], records[#records + 1] = record, record
    end
    record[#record + 1] = uid
  end
  append_records(journal, 'bookmarks', gid, 'bookmarks', records)
end

-- Let a member read in private up to a message. Returns the member's offset, with a `p` before it if that made less unread.
local function read_in_private(bookmarks, joined, uid, offset, packed, changes)
  local private, mark = parse_bookmark(redis.call('HGET', bookmarks, uid))
  local at = tonumber(offset)
  local new_private = packed > math.max(at, private) and packed or private
  local new_mark = packed > mark and 0 or mark
  if new_private ~= private or new_mark ~= mark then
    change_bookmark(bookmarks, joined, uid, new_private, new_mark, changes)
  end
  local has_advanced = unread_position(at, new_private, new_mark) > unread_position(at, private, mark)
  return (has_advanced and 'p' or '') .. offset
end

-- Correct what lies beside an offset after an ack: a bookmark that the ack has passed goes.
local function pass_bookmark(bookmarks, joined, uid, value, offset, packed, changes)
  local private, mark = parse_bookmark(value)
  local new_private = private > math.max(offset, packed) and private or 0
  local new_mark = packed > mark and 0 or mark
  if new_private ~= private or new_mark ~= mark then
    change_bookmark(bookmarks, joined, uid, new_private, new_mark, changes)
  end
end

-- Set how far messages have arrived in a span, by its key. Nothing is kept of a span where that is not past the offset.
local function set_ahead(ahead, ahead_acked, span, delivered, offset)
  if delivered > offset then
    redis.call('ZADD', ahead, decimal(delivered), span)
    redis.call('ZADD', ahead_acked, decimal(offset), span)
  else
    redis.call('ZREM', ahead, span)
    redis.call('ZREM', ahead_acked, span)
  end
end

-- Let a span that closes keep how far messages have arrived within it.
local function close_ahead(ahead, ahead_acked, uid, span, to, offset)
  local delivered = redis.call('ZSCORE', ahead, uid)
  if delivered then
    set_ahead(ahead, ahead_acked, uid, 0, 0)
    set_ahead(ahead, ahead_acked, span, math.min(tonumber(delivered), to), math.min(tonumber(offset), to))
  end
end
