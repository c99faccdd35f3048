"""The methods of the protocol: one function for each. Their parameters, and the OpenRPC document, come from these.

A user's token speaks for its user only, and asks about this user's groups only. A server's token names a user by `uid`
for whom it speaks; it may ask about any group without one.
"""

import asyncio
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any, Literal, TypeVar

from imcore.errors import ImError, InvalidInput, NotAllowed, NotMember, UnknownGroup, UnknownMessage
from imcore.model.records import Record, inbox_record, record_of, status_record, tally_record, totals_record
from imcore.model.values import Group, HistoryPage, MessageTally
from imcore.util.batches import grouped
from imcore.web.auth import DEMO
from imcore.web.method import MOST_LISTED, Caller, at_most, list_of, method, ref
from imcore.web.position_methods import note_fetched

T = TypeVar("T")

MOST_MESSAGES = 200
"""Messages of a page of history."""

MESSAGE, SENT, TALLY = ref("Message"), ref("SentMessage"), ref("Tally")


@method(ref("Connected"), ordered=True)
async def connect(
    caller: Caller,
    *,
    token: str | None = None,  # noqa: ARG001 (it was looked at before)
    start: Literal["unread", "live"] | None = None,
    after: dict[str, str] | None = None,
    most: int | None = None,
) -> Any:
    """Begin the session of this socket, or go on with a new token.

    `start` says where a group begins: at what was not acked (`unread`) or with what comes from now on (`live`). A group
    in `after` begins exactly after that msgid. Of what was missed, the newest `most` messages of a group come, after a
    `gap`. The answer comes before any notification, and says for each group after which msgid the server goes on, and
    which is the newest. `dataset` names the data: what a client has kept of another one is of no use.
    """
    if caller.client is None:
        raise InvalidInput("`connect` is for a socket: here the token comes with each request")
    return await caller.client.connect(caller.identity, caller.user, start=start, after=after, most=most)


@method(SENT, ordered=True)
async def send(
    caller: Caller,
    *,
    gid: str,
    content: str,
    client_msgid: str | None = None,
    meta: dict[str, Any] | None = None,
) -> Any:
    """Send a message to a group. With a client_msgid it is safe to repeat."""
    sent = await caller.chat.send(gid, content, sender_uid=caller.user, client_msgid=client_msgid, meta=meta)
    return {**record_of(sent), "recipients": sent.recipients}


@method(SENT, ordered=True)
async def send_direct(
    caller: Caller,
    *,
    to: str,
    content: str,
    client_msgid: str | None = None,
    meta: dict[str, Any] | None = None,
) -> Any:
    """Send a message to one user. The first one creates the chat of the two."""
    sent = await caller.chat.send_direct(to, content, sender_uid=caller.user, client_msgid=client_msgid, meta=meta)
    return {**record_of(sent), "recipients": sent.recipients}


@method(list_of({"oneOf": [ref("InboxEntry"), ref("InboxTotals")]}))
async def inbox(caller: Caller, *, limit: int = 50, after: str | None = None, unread_only: bool = False) -> Any:
    """Return a page of the user's groups by their latest message, and last the totals of all groups.

    The next page begins with `after`: what `next` of the totals says, which is null after the last page.
    """
    page = await caller.chat.inbox(caller.user, limit=min(limit, MOST_MESSAGES), after=after, unread_only=unread_only)
    return [*map(inbox_record, page.entries), totals_record(page)]


@method(list_of(ref("Group")))
async def groups(caller: Caller) -> Any:
    """Return the user's groups."""
    gids = await caller.chat.groups_of(caller.user)
    answers = await asyncio.gather(*map(caller.chat.group, gids), return_exceptions=True)
    return [record_of(answer) for answer in _without(UnknownGroup, answers)]


@method(ref("Group"))
async def group(caller: Caller, *, gid: str) -> Any:
    """Return a group."""
    await caller.check_member(gid)
    return record_of(await caller.chat.group(gid))


@method(list_of(MESSAGE))
async def pull(caller: Caller, *, gid: str | None = None, limit: int | None = None) -> Any:
    """Return what the user has not acked, oldest first, without gaps; of all groups without a gid."""
    pulled = await caller.chat.pull(caller.user, gid, limit=at_most(MOST_MESSAGES, limit))
    for messages in grouped((message.gid, message) for message in pulled).values():
        note_fetched(caller, messages[0].gid, HistoryPage(tuple(messages), older=False, newer=True))
    return [record_of(message) for message in pulled]


@method(ref("HistoryPage"))
async def history(
    caller: Caller,
    *,
    gid: str,
    before: str | None = None,
    after: str | None = None,
    around: str | None = None,
    first_unread: bool = False,
    limit: int = 50,
) -> Any:
    """Return a page of what the user may see of a group, oldest first, and whether there are older and newer ones."""
    page = await caller.chat.history(
        caller.user,
        gid,
        before=before,
        after=after,
        around=around,
        first_unread=first_unread,
        limit=min(limit, MOST_MESSAGES),
    )
    note_fetched(caller, gid, page, before=before)
    return {"messages": [record_of(each) for each in page.messages], "older": page.older, "newer": page.newer}


