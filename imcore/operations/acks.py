"""Acks: a member confirms everything up to a message."""

from collections.abc import Iterable, Sequence

from imcore.errors import ImError, InvalidInput
from imcore.model.limits import check_handed_over, check_list, check_msgid, check_name
from imcore.model.values import Ack
from imcore.operations.effects import Effects, GetKeyspace, call_each, raised
from imcore.operations.messages import each_of
from imcore.operations.queries import stored_message
from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Trimmed
from imcore.streams.calls.message_calls import AckResult, AckTarget, split_targets


def ack(uid: str, gid: str, msgid: str | None) -> Effects[Ack]:
    check_name(uid, "uid")
    check_handed_over(gid, "gid")
    target = AckTarget(None if msgid is None else check_msgid(msgid), [uid])
    [answer] = yield from _ack(gid, [target])
    return raised(raised(answer).of(uid))


def ack_many(gid: str, acks: Iterable[tuple[str, str | None]]) -> Effects[list[Ack | ImError]]:
    check_handed_over(gid, "gid")
    checked = [_checked(each) for each in check_list(acks, "acks")]
    by_msgid: dict[int | None, dict[str, None]] = {}
    for uid, packed in checked:
        by_msgid.setdefault(packed, {})[uid] = None
    parts = split_targets(AckTarget(packed, list(uids)) for packed, uids in by_msgid.items())
    targets = [target for part in parts for target in part]
    answers = yield from _ack(gid, targets)
    by_ack = {
        (target.msgid, uid): answer if isinstance(answer, ImError) else answer.of(uid)
        for target, answer in zip(targets, answers, strict=True)
        for uid in target.uids
    }
    return [by_ack[packed, uid] for uid, packed in checked]


def _checked(ack: tuple[str, str | None]) -> tuple[str, int | None]:
    try:
        uid, msgid = ack
    except (TypeError, ValueError):
        raise InvalidInput("each ack must be a uid and a msgid") from None
    return check_name(uid, "uid"), None if msgid is None else check_msgid(msgid)


def _ack(gid: str, targets: Sequence[AckTarget]) -> Effects[list[AckResult | ImError]]:
    """Ack; a message that Redis has trimmed is acked again with its seq from SQL."""
    results = yield from _ack_in_redis(gid, targets)
    for number, (target, result) in enumerate(zip(targets, results, strict=True)):
        if isinstance(result, AckResult) and isinstance(result.target, Trimmed):
            try:
                row = yield from stored_message(gid, target.msgid or 0)
                [results[number]] = yield from _ack_in_redis(gid, [target._replace(seq=row.seq)])
            except ImError as error:
                results[number] = error
    return results


def _ack_in_redis(gid: str, targets: Sequence[AckTarget]) -> Effects[list[AckResult | ImError]]:
    space = yield from GetKeyspace()
    answers = yield from call_each([message_calls.ack(space, gid, [target]) for target in targets])
    return [each for answer in answers for each in each_of(answer, 1)]
