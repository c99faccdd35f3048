-- Terms: which processes have stored the messages of a group, and where what others have handed over parts from it.

local process

-- A name of the process that runs this: another one after a restart, a failover or a full resync, by which it gets other data.
local function process_name()
  if not process then
    local time = redis.call('TIME')
    process = time[1] .. time[2]
  end
  return process
end

local TERMS = {'term1', 'term2', 'term3', 'term4'}  -- fields of their own: a short value costs less memory than a long one

-- Whether the newest message of a group was stored by this process.
local function is_own_term(term)
  return term and string.find(term, process_name(), 1, true) == 1
end

-- Note that this process stores messages in a group from its `first` one on (packed), after the newest one of another process. A
-- replica that takes over may lack what its primary had stored; and a primary that was stopped may wake up and store more, which
-- is thrown away. The terms say where the two part.
local function begin_term(meta, last, first)
  local terms = redis.call('HMGET', meta, unpack(TERMS))
  table.insert(terms, 1, table.concat({process_name(), decimal(last), decimal(first)}, ' '))
  for n, field in ipairs(TERMS) do
    if terms[n] then
      redis.call('HSET', meta, field, terms[n])
    end
  end
end

local TERM_AGE = 86400000 * PER_MS

-- Whether the message with a msgid (packed) that is here is not the one that a process has stored: each gives its own msgids, and two
-- may give the same one in the same millisecond.
local function is_of_another(terms, packed, process_of)
  for _, term in ipairs(terms) do
    local name, first = string.match(term or '', '^(%d+) %d+ (%d+)$')
    if name and tonumber(first) <= packed then
      return name ~= process_of
    end
  end
  return false
end

-- Where what a client was handed and what is here part, if a message (packed) is not here that a process has handed it: after the
-- newest message that both have. Nil if the message is here, or was trimmed, or if nothing can have been lost. With `=` before
-- its name the process has stored the message, too.
-- Of a process without a term, and of an unknown one ('-'), only this is known: they part where one of the terms of the last day
-- began. For an unknown one the first term is none: it is where the group begins.
local function parting(meta, stream, packed, handed_by, last, trimmed)
  if packed <= trimmed then
    return nil
  end
  local has_stored, process_of = string.match(handed_by, '^(=?)(.*)$')
  local terms = redis.call('HMGET', meta, unpack(TERMS))
  if has_stored == '' or not is_of_another(terms, packed, process_of) then
    local id = unpack_id(packed)
    if packed == last or packed < last and redis.call('XRANGE', stream, id, id)[1] then
      return nil
    end
  end
  local point = packed > last and last or nil
  for _, term in ipairs(terms) do
    local name, before, first = string.match(term or '', '^(%d+) (%d+) (%d+)$')
    if not name or name == process_of then
      return point
    end
    before = tonumber(before)
    if (before > 0 or process_of ~= '-') and before < packed and tonumber(first) > packed - TERM_AGE then
      point = before
    end
  end
  return point
end

-- im_process: the process that has a partition.
-- Keys: its journal. Arguments: none. Answer: its name.
define('im_process', READ_ONLY, function()
  return process_name()
end)
