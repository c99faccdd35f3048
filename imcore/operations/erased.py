"""Tells clients with local databases which of their messages are from users who were erased since."""

from collections.abc import Collection, Sequence
from contextlib import suppress

from imcore import msgid as msgids
from imcore.errors import RedisRefuses, RedisUnavailable, raise_what_stops_all
from imcore.model.erased import is_alias
from imcore.operations import queries
from imcore.operations.effects import Effects, GetKeyspace, call, call_each, raised
from imcore.streams import wire
from imcore.streams.calls import erasure_calls, group_calls, message_calls


def latest_erasures(gids: Collection[str]) -> Effects[dict[str, str | None]]:
    """Return by gid what names the latest erasure of a user in a group, "" without one; None if there is no group.

    Groups whose node is silent are left out.
    """
    space = yield from GetKeyspace()
    answers = yield from call_each([erasure_calls.latest(space, gid) for gid in gids], waits_for_all=False)
    raise_what_stops_all(answers)
    return {
        gid: raised(answer)
        for gid, answer in zip(gids, answers, strict=True)
        if not isinstance(answer, RedisUnavailable | RedisRefuses)
    }


def erased_among(gid: str, wanted: Sequence[int]) -> Effects[dict[int, str]]:
    """Return by msgid (packed, in order) the aliases of the senders who were erased. Raise UnknownGroup."""
    senders = yield from _senders_in_redis(gid, wanted)
    space = yield from GetKeyspace()
    trimmed = yield from call(group_calls.trimmed(space, gid))
    in_sql = [msgid for msgid in wanted if msgid not in senders and msgid <= trimmed]
    rows = (yield from queries.MessagesByMsgid(gid, in_sql)) if in_sql else {}
    senders |= {msgid: row.sender_uid for msgid, row in rows.items()}
    return {msgid: senders[msgid] for msgid in wanted if msgid in senders and is_alias(senders[msgid])}


def _senders_in_redis(gid: str, wanted: Sequence[int]) -> Effects[dict[int, str]]:
    """Return the senders of the messages from the first one to the last one, as far as Redis has them."""
    space = yield from GetKeyspace()
    senders: dict[int, str] = {}
    first, last = msgids.unpack(wanted[0]), msgids.unpack(wanted[-1])
    more = True
    while more:
        page = yield from call(message_calls.entries(space, gid, first, last, queries.PAGE))
        for entry in page.entries:
            with suppress(IndexError, ValueError):  # somebody has added an entry by hand that is no message
                senders[msgids.pack_id(entry[0])] = wire.message(gid, entry).sender_uid
        more = page.more
        first = f"({page.entries[-1][0].decode()}" if more else first
    return senders
