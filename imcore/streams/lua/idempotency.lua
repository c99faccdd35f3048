-- Idempotency: client_msgids that were sent before.
--
-- A table of client_msgids measures its age in steps, from one look at it to the next. Between two looks the clock may have
-- jumped, which cannot be distinguished from a long wait. So one step counts as at most 1/16 of the table's length: a jump
-- ahead makes a table older by one step, and the jump back makes it younger again. A table lives two steps longer than
-- promised, and so survives two jumps ahead that nobody has corrected. A table that is looked at less often than once a step
-- lives longer: it is dropped after 18 looks.
local STEPS = 16
local SPARE_STEPS = 2

-- A shorter step is not stored, but added to the next one.
local SHORTEST_STEP = 1 / 8

local function longest_step(length)
  return math.max(1, math.floor(length / STEPS))
end

local function lifetime(length)
  return length + SPARE_STEPS * longest_step(length)
end

local function set_age(idempotency, since, length, now)
  redis.call('HSET', idempotency, SEP, table.concat({decimal(since), decimal(length), decimal(now)}, ' '))
end

-- The age of a table of client_msgids by its own count, and for how long its entries count (ms); nil if there is no table.
-- And whether a step was stored.
local function age_of_table(idempotency, now)
  local since, length, seen = string.match(redis.call('HGET', idempotency, SEP) or '', '^(%d+) (%d+) (%d+)$')
  if not since then
    return redis.call('EXISTS', idempotency) == 1 and 0 or nil, 0
  end
  since, length = tonumber(since), tonumber(length)
  local step, longest = now - tonumber(seen), longest_step(length)
  local is_stored = step < 0 or step > longest * SHORTEST_STEP
  if is_stored then
    local counted = math.max(-longest, math.min(step, longest))
    since = math.min(since + step - counted, now)
    set_age(idempotency, since, length, now)
  end
  return now - since, length, is_stored
end

-- Rotate the two tables of client_msgids: at the end of its lifetime the newer one becomes the older one, as soon as the
-- previous older one has reached its lifetime, too, and is dropped. From then on its entries count for as long again.
-- Returns the answer of age_of_table for the newer one.
local function rotate_idempotency(newer, older, now)
  local age, length, is_stored = age_of_table(newer, now)
  local is_due = not age or age >= lifetime(length)
  if not is_due and not is_stored then
    return age, length
  end
  local older_age, older_length = age_of_table(older, now)
  if older_age and older_age >= lifetime(older_length) then
    redis.call('UNLINK', older)
    older_age = nil
  end
  if age and is_due and not older_age then
    redis.call('RENAME', newer, older)
    set_age(older, now, length, now)
    age = nil
  end
  return age, length
end

-- Begin the newer table, whose age is given, if there is none, and let its entries count for at least `idempotency_ms`.
local function begin_table(newer, idempotency_ms, now, age, length)
  if not age or length < idempotency_ms then
    set_age(newer, now - (age or 0), idempotency_ms, now)
  end
end

-- Look up the client_msgids of drafts, which are the arguments from the fourth on. Returns "msgid seq" by field (uid SEP
-- client_msgid), and the state of the newer table for store_client_msgids.
local function known_client_msgids(newer, older, args)
  local fields, known, state = {}, {}, {}
  for a = 4, #args, 5 do
    if args[a + 1] ~= '' then
      fields[#fields + 1] = args[a] .. SEP .. args[a + 1]
    end
  end
  if #fields == 0 then
    return known, state
  end
  state.now = now_ms()
  state.age, state.length = rotate_idempotency(newer, older, state.now)
  local in_newer, in_older = call_for_all('HMGET', newer, fields, 1), call_for_all('HMGET', older, fields, 1)
  for i = 1, #in_newer do
    known[fields[i]] = in_newer[i] or in_older[i]
  end
  return known, state
end

-- Store new client_msgids: fields and values in turn.
local function store_client_msgids(newer, pairs_to_store, idempotency_ms, state)
  if pairs_to_store[1] then
    begin_table(newer, idempotency_ms, state.now, state.age, state.length)
  end
  for first = 1, #pairs_to_store, MAX_UNPACKED do
    redis.call('HSET', newer, unpack(pairs_to_store, first, math.min(first + MAX_UNPACKED - 1, #pairs_to_store)))
  end
end

-- im_rotate_idempotency: drop client_msgids that count no longer, also in a group without new messages.
-- Keys: idempotency_newer, idempotency_older. Arguments: none. Answer: how many tables are left.
define('im_rotate_idempotency', ALLOW_OOM, function(keys)
  rotate_idempotency(keys[1], keys[2], now_ms())
  return redis.call('EXISTS', keys[1], keys[2])
end)
