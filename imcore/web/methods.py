"""The methods of the protocol: one function for each. Their parameters, and the OpenRPC document, come from these.

A user's token speaks for its user only, and asks about this user's groups only. A server's token names a user by `uid`
for whom it speaks; it may ask about any group without one.
"""

import asyncio
from typing import Any, Literal

from imcore.errors import InvalidInput, NotAllowed, UnknownGroup
from imcore.model.records import Record, record_of
from imcore.model.values import Group
from imcore.web import (
    fetched,
    read_methods,  # noqa: F401 (it adds its methods)
)
from imcore.web.auth import DEMO
from imcore.web.method import MOST_MESSAGES, Caller, at_most, list_of, method, ref, without

MESSAGE, SENT = ref("Message"), ref("SentMessage")


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
    `last_erasure` of a group of `after` changes when a user was erased there: what a client has kept of that group may
    name them, and goes.
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
    durable: Literal["none", "replicated", "fsynced"] | None = None,
) -> Any:
    """Send a message to a group. With a client_msgid it is safe to repeat.

    `durable` says what to wait for: that a replica has it (`replicated`) or the server's disk (`fsynced`).
    """
    sent = await caller.chat.send(
        gid, content, sender_uid=caller.user, client_msgid=client_msgid, meta=meta, durable=durable
    )
    return {**record_of(sent), "recipients": sent.recipients}


@method(SENT, ordered=True)
async def send_direct(
    caller: Caller,
    *,
    to: str,
    content: str,
    client_msgid: str | None = None,
    meta: dict[str, Any] | None = None,
    durable: Literal["none", "replicated", "fsynced"] | None = None,
) -> Any:
    """Send a message to one user. The first one creates the chat of the two."""
    sent = await caller.chat.send_direct(
        to, content, sender_uid=caller.user, client_msgid=client_msgid, meta=meta, durable=durable
    )
    return {**record_of(sent), "recipients": sent.recipients}


@method(list_of(ref("Group")))
async def groups(caller: Caller) -> Any:
    """Return the user's groups."""
    gids = await caller.chat.groups_of(caller.user)
    answers = await asyncio.gather(*map(caller.chat.group, gids), return_exceptions=True)
    return [record_of(answer) for answer in without(UnknownGroup, answers)]


@method(ref("Group"))
async def group(caller: Caller, *, gid: str) -> Any:
    """Return a group."""
    await caller.check_member(gid)
    return record_of(await caller.chat.group(gid))


@method(list_of(MESSAGE))
async def pull(caller: Caller, *, gid: str | None = None, limit: int | None = None) -> Any:
    """Return what the user has not acked, oldest first, without gaps; of all groups without a gid."""
    return [record_of(message) for message in await fetched.pull(caller, gid, at_most(MOST_MESSAGES, limit))]


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
    limit = min(limit, MOST_MESSAGES)
    if first_unread and before is after is around is None:
        page = await fetched.around_unread(caller, gid, limit)
    else:
        cursors = {"before": before, "after": after, "around": around}
        page = await caller.chat.history(caller.user, gid, **cursors, first_unread=first_unread, limit=limit)
        fetched.note_fetched(caller, gid, page, before=before)
    return {"messages": [record_of(each) for each in page.messages], "older": page.older, "newer": page.newer}


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


@method(ref("ErasedUser"), ordered=True, server_only=True)
async def erase_user(caller: Caller) -> Any:
    """Erase the user `uid`: texts and name are gone, counts stay. If it was interrupted, call it again."""
    if caller.uid is None:
        raise InvalidInput("give the uid of the user to erase")
    erased = await caller.chat.erase_user(caller.uid)
    return {"uid": erased.uid, "messages": erased.messages}


@method({"type": "object", "properties": {"token": {"type": "string"}}, "required": ["token"]}, demo_only=True)
async def demo_token(caller: Caller, *, uid: str) -> Any:
    """Return a token for a user of the demo (`im up --web`)."""
    users = caller.identity.claims.get(DEMO)
    if not isinstance(users, list) or uid not in users:
        raise NotAllowed(f"{uid!r} is no user of a demo that this token is for")
    return {"token": caller.hub.access.demo_token(uid, users)}


def _size(changed: Group) -> Record:
    return {"gid": changed.gid, "members": changed.members}
