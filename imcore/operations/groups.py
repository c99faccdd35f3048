"""Groups, their members, and how far each member is."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from imcore.errors import NotMember, RedisFull, UnknownGroup, UnknownUser
from imcore.model.direct import refuse_direct
from imcore.model.limits import check_name, check_uids
from imcore.model.values import Group, Member, Unread
from imcore.operations import creation, positions, queries
from imcore.operations.effects import Effects, GetKeyspace, Pages, call, call_each, call_many, raised
from imcore.streams.calls import group_calls, session_calls
from imcore.streams.calls.call import Call
from imcore.streams.keys import SEPARATOR
from imcore.util.batches import batches, grouped

BATCH = 500
MEMBERS_PER_CALL = 100
"""One call takes the server about a millisecond."""


def create_group(gid: str, uids: Iterable[str]) -> Effects[Group]:
    refuse_direct(check_name(gid, "gid"))
    return (yield from creation.create(gid, check_uids(uids)))


def add_members(gid: str, uids: Iterable[str]) -> Effects[Group]:
    return (yield from _change_members(group_calls.add_members, gid, uids))


def remove_members(gid: str, uids: Iterable[str]) -> Effects[Group]:
    return (yield from _change_members(group_calls.remove_members, gid, uids))


def _change_members(build: group_calls.MembersCall, gid: str, uids: Iterable[str]) -> Effects[Group]:
    refuse_direct(check_name(gid, "gid"))
    members = check_uids(uids)
    if not members:
        return (yield from group(gid))
    space = yield from GetKeyspace()
    for done in range(0, len(members), creation.STEP):
        try:
            changed = yield from call(build(space, gid, members[done : done + creation.STEP]))
        except RedisFull as error:
            if not done:
                raise
            raise RedisFull(f"{error} of {len(members) - done} members; {done} are in: repeat it for all") from error
    return changed


def group(gid: str) -> Effects[Group]:
    check_name(gid, "gid")
    space = yield from GetKeyspace()
    return (yield from call(group_calls.group(space, gid)))


def groups() -> Pages[Group]:
    space = yield from GetKeyspace()
    gids: set[str] = set()
    for partition in range(space.partitions):
        gids |= yield from _scan(partial(group_calls.scan_groups, space, partition))
    for batch in batches(sorted(gids), BATCH):
        answers = yield from call_each([group_calls.group(space, gid) for gid in batch])
        yield [raised(answer) for answer in answers if not isinstance(answer, UnknownGroup)]


def members(gid: str) -> Pages[Member]:
    yield from group(gid)
    space = yield from GetKeyspace()
    spans = yield from _scan(partial(group_calls.scan_spans, space, gid))
    for uids in batches(sorted(span for span in spans if SEPARATOR not in span), BATCH):
        online_uids = yield from _online(uids)
        found = yield from _positions(gid, uids)
        yield [_member(uid, position, online_uids) for uid, position in zip(uids, found, strict=True) if position]


def member(gid: str, uid: str) -> Effects[Member]:
    check_name(gid, "gid")
    check_name(uid, "uid")
    space = yield from GetKeyspace()
    position = yield from call(group_calls.position(space, gid, uid, for_others=True))
    counted = yield from positions.unread_of(gid, position)
    online_uids = yield from _online([uid])
    return _member(uid, counted, online_uids)


def _member(uid: str, position: Unread, online_uids: set[str]) -> Member:
    return Member(position.gid, uid, position.last_ack_msgid, position.unread, online=uid in online_uids)


def _scan(page_after: Callable[[str], Call[group_calls.NamesPage]]) -> Effects[set[str]]:
    names: set[str] = set()
    cursor = ""
    while cursor != "0":
        cursor, page = yield from call(page_after(cursor or "0"))
        names.update(page)
    return names


def groups_of(uid: str) -> Effects[list[str]]:
    check_name(uid, "uid")
    space = yield from GetKeyspace()
    return (yield from queries.groups_of(space, [uid]))[uid]


def known_user(uid: str) -> Effects[str]:
    space = yield from GetKeyspace()
    gids, silent = yield from queries.groups_that_answer(space, uid)
    if not gids and not silent:
        raise UnknownUser(f"{uid!r} is in no group: add them to one first")
    return uid


def online(uids: Iterable[str]) -> Effects[set[str]]:
    return (yield from _online(check_uids(uids)))


def _online(uids: Sequence[str]) -> Effects[set[str]]:
    space = yield from GetKeyspace()
    by_partition = grouped((space.partition_of(uid), uid) for uid in uids)
    asked = [(partition, batch) for partition, of in by_partition.items() for batch in batches(of, BATCH)]
    answers = yield from call_many([session_calls.online(space, partition, batch) for partition, batch in asked])
    flags = (
        (uid, flag)
        for (_, batch), each in zip(asked, answers, strict=True)
        for uid, flag in zip(batch, each, strict=True)
    )
    return {uid for uid, is_online in flags if is_online}


def _positions(gid: str, uids: Sequence[str]) -> Effects[list[Unread | None]]:
    """Return the positions of members as anybody may see them; None for each who has left."""
    space = yield from GetKeyspace()
    calls = [group_calls.positions_of(space, gid, part) for part in batches(uids, MEMBERS_PER_CALL)]
    found: list[Unread | None] = []
    for answer in (each for part in (yield from call_many(calls)) for each in part):
        is_gone = isinstance(answer, NotMember)
        found.append(None if is_gone else (yield from positions.unread_of(gid, raised(answer))))
    return found
