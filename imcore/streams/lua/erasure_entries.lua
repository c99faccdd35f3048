-- Erasure of a user, continued (erasure.lua): journals and dead letters have nothing of the user any more.

-- The words of a record, which may be empty.
local function words_of(record)
  local words = {}
  for word in string.gmatch(record .. SEP, '([^' .. SEP .. ']*)' .. SEP) do
    words[#words + 1] = word
  end
  return words
end

-- The records of moves with an alias in place of a uid. Without an alias: without the uid, and without records that name nobody then.
local function renamed_records(value, uid, alias)
  local records = {}
  for record in string.gmatch(value, '[^' .. RECORD .. ']+') do
    local words, kept = words_of(record), {}
    for i, word in ipairs(words) do
      local name = i > 3 and word == uid and (alias or '') or word
      if i <= 3 or name ~= '' then
        kept[#kept + 1] = name
      end
    end
    if #kept > 3 then
      records[#records + 1] = table.concat(kept, SEP)
    end
  end
  return table.concat(records, RECORD)
end

-- Tallies with other gids; '' for one of a group that is gone.
local function moved_tallies(value, gids)
  local tallies = {}
  for tally in string.gmatch(value, '[^' .. RECORD .. ']+') do
    local words = words_of(tally)
    words[1] = gids[words[1]] or words[1]
    if words[1] ~= '' then
      tallies[#tallies + 1] = table.concat(words, SEP)
    end
  end
  return table.concat(tallies, RECORD)
end

-- One value of an entry, without the name and the texts of an erased user; nil if nothing of the entry is to be kept.
local function anonymous_value(name, value, is_own, erasure)
  if name == 'gid' then
    value = erasure.gids[value] or value
    return value ~= '' and value or nil
  elseif is_own and (name == 'cid' or name == 'text' or name == 'meta') then
    return ''  -- an entry that somebody had added to a stream by hand
  elseif name == 'uid' and value == erasure.uid then
    return erasure.alias
  elseif name == 'moves' and string.find(value, erasure.uid, 1, true) then
    return renamed_records(value, erasure.uid, erasure.alias)
  elseif name == 'bookmarks' and string.find(value, erasure.uid, 1, true) then
    value = renamed_records(value, erasure.uid)
    return value ~= '' and value or nil
  elseif name == 'tallies' and next(erasure.gids) then
    value = moved_tallies(value, erasure.gids)
    return value ~= '' and value or nil
  end
  return value
end

local REMOVED = 'its reason is removed, since a user was erased'

-- An entry of a journal, or a dead letter, without the name and the texts of an erased user: its fields, nil if nothing of it is to
-- be kept; and whether that differs.
local function anonymous(fields, erasure)
  local kept, differs, values = {}, false, {}
  for i = 1, #fields, 2 do
    values[fields[i]] = fields[i + 1]
  end
  if values.kind == 'user' and values.uid == erasure.uid then
    return nil, true
  end
  for i = 1, #fields, 2 do
    local value = anonymous_value(fields[i], fields[i + 1], values.uid == erasure.uid, erasure)
    if not value then
      return nil, true
    end
    kept[i], kept[i + 1] = fields[i], value
    differs = differs or value ~= fields[i + 1]
  end
  if values.dead_reason and values.dead_reason ~= REMOVED
      and (differs or erasure.concerned[values.gid] or string.find(values.dead_reason, erasure.uid, 1, true)) then
    kept[4], differs = REMOVED, true
  end
  return kept, differs
end

-- A server keeps entries of a stream together in nodes. A deleted entry keeps its bytes in memory, and on the disk, until all others
-- of its node are deleted, too. So a journal is cut, and all that lies before the cut is deleted, or goes to its end. An entry of so
-- many bytes gets a node of its own by default, and the next one another node.
local FILLER_BYTES = 8192

-- Put an entry of a journal at its end, and delete it here. It keeps time and order, as a dead letter does that is put back.
local function move_entry(journal, id, fields)
  if fields then
    local has_first = false
    for i = 1, #fields, 2 do
      has_first = has_first or fields[i] == 'of'
    end
    if not has_first then
      fields[#fields + 1], fields[#fields + 2] = 'of', id
    end
    append_entry(journal, unpack(fields))
  end
  redis.call('XDEL', journal, id)
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', journal)) do
    redis.call('XACK', journal, info[2], id)
  end
end

-- What the arguments from `a` on say of an erasure: uid, alias, how many gids have changed, each with the new one ('' for a group that
-- is gone), then the other gids of groups where the user was.
local function erasure_of(args, a)
  local erasure = {uid = args[a], alias = args[a + 1], gids = {}, concerned = {}}
  local first_other = a + 3 + 2 * tonumber(args[a + 2])
  for i = a + 3, first_other - 1, 2 do
    erasure.gids[args[i]], erasure.concerned[args[i]], erasure.concerned[args[i + 1]] = args[i + 1], true, true
  end
  for i = first_other, #args do
    erasure.concerned[args[i]] = true
  end
  return erasure
end

-- im_erase_cut: let later entries of a journal be in other nodes than all earlier ones. One of its last entries goes after the cut,
-- without an erased user: it is repeated, which makes no difference.
-- Keys: journal. Arguments: those of erasure_of. Answer: the last id before the cut, '' without an entry.
define('im_erase_cut', DENY_OOM, function(keys, args)
  local newest = redis.call('XREVRANGE', keys[1], '+', '-', 'COUNT', 10)
  if not newest[1] then
    return ''
  end
  local erasure, filler = erasure_of(args, 1), redis.call('XADD', keys[1], '*', 'kind', string.rep('x', FILLER_BYTES))
  for _, entry in ipairs(newest) do
    local fields = anonymous(entry[2], erasure)
    move_entry(keys[1], entry[1], fields)
    if fields then
      break
    end
  end
  redis.call('XDEL', keys[1], filler)
  return filler
end)

-- im_erase_entries: let a page of a journal before a cut be gone, and what some worker has not done be after it, without an erased user.
-- Keys: journal. Arguments: last id before the cut, about how many entries, then those of erasure_of.
-- Answer: 1 if more follow, else 0.
define('im_erase_entries', DENY_OOM, function(keys, args)
  local erasure, undone = erasure_of(args, 3), lowest_undone(keys[1], false, {})
  local page, more = read_page('XRANGE', keys[1], '-', args[1], tonumber(args[2]), PAGE_BYTES / 32, true)
  local done = {}
  for _, entry in ipairs(page) do
    if undone and is_after(undone, entry[1]) then
      done[#done + 1] = entry[1]
    else
      move_entry(keys[1], entry[1], (anonymous(entry[2], erasure)))
    end
  end
  if done[1] then
    redis.call('XDEL', keys[1], unpack(done))
  end
  if not more then
    redis.call('XTRIM', keys[1], 'MINID', args[1])  -- an exact trim leaves nodes in which all is deleted; this frees them
  end
  return more and 1 or 0
end)

-- im_erase_dead: copy a page of the dead letters of a partition, without an erased user, and with their ids, into a shadow, which
-- replaces them after the last page. Keys: dead, its shadow. Arguments: id after which to go on ('' at first), about how many, how many
-- were left out so far, 1 if one has changed so far, then those of erasure_of.
-- Answer: {id to go on after, '' at the end; how many were left out so far; 1 if one has changed so far}; an id '-' if letters went
-- meanwhile: to begin again.
define('im_erase_dead', DENY_OOM, function(keys, args)
  local erasure, from, left_out, changed = erasure_of(args, 5), args[1], tonumber(args[3]), tonumber(args[4])
  if from == '' then
    redis.call('UNLINK', keys[2])
  end
  local page, more = read_page('XRANGE', keys[1], from == '' and '-' or '(' .. from, '+', tonumber(args[2]), PAGE_BYTES / 32, true)
  local top = last_id(keys[2])
  for _, letter in ipairs(page) do
    local fields, differs = anonymous(letter[2], erasure)
    changed = differs and 1 or changed
    if fields and is_after(letter[1], top) then
      redis.call('XADD', keys[2], letter[1], unpack(fields))
    elseif not fields then
      left_out = left_out + 1
    end
  end
  if more then
    return {page[#page][1], left_out, changed}
  elseif redis.call('XLEN', keys[1]) ~= redis.call('XLEN', keys[2]) + left_out then
    return {'-', 0, 0}
  elseif changed == 1 then
    raise_last_id(keys[2], last_id(keys[1]))
    redis.call('RENAME', keys[2], keys[1])
  else
    redis.call('UNLINK', keys[2])
  end
  return {'', left_out, changed}
end)
