"""Messages: sent, recalled, pulled."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from imcore import msgid as msgids
from imcore.errors import ImError, InvalidInput, NotMember, UnknownGroup, UnknownMessage
from imcore.model.direct import gid_of, members_of
from imcore.model.limits import (
    check_content,
    check_limit,
    check_list,
    check_msgid,
    check_name,
    check_time,
    check_time_ms,
)
from imcore.model.values import Draft, Message
from imcore.operations import creation, queries
from imcore.operations.effects import Effects, GetKeyspace, HasDatabase, Page, Pages, call, call_each, collected, raised
from imcore.operations.groups import group, groups_of
from imcore.operations.sql_queries import MessageByMsgid
from imcore.settings import Settings
from imcore.streams import wire
from imcore.streams.calls import group_calls, message_calls
from imcore.streams.calls.call import error_of
from imcore.streams.calls.message_calls import SendResult

T = TypeVar("T")

MESSAGES_PER_CALL = 100
"""The server does nothing else meanwhile: they take less than a millisecond."""
CONTENT_PER_CALL = 1 << 20


def send(
    gid: str,
    content: str,
    *,
    sender_uid: str,
    client_msgid: str | None,
    sent_at: datetime | None,
    settings: Settings,
) -> Effects[Message]:
    """See `Chat.send`."""
    check_name(gid, "gid")
    _check(sender_uid, content, client_msgid, settings)
    sent_at_ms = None if sent_at is None else check_time(sent_at)
    draft = Draft(sender_uid, content, client_msgid or "", sent_at_ms)
    [sent] = yield from _send(gid, [draft], settings)
    return raised(sent)


def send_direct(
    uid: str, content: str, *, sender_uid: str, client_msgid: str | None, settings: Settings
) -> Effects[Message]:
    """See `Chat.send_direct`."""
    gid = gid_of(uid, sender_uid)
    # What the send refuses is refused here already: else the chat would be created and nothing said in it.
    _check(sender_uid, content, client_msgid, settings)
    yield from creation.create(gid, members_of(uid, sender_uid))
    return (
        yield from send(gid, content, sender_uid=sender_uid, client_msgid=client_msgid, sent_at=None, settings=settings)
    )


def send_many(gid: str, drafts: Iterable[Draft], *, settings: Settings) -> Effects[list[Message | ImError]]:
    """See `Chat.send_many`."""
    check_name(gid, "gid")
    checked = [_checked(draft, settings) for draft in check_list(drafts, "drafts")]
    return (yield from _send(gid, checked, settings))


def _check(sender_uid: str, content: str, client_msgid: str | None, settings: Settings) -> None:
    check_name(sender_uid, "uid")
    check_content(content, settings.max_content_bytes)
    if client_msgid is not None:
        check_name(client_msgid, "client_msgid")


def _checked(draft: Draft, settings: Settings) -> Draft:
    if not isinstance(draft, Draft):
        raise InvalidInput("each message must be a Draft")
    _check(draft.sender_uid, draft.content, draft.client_msgid if draft.client_msgid != "" else None, settings)
    if draft.sent_at_ms is not None:
        check_time_ms(draft.sent_at_ms)
    return draft


def _send(gid: str, drafts: Sequence[Draft], settings: Settings) -> Effects[list[Message | ImError]]:
    space = yield from GetKeyspace()
    parts = list(_parts(drafts))
    calls = [message_calls.send(space, gid, part, settings.idempotency_ms) for part in parts]
    answers = yield from call_each(calls, repeatable=all(draft.client_msgid for draft in drafts))
    results = [each for part, answer in zip(parts, answers, strict=True) for each in each_of(answer, len(part))]
    messages: list[Message | ImError] = []
    for draft, result in zip(drafts, results, strict=True):
        messages.append(result if isinstance(result, ImError) else (yield from _sent(gid, draft, result)))
    return messages


def _parts(drafts: Sequence[Draft]) -> Iterator[list[Draft]]:
    """Yield the drafts of each call, in order."""
    part: list[Draft] = []
    size = 0
    for draft in drafts:
        if part and (len(part) >= MESSAGES_PER_CALL or size + len(draft.content) > CONTENT_PER_CALL):
            yield part
            part, size = [], 0
        part.append(draft)
        size += len(draft.content)
    if part:
        yield part


def each_of(answer: Sequence[T | ImError] | ImError, count: int) -> Sequence[T | ImError]:
    """Return what a call for many answers to each of them: the error of the whole call to all."""
    return [answer] * count if isinstance(answer, ImError) else answer


def _sent(gid: str, draft: Draft, result: SendResult) -> Effects[Message]:
    """Return the message that a draft made, now or by an earlier send."""
    if result.repeated and (earlier := (yield from message(gid, msgids.pack(result.msgid)))):
        return earlier
    sent_at = None if draft.sent_at_ms is None else msgids.from_ms(draft.sent_at_ms)
    client_msgid = draft.client_msgid or None
    return Message(gid, result.msgid, result.seq, draft.sender_uid, draft.content, client_msgid, sent_at)


def recall(gid: str, msgid: str, *, by: str, admin: bool) -> Effects[Message]:
    """See `Chat.recall`."""
    check_name(by, "uid")
    packed = check_msgid(msgid)
    recalled = yield from message(check_name(gid, "gid"), packed)
    if recalled is None:
        yield from group(gid)
        raise UnknownMessage(f"{msgid} is not a message of {gid!r}")
    if recalled.recalls is not None:
        raise error_of(b"TOMBSTONE", gid, msgid=packed)
    space = yield from GetKeyspace()
    tombstone = yield from call(
        message_calls.recall(space, gid, packed, by=by, sender_uid=recalled.sender_uid, admin=admin)
    )
    if tombstone is None:
        return replace(recalled, content="", recalled=True)
    return Message(gid, tombstone.msgid, tombstone.seq, by, "", recalls=msgid)


def message(gid: str, packed: int) -> Effects[Message | None]:
    """Return one message (packed msgid), or None if the group has none of that id."""
    space, msgid = (yield from GetKeyspace()), msgids.unpack(packed)
    for entry in (yield from call(message_calls.entries(space, gid, msgid, msgid, 1))).entries:
        with suppress(IndexError, ValueError):  # somebody has added an entry by hand that is no message
            return wire.message(gid, entry)
    if packed > (yield from call(group_calls.trimmed(space, gid))) or not (yield from HasDatabase()):
        return None
    row = yield from MessageByMsgid(gid, packed)
    return (yield from queries.messages(space, gid, [row]))[0] if row else None


def pull(uid: str, gid: str | None, *, limit: int | None) -> Effects[list[Message]]:
    """See `Chat.pull`."""
    check_name(uid, "uid")
    check_limit(limit)
    if gid is not None:
        return (yield from collected(after(check_name(gid, "gid"), uid, None, limit=limit)))
    messages: list[Message] = []
    for each in (yield from groups_of(uid)):
        with suppress(NotMember, UnknownGroup):  # the user has left it meanwhile
            messages += yield from collected(after(each, uid, None, limit=limit))
    return messages


def after(gid: str, uid: str, start: int | None, *, limit: int | None = None) -> Pages[Message]:
    """Yield what came after a message (packed), or after the member's offset, in their present membership.

    Raise UnknownGroup, NotMember.
    """
    space = yield from GetKeyspace()
    while limit is None or limit > 0:
        count = queries.PAGE if limit is None else min(limit, queries.PAGE)
        pulled = yield from call(
            message_calls.pull(space, gid, [uid], after=start, count=count, most_bytes=queries.PAGE_BYTES)
        )
        page = raised((yield from queries.page(space, gid, pulled, count)))
        yield Page(page.messages)
        if not page.more:
            return
        start = msgids.position_of(page.messages[-1].msgid)
        limit = None if limit is None else limit - len(page.messages)