@method({"oneOf": [ref("MessageStatus"), list_of(ref("MessageTally"))]})
async def status(caller: Caller, *, gid: str, msgid: str | None = None, limit: int = 20) -> Any:
    """Return who has read a message, and when, and who has not. Without a msgid: tallies of the newest messages."""
    if msgid is not None:
        await _check_visible(caller, gid, msgid)
        return status_record(await caller.chat.message_status(gid, msgid))
    limit = min(limit, MOST_MESSAGES)
    if caller.uid is None:
        return [tally_record(tally) for tally in await caller.chat.status(gid, limit=limit)]
    page = await caller.chat.history(caller.uid, gid, limit=limit)
    counts = {each.msgid: each for each in await caller.chat.tallies(gid, [each.msgid for each in page.messages])}
    return [
        tally_record(MessageTally(each, *attrgetter("read", "unread", "delivered")(counts[each.msgid])))
        for each in page.messages
        if each.msgid in counts
    ]


@method(list_of(TALLY))
async def tallies(caller: Caller, *, gid: str, msgids: list[str]) -> Any:
    """Return how many have read each of these messages and how many have not. Unknown msgids are left out."""
    _check_count(msgids, "msgids")
    await caller.check_member(gid)
    return [record_of(tally) for tally in await caller.chat.tallies(gid, msgids)]


@method(list_of(ref("Member")))
async def members(caller: Caller, *, gid: str, uids: list[str] | None = None, after: str | None = None) -> Any:
    """Return members of a group by uid: these ones, or the first 1000, or the next after a uid."""
    await caller.check_member(gid)
    if uids is not None:
        _check_count(uids, "uids")
        return [record_of(member) for member in await _members(caller, gid, uids)]
    found: list[Record] = []
    async for member in caller.chat.members(gid):
        if after is None or member.uid > after:
            found.append(record_of(member))
        if len(found) == MOST_LISTED:
            break
    return found


@method(list_of({"type": "string"}))
async def online(caller: Caller, *, gid: str | None = None, uids: list[str] | None = None) -> Any:
    """Return the uids of those who have a live session: of these members of a group, or of all its members."""
    if gid is None:
        if caller.uid is not None or uids is None:
            raise InvalidInput("give the gid of a group that they are in")
        _check_count(uids, "uids")
        return sorted(await caller.chat.online(uids))
    await caller.check_member(gid)
    if uids is None:
        if (await caller.chat.group(gid)).members > MOST_LISTED:
            raise InvalidInput(f"the group has more than {MOST_LISTED} members: give uids")
        return [member.uid async for member in caller.chat.members(gid) if member.online]
    _check_count(uids, "uids")
    return [member.uid for member in await _members(caller, gid, uids) if member.online]


@method(MESSAGE, ordered=True)
async def recall(caller: Caller, *, gid: str, msgid: str, admin: bool = False) -> Any:
    """Recall a message: its content is gone for good. Return the tombstone. With `admin` a server recalls any."""
    if admin and not caller.identity.is_server:
        raise NotAllowed("only a server's token may recall what others have sent")
    return record_of(await caller.chat.recall(gid, msgid, by=caller.user, admin=admin))


@method(ref("GroupSize"), ordered=True, server_only=True)
async def create_group(caller: Caller, *, gid: str, uids: list[str] | None = None) -> Any:
    """Create a group. The same group with the same members again changes nothing."""
    return _size(await caller.chat.create_group(gid, uids or ()))


@method(ref("GroupSize"), ordered=True, server_only=True)
async def add_members(caller: Caller, *, gid: str, uids: list[str]) -> Any:
    """Let users join a group. Members stay as they are."""
    return _size(await caller.chat.add_members(gid, uids))


@method(ref("GroupSize"), ordered=True, server_only=True)
async def remove_members(caller: Caller, *, gid: str, uids: list[str]) -> Any:
    """Let members leave a group. What they had read stays read."""
    return _size(await caller.chat.remove_members(gid, uids))


@method(ref("DeletedGroup"), ordered=True, server_only=True)
async def delete_group(caller: Caller, *, gid: str) -> Any:
    """Delete a group, its messages and all receipts. Its members are told that they left."""
    return record_of(await caller.chat.delete_group(gid))


@method({"type": "object", "properties": {"token": {"type": "string"}}, "required": ["token"]}, demo_only=True)
async def demo_token(caller: Caller, *, uid: str) -> Any:
    """Return a token for a user of the demo (`im up --web`)."""
    users = caller.identity.claims.get(DEMO)
    if not isinstance(users, list) or uid not in users:
        raise NotAllowed(f"{uid!r} is no user of a demo that this token is for")
    return {"token": caller.hub.access.demo_token(uid, users)}


def _without(error: type[ImError], answers: Iterable[T | BaseException]) -> Iterator[T]:
    """Yield the answers, and leave this error out. Raise any other one."""
    for answer in answers:
        if not isinstance(answer, BaseException):
            yield answer
        elif not isinstance(answer, error):
            raise answer


def _size(changed: Group) -> Record:
    return {"gid": changed.gid, "members": changed.members}


def _check_count(items: list[str], what: str) -> None:
    if len(items) > MOST_LISTED:
        raise InvalidInput(f"{what} are {len(items)}: give at most {MOST_LISTED} at a time")


async def _check_visible(caller: Caller, gid: str, msgid: str) -> None:
    """Raise UnknownMessage for a message from before the user's join."""
    if caller.uid is not None:
        page = await caller.chat.history(caller.uid, gid, around=msgid, limit=1)
        if all(each.msgid != msgid for each in page.messages):
            raise UnknownMessage(f"{msgid} is no message of {gid!r} that {caller.uid!r} may see")


async def _members(caller: Caller, gid: str, uids: list[str]) -> list[Any]:
    """Return those of the users who are members."""
    answers = await asyncio.gather(*(caller.chat.member(gid, uid) for uid in uids), return_exceptions=True)
    return list(_without(NotMember, answers))
