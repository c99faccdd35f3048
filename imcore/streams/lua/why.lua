-- Why a user has not read a message, or that they have.

-- im_why: what decides whether a user has read a message, as far as one of their spans says.
-- Keys: meta, stream, acked, joined, left, ahead, receipts_off. Arguments: packed msgid, uid, key of a closed span ('' for the open one).
-- Answer: {sender ('' if only SQL has the message), 1 if the user's receipts are off else 0, and if the span covers the message: packed
-- offset, packed position up to which messages have arrived, packed msgid after which the span began}, or NOMSG, FUTURE. Errors: NOGROUP.
define_for_group('im_why', READ_ONLY, function(keys, args, _, last, trimmed, erased)
  local message, span = tonumber(args[1]), args[3] ~= '' and args[3] or args[2]
  local entry, problem = find_message(keys[2], message, last, trimmed)
  if not entry and problem ~= 'TRIMMED' then
    return problem
  end
  local answer = {entry and hide_erased({entry}, erased)[1][2][4] or '', redis.call('SISMEMBER', keys[7], args[2])}
  local joined, left = redis.call('ZSCORE', keys[4], span), redis.call('ZSCORE', keys[5], span)
  local offset = redis.call('ZSCORE', keys[3], span)
  if offset and joined and tonumber(joined) < message and (not left or tonumber(left) >= message) then
    answer[3], answer[4], answer[5] = offset, redis.call('ZSCORE', keys[6], span) or offset, joined
  end
  return answer
end)
