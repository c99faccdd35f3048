"""The methods about what is read and what is not, and about who is told.

A user is told what the group's policy lets them know; a server that asks for nobody is told all.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Literal

from imcore.errors import InvalidInput, NotMember
from imcore.model.records import Record, inbox_record, record_of, status_record, tally_record, totals_record
from imcore.model.values import Member
from imcore.operations import positions
from imcore.web.method import MOST_LISTED, MOST_MESSAGES, Caller, check_count, list_of, method, ref, without


@method(list_of({"oneOf": [ref("InboxEntry"), ref("InboxTotals")]}))
async def inbox(caller: Caller, *, limit: int = 50, after: str | None = None, unread_only: bool = False) -> Any:
    """Return a page of the user's groups by their latest message, and last the totals of all groups.

    The next page begins with `after`: what `next` of the totals says, which is null after the last page.
    A group that has moved up meanwhile is on no later page: begin again at the first page to see it.
    """
    page = await caller.chat.inbox(caller.user, limit=min(limit, MOST_MESSAGES), after=after, unread_only=unread_only)
    return [*map(inbox_record, page.entries), totals_record(page)]


@method({"oneOf": [ref("MessageStatus"), list_of(ref("MessageTally"))]})
async def status(caller: Caller, *, gid: str, msgid: str | None = None, limit: int = 20) -> Any:
    """Return who has read a message, and when, and who has not. Without a msgid: tallies of the newest messages.

    A user is told what the group's policy says: by default about own messages only, which are all that a list has then.
    """
    if msgid is not None:
        return status_record(await caller.chat.message_status(gid, msgid, by=caller.uid))
    found = await caller.chat.status(gid, limit=min(limit, MOST_MESSAGES), by=caller.uid)
    return [tally_record(tally) for tally in found]


@method(list_of(ref("Tally")))
async def tallies(caller: Caller, *, gid: str, msgids: list[str]) -> Any:
    """Return how many have read each of these messages. Those that are unknown, or that the user may not ask about, are
    left out.
    """
    check_count(msgids, "msgids")
    return [record_of(tally) for tally in await caller.chat.tallies(gid, msgids, by=caller.uid)]


@method(ref("Why"))
async def why(caller: Caller, *, gid: str, msgid: str, of: str) -> Any:
    """Return why the user `of` has not read a message, or that they have, in one word."""
    return record_of(await caller.chat.why(gid, msgid, of, by=caller.uid))


@method(list_of(ref("Member")))
async def members(caller: Caller, *, gid: str, uids: list[str] | None = None, after: str | None = None) -> Any:
    """Return members of a group by uid: these ones, or the first 1000, or the next after a uid.

    A user's own `unread` is that of the method `unread`; that of others is counted from `last_ack_msgid`. Of others a
    user learns what they have read only if the group's policy tells all members names.
    """
    await caller.check_member(gid)
    record = await _member_record(caller, gid)
    if uids is not None:
        check_count(uids, "uids")
        return [record(member) for member in await _members(caller, gid, uids)]
    found: list[Record] = []
    async for member in caller.chat.members(gid):
        if after is None or member.uid > after:
            found.append(record(member))
        if len(found) == MOST_LISTED:
            break
    return found


@method(list_of({"type": "string"}))
async def online(caller: Caller, *, gid: str | None = None, uids: list[str] | None = None) -> Any:
    """Return the uids of those who have a live session: of these members of a group, or of all its members."""
    if gid is None:
        if caller.uid is not None or uids is None:
            raise InvalidInput("give the gid of a group that they are in")
        check_count(uids, "uids")
        return sorted(await caller.chat.online(uids))
    await caller.check_member(gid)
    if uids is None:
        if (await caller.chat.group(gid)).members > MOST_LISTED:
            raise InvalidInput(f"the group has more than {MOST_LISTED} members: give uids")
        return [member.uid async for member in caller.chat.members(gid) if member.online]
    check_count(uids, "uids")
    return [member.uid for member in await _members(caller, gid, uids) if member.online]


@method(ref("GroupPolicy"), ordered=True, server_only=True)
async def set_group(
    caller: Caller,
    *,
    gid: str,
    receipts: Literal["names", "counts", "off"] | None = None,
    asked_by: Literal["sender", "members"] | None = None,
) -> Any:
    """Set what members of a group are told about readers. What is not given stays as it is."""
    return record_of(await caller.chat.set_group(gid, receipts=receipts, asked_by=asked_by))


@method(ref("UserPolicy"), ordered=True)
async def set_user(caller: Caller, *, receipts: Literal["on", "off"]) -> Any:
    """Set whether others are told what the user reads. While that is off, the user is told numbers only, no names."""
    return record_of(await caller.chat.set_user(caller.user, receipts=receipts))


async def _member_record(caller: Caller, gid: str) -> Callable[[Member], Record]:
    """Return what makes the objects of members; it withholds what the caller may not know about others.

    The caller's own count begins at the bookmark, which nobody else may know.
    """
    uid = caller.uid
    if uid is None:
        return record_of
    counted = caller.chat.performer.perform(positions.unread_in(uid, gid))
    policy, own, unread = await asyncio.gather(caller.chat.group_policy(gid), caller.chat.user_policy(uid), counted)
    tells_all = (policy.receipts, policy.asked_by, own.receipts) == ("names", "members", "on")
    of_others: Record = {} if tells_all else {"last_ack_msgid": None, "unread": None}
    of_own: Record = {"unread": unread.unread}
    return lambda member: {**record_of(member), **(of_own if member.uid == uid else of_others)}


async def _members(caller: Caller, gid: str, uids: list[str]) -> list[Any]:
    """Return those of the users who are members."""
    answers = await asyncio.gather(*(caller.chat.member(gid, uid) for uid in uids), return_exceptions=True)
    return list(without(NotMember, answers))
