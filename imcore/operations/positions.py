"""The positions of members: offsets, delivered positions, bookmarks; and the unread counts that follow from them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from imcore import msgid as msgids
from imcore.errors import ConfigurationError, ImError, InvalidInput, NotMember, TryAgain, UnknownGroup
from imcore.model.limits import check_handed_over, check_list, check_msgid, check_name
from imcore.model.values import Ack, Delivery, Unread, UnreadCounts
from imcore.operations import queries
from imcore.operations.effects import Effects, GetKeyspace, SqlQuery, call, call_each, raised
from imcore.operations.queries import MessagesAfter, MessagesAroundForeign
from imcore.streams.calls import group_calls, message_calls
from imcore.streams.calls.call import Call, Trimmed, error_of
from imcore.streams.calls.group_calls import Position
from imcore.streams.calls.message_calls import AckResult, AckTarget, DeliveryTarget, Target, split_targets
from imcore.streams.keys import Keyspace
from imcore.util.batches import batches, grouped

if TYPE_CHECKING:
    from imcore.sql.database import Database

_Builder = Callable[[Keyspace, str, Sequence[Target]], Call[list[AckResult]]]


# Confirmed by members.


def ack(uid: str, gid: str, msgid: str | None, *, private: bool) -> Effects[Ack]:
    check_name(uid, "uid")
    check_handed_over(gid, "gid")
    target = AckTarget(None if msgid is None else check_msgid(msgid), [uid])
    [answer] = yield from _confirm(partial(message_calls.ack, private=private), gid, [target])
    return raised(raised(answer).of(uid))


def ack_many(gid: str, acks: Iterable[tuple[str, str | None]], *, private: bool) -> Effects[list[Ack | ImError]]:
    check_handed_over(gid, "gid")
    checked = [_checked_ack(each) for each in check_list(acks, "acks")]
    by_msgid: dict[int | None, dict[str, None]] = {}
    for uid, packed in checked:
        by_msgid.setdefault(packed, {})[uid] = None
    parts = split_targets(AckTarget(packed, list(uids)) for packed, uids in by_msgid.items())
    targets = [target for part in parts for target in part]
    answers = yield from _confirm(partial(message_calls.ack, private=private), gid, targets)
    by_ack = {
        (target.msgid, uid): answer if isinstance(answer, ImError) else answer.of(uid)
        for target, answer in zip(targets, answers, strict=True)
        for uid in target.uids
    }
    return [by_ack[packed, uid] for uid, packed in checked]


def _checked_ack(ack: tuple[str, str | None]) -> tuple[str, int | None]:
    try:
        uid, msgid = ack
    except (TypeError, ValueError):
        raise InvalidInput("each ack must be a uid and a msgid") from None
    return check_name(uid, "uid"), None if msgid is None else check_msgid(msgid)


def delivered(uid: str, gid: str, msgid: str, *, since: int | None = None) -> Effects[Delivery]:
    """Note that a message has arrived: alone, or with all messages after `since` (packed)."""
    check_name(uid, "uid")
    check_handed_over(gid, "gid")
    target = DeliveryTarget(check_msgid(msgid), [uid], since or 0, alone=since is None)
    [answer] = yield from _confirm(message_calls.delivered, gid, [target])
    found = raised(answer)
    if found.unsure and (clear := (yield from _clear_in_sql(uid, gid, found, target))):
        [answer] = yield from _confirm(message_calls.delivered, gid, [target._replace(since=clear)])
        found = raised(answer)
    result = raised(found.of(uid))
    return Delivery(gid, uid, result.last_ack_msgid, result.advanced)


def confirm_delivered(gid: str, targets: Sequence[DeliveryTarget]) -> Effects[list[AckResult | ImError]]:
    """Note what has arrived. The results have the positions of delivery in place of the offsets."""
    return (yield from _confirm(message_calls.delivered, gid, targets))


def _clear_in_sql(uid: str, gid: str, found: AckResult, target: DeliveryTarget) -> Effects[int | None]:
    """Return up to where SQL has all, None if it has a message of others before the one that has arrived."""
    position = found.unmoved[uid]
    assert isinstance(position, int)  # noqa: S101
    space = yield from GetKeyspace()
    trimmed = yield from call(group_calls.trimmed(space, gid))
    until = min(trimmed, (target.msgid or 0) - 1)
    _, others = yield from MessagesAroundForeign(gid, position, until, uid, position, 0, 1)
    return None if others else trimmed


def _confirm(build: _Builder[Target], gid: str, targets: Sequence[Target]) -> Effects[list[AckResult | ImError]]:
    """Confirm messages; one that Redis has trimmed is confirmed again with its seq from SQL."""
    results = yield from _confirm_in_redis(build, gid, targets)
    for number, (target, result) in enumerate(zip(targets, results, strict=True)):
        if isinstance(result, AckResult) and isinstance(result.target, Trimmed):
            try:
                row = yield from queries.stored_message(gid, target.msgid or 0)
                [results[number]] = yield from _confirm_in_redis(build, gid, [target._replace(seq=row.seq)])
            except ImError as error:
                results[number] = result._replace(target=error)  # it still says who is no member
    return results


def _confirm_in_redis(
    build: _Builder[Target], gid: str, targets: Sequence[Target]
) -> Effects[list[AckResult | ImError]]:
    space = yield from GetKeyspace()
    answers = yield from call_each([build(space, gid, [target]) for target in targets])
    return [answer if isinstance(answer, ImError) else answer[0] for answer in answers]


# Marked by members.


MOST_MARKED = 100
"""A mark may reach this many of the newest messages; `lua/acks.lua` says the same."""


def mark_unread(uid: str, gid: str, msgid: str) -> Effects[Unread]:
    check_name(uid, "uid")
    check_handed_over(gid, "gid")
    packed = check_msgid(msgid)
    space = yield from GetKeyspace()
    [answer] = yield from call_each([group_calls.mark(space, gid, uid, packed)])
    if isinstance(answer, Trimmed):
        rows = yield from MessagesAfter(gid, packed - 1, msgids.HIGHEST, MOST_MARKED)
        if not rows or rows[0].msgid != packed:
            raise queries.unknown_message(gid, packed)
        if rows[0].recalls is not None:
            raise error_of(b"TOMBSTONE", gid, msgid=packed)
        own = [row.msgid for row in rows if row.sender_uid == uid and not row.recalled and row.recalls is None]
        answer = yield from call(group_calls.mark(space, gid, uid, packed, seq=rows[0].seq, own=own))
    return (yield from unread_of(gid, raised(answer)))


def unmark(uid: str, gid: str) -> Effects[Unread]:
    check_name(uid, "uid")
    check_handed_over(gid, "gid")
    space = yield from GetKeyspace()
    return (yield from unread_of(gid, (yield from call(group_calls.mark(space, gid, uid, None)))))


# Unread counts.

GROUPS_PER_CALL = 50
"""One call takes the server about half a millisecond."""


@dataclass(frozen=True, slots=True)
class SeqsAt(SqlQuery[dict[str, int]]):
    """The seq of the newest message up to a place, a gid and a msgid: for each gid, 0 without one."""

    places: Sequence[tuple[str, int]]

    def run(self, database: "Database") -> dict[str, int]:
        return database.history.seqs_at(self.places)


def unread(uid: str) -> Effects[UnreadCounts]:
    check_name(uid, "uid")
    space = yield from GetKeyspace()
    gids, silent = yield from queries.groups_that_answer(space, uid)
    answers, _ = yield from positions_in(space, uid, gids)
    positions = {
        gid: raised(answer)
        for gid, answer in zip(gids, answers, strict=True)
        if not isinstance(answer, NotMember | UnknownGroup)  # the user has left it meanwhile
    }
    counts = yield from unread_counts(positions)
    return UnreadCounts((_unread(gid, position, counts[gid]) for gid, position in positions.items()), silent=silent)


def positions_in(
    space: Keyspace, uid: str, gids: Sequence[str], beside: Sequence[Call[Any]] = ()
) -> Effects[tuple[list[Position | ImError], list[Any]]]:
    """Return a user's position in each group, or the error in its place; and the answers of calls `beside` these.

    One call asks about many groups. If it fails, each of them is asked by itself: something may be wrong in one alone.
    """
    parts = parts_of(space, gids, GROUPS_PER_CALL)
    calls: list[Call[Any]] = [group_calls.positions_in(space, part, uid) for part in parts]
    answers = yield from call_each([*calls, *beside])
    found: dict[str, Position | ImError] = {}
    failed: list[str] = []
    for part, answer in zip(parts, answers, strict=False):
        if isinstance(answer, TryAgain | ConfigurationError):
            found.update(dict.fromkeys(part, answer))
        elif isinstance(answer, ImError):
            failed += part
        else:
            found.update(zip(part, answer, strict=True))
    again = yield from call_each([group_calls.position(space, gid, uid) for gid in failed])
    found.update(zip(failed, again, strict=True))
    return [found[gid] for gid in gids], answers[len(calls) :]


def parts_of(space: Keyspace, gids: Iterable[str], size: int) -> list[list[str]]:
    """Return the groups of each call about many: they are of one partition."""
    by_partition = grouped((space.partition_of(gid), gid) for gid in gids)
    return [part for of_partition in by_partition.values() for part in batches(of_partition, size)]


def unread_in(uid: str, gid: str) -> Effects[Unread]:
    """Return what a user has not read in one group. Raise NotMember, UnknownGroup."""
    space = yield from GetKeyspace()
    return (yield from unread_of(gid, (yield from call(group_calls.position(space, gid, uid)))))


def offset(uid: str, gid: str) -> Effects[str | None]:
    """Return the msgid up to which a member has read, for all to see; None before the first message."""
    space = yield from GetKeyspace()
    return msgids.unpack_offset((yield from call(group_calls.offset(space, gid, uid))) or 0)


def unread_counts(positions: Mapping[str, Position]) -> Effects[dict[str, int]]:
    """Return how many messages are unread in each group (gid), where the member is at that position."""
    # Of the newest message up to there: a crash of both servers may have taken the one at the position.
    trimmed = [(gid, position.unread_after) for gid, position in positions.items() if position.seq is None]
    seqs = (yield from SeqsAt(trimmed)) if trimmed else {}
    return {
        gid: position.head_seq - (seqs.get(gid, 0) if position.seq is None else position.seq) - position.not_unread
        for gid, position in positions.items()
    }


def unread_of(gid: str, position: Position) -> Effects[Unread]:
    return _unread(gid, position, (yield from unread_counts({gid: position}))[gid])


def _unread(gid: str, position: Position, count: int) -> Unread:
    return Unread(
        gid=gid,
        unread=count,
        last_msgid=msgids.unpack_offset(position.last),
        last_ack_msgid=msgids.unpack_offset(position.acked),
        marked=position.mark > 0,
    )
