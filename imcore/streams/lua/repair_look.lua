-- What a comparison with SQL reads of a small group, in one call.

-- The size of a key, by the command that counts it; -1 for a key of another type.
local function size_of(command, key)
  local size = redis.pcall(command, key)
  return type(size) == 'number' and size or -1
end

-- im_repair_heads: what groups of one partition are, and how large. There may be no group of a gid.
-- Keys: groups, then meta, stream and acked of each. Arguments: the gids.
-- Answer: for each {1 if it is listed else 0, {seq, last, trimmed}, the number of its entries, of its spans}; -1 for a number where
-- somebody has set a key of another type.
define('im_repair_heads', READ_ONLY, function(keys, args)
  local answer = {}
  for number, gid in ipairs(args) do
    local k = 3 * number - 1
    answer[number] = {redis.call('SISMEMBER', keys[1], gid), redis.call('HMGET', keys[k], 'seq', 'last', 'trimmed'),
      size_of('XLEN', keys[k + 1]), size_of('ZCARD', keys[k + 2])}
  end
  return answer
end)

-- The consumer groups of a stream, which may be missing: names and last-delivered-ids in turn.
local function followers_of(stream)
  local found = {}
  if redis.call('EXISTS', stream) == 1 then
    for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
      local fields = fields_of(info)
      found[#found + 1] = fields['name']
      found[#found + 1] = fields['last-delivered-id']
    end
  end
  return found
end

-- im_repair_look: all of a group but its hash and its messages.
-- Keys: stream, bookmarks, acked, joined, left, ahead, ahead_acked, recalled, then groups_of and own_unacked of each uid.
-- Arguments: gid, the most that any set or list may hold.
-- Answer: {consumer groups: name and last id in turn, uids of bookmarks, their texts, members and scores in turn of the six sorted
-- sets, then of each uid: 1 if they list the group else 0, the list}. Nil if the group holds more.
define('im_repair_look', READ_ONLY, function(keys, args)
  local most = tonumber(args[2])
  local bookmarked = redis.call('HKEYS', keys[2])
  if #bookmarked > most then
    return false
  end
  for z = 3, 8 do
    if redis.call('ZCARD', keys[z]) > most then
      return false
    end
  end
  local bookmarks = #bookmarked > 0 and redis.call('HMGET', keys[2], unpack(bookmarked)) or {}
  local answer = {followers_of(keys[1]), bookmarked, bookmarks}
  for z = 3, 8 do
    answer[#answer + 1] = redis.call('ZRANGE', keys[z], 0, -1, 'WITHSCORES')
  end
  for i = 9, #keys, 2 do
    local own = redis.call('LRANGE', keys[i + 1], 0, most)
    if #own > most then
      return false
    end
    answer[#answer + 1] = redis.call('SISMEMBER', keys[i], args[1])
    answer[#answer + 1] = own
  end
  return answer
end)
