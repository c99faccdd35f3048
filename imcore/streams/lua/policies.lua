-- Receipt policies, of groups and of users: who is told who has read a message.

-- im_set_policy: set a group's policy. The same policy again does nothing.
-- Keys: meta, journal. Arguments: gid, receipts (`names`, `counts`, `off`; '' as it is), asked_by (`sender`, `members`; '' as it is).
-- Answer: {receipts, asked_by} as they are then. Errors: NOGROUP.
define_for_group('im_set_policy', ALLOW_OOM, function(keys, args)
  local policy = redis.call('HMGET', keys[1], 'receipts', 'asked_by')
  local receipts, asked_by = policy[1] or 'names', policy[2] or 'sender'
  local new_receipts, new_asked_by = args[2] ~= '' and args[2] or receipts, args[3] ~= '' and args[3] or asked_by
  if new_receipts ~= receipts or new_asked_by ~= asked_by then
    redis.call('HSET', keys[1], 'receipts', new_receipts, 'asked_by', new_asked_by)
    append_entry(keys[2], 'kind', 'policy', 'gid', args[1], 'receipts', new_receipts, 'asked_by', new_asked_by)
  end
  return {new_receipts, new_asked_by}
end)

-- im_policy: a group's policy and, for a user who asks who has read messages, what it depends on.
-- Keys: meta, stream, joined, receipts_off. Arguments: uid, then the packed msgid of each message.
-- Answer: {receipts, asked_by, packed msgid after which the user joined ('' for no member), 1 if the user's receipts are off else 0,
-- then for each message 1 if the user has sent it, 0 if somebody else has, or NOMSG, FUTURE, TRIMMED}. Errors: NOGROUP.
define_for_group('im_policy', READ_ONLY, function(keys, args, _, last, trimmed)
  local policy, uid = redis.call('HMGET', keys[1], 'receipts', 'asked_by'), args[1]
  local answer = {policy[1] or 'names', policy[2] or 'sender', redis.call('ZSCORE', keys[3], uid) or '',
    redis.call('SISMEMBER', keys[4], uid)}
  for i = 2, #args do
    local entry, problem = find_message(keys[2], tonumber(args[i]), last, trimmed)
    answer[i + 3] = problem or entry[2][4] == uid and 1 or 0
  end
  return answer
end)

-- im_set_receipts: let a user read in private only, in all groups of one partition, or no longer. The partition of the uid has the
-- user's choice, and notes it in its journal; the others have copies.
-- Keys: receipts_off, erasing, and in the partition of the uid its journal, unless the choice is only put back. Arguments: uid, `on` or
-- `off`. Answer: 1 if that is new. Errors: ERASING.
define('im_set_receipts', ALLOW_OOM, function(keys, args)
  local problem = erasing_error(keys[2], {args[1]}, 1)
  if problem then
    return problem
  end
  local is_new = redis.call(args[2] == 'off' and 'SADD' or 'SREM', keys[1], args[1])
  if is_new == 1 and keys[3] then
    append_entry(keys[3], 'kind', 'user', 'uid', args[1], 'receipts', args[2])
  end
  return is_new
end)
