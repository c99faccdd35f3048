"""Messages: sent, recalled, pulled, acked."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from imcore import msgid as msgids
from imcore.errors import ImError, InvalidInput, NotMember, UnknownGroup
from imcore.model.direct import gid_of
from imcore.model.durable import Durable
from imcore.model.limits import (
    check_content,
    check_limit,
    check_list,
    check_msgid,
    check_name,
    check_time,
    check_time_ms,
)
from imcore.model.meta import check_meta, size_of
from imcore.model.values import Draft, Message
from imcore.operations import creation, durability, queries
from imcore.operations.effects import Effects, GetKeyspace, Pages, call, call_each, raised
from imcore.operations.groups import group, groups_of
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
    settings: Settings,
    gid: str,
    draft: Draft,
    *,
    client_msgid: str | None,
    sent_at: datetime | None,
    durable: Durable | None = None,
) -> Effects[Message]:
    """See `Chat.send`. The draft has neither the client_msgid nor the time yet."""
    check_name(gid, "gid")
    checked = _with_client_msgid(draft, client_msgid, settings)
    sent_at_ms = None if sent_at is None else check_time(sent_at)
    return (yield from _send_one(settings, gid, checked._replace(sent_at_ms=sent_at_ms), durable))


def _send_one(settings: Settings, gid: str, draft: Draft, durable: Durable | None) -> Effects[Message]:
    [sent] = yield from _send_durably(settings, gid, [draft], durable)
    return raised(sent)


def send_direct(
    settings: Settings, uid: str, draft: Draft, *, client_msgid: str | None, durable: Durable | None = None
) -> Effects[Message]:
    gid = gid_of(uid, draft.sender_uid)
    # What the send refuses is refused here already: else the chat would be created and nothing said in it.
    checked = _with_client_msgid(draft, client_msgid, settings)
    yield from durability.require(durability.kind_of(durable, settings), gid)
    yield from creation.create(gid, sorted({uid, draft.sender_uid}))
    return (yield from _send_one(settings, gid, checked, durable))


def send_many(
    settings: Settings, gid: str, drafts: Iterable[Draft], *, durable: Durable | None = None
) -> Effects[list[Message | ImError]]:
    check_name(gid, "gid")
    checked = [_checked(draft, settings) for draft in check_list(drafts, "drafts")]
    return (yield from _send_durably(settings, gid, checked, durable))


def _with_client_msgid(draft: Draft, client_msgid: str | None, settings: Settings) -> Draft:
    """Return a checked draft with a client_msgid, if one is given: it is not empty then."""
    if client_msgid is not None:
        check_name(client_msgid, "client_msgid")
    return _checked(draft._replace(client_msgid=client_msgid or ""), settings)


def _checked(draft: Draft, settings: Settings) -> Draft:
    if not isinstance(draft, Draft):
        raise InvalidInput("each message must be a Draft")
    check_name(draft.sender_uid, "uid")
    check_content(draft.content, settings.max_content_bytes)
    if draft.client_msgid != "":
        check_name(draft.client_msgid, "client_msgid")
    if draft.sent_at_ms is not None:
        check_time_ms(draft.sent_at_ms)
    return draft if draft.meta is None else draft._replace(meta=check_meta(draft.meta, settings.max_meta_bytes))


def _send_durably(
    settings: Settings, gid: str, drafts: Sequence[Draft], durable: Durable | None
) -> Effects[list[Message | ImError]]:
    kind = durability.kind_of(durable, settings)
    yield from durability.require(kind, gid)
    messages = yield from _send(gid, drafts, settings)
    return (yield from durability.confirm(kind, gid, messages))


def _send(gid: str, drafts: Sequence[Draft], settings: Settings) -> Effects[list[Message | ImError]]:
    space = yield from GetKeyspace()
    parts = list(_parts(drafts))
    calls = [message_calls.send(space, gid, part, settings.idempotency_ms) for part in parts]
    answers = yield from call_each(calls, repeatable=all(draft.client_msgid for draft in drafts))
    results = [each for part, answer in zip(parts, answers, strict=True) for each in _each_of(answer, len(part))]
    messages: list[Message | ImError] = []
    for draft, result in zip(drafts, results, strict=True):
        if isinstance(result, ImError):
            messages.append(result)
        else:
            earlier = (yield from message(gid, msgids.pack(result.msgid))) if result.repeated else None
            messages.append(_sent(gid, draft, result, earlier))
    return messages


def _parts(drafts: Sequence[Draft]) -> Iterator[list[Draft]]:
    part: list[Draft] = []
    size = 0
    for draft in drafts:
        length = len(draft.content) + size_of(draft.meta)
        if part and (len(part) >= MESSAGES_PER_CALL or size + length > CONTENT_PER_CALL):
            yield part
            part, size = [], 0
        part.append(draft)
        size += length
    if part:
        yield part


def _each_of(answer: Sequence[T | ImError] | ImError, count: int) -> Sequence[T | ImError]:
    """Return what a call for many answers to each of them: the error of the whole call to all."""
    return [answer] * count if isinstance(answer, ImError) else answer


def _sent(gid: str, draft: Draft, result: SendResult, earlier: Message | None) -> Message:
    """Return the message that a draft made, now or by an earlier send: then it is that one, unless it is gone."""
    if earlier:
        return replace(earlier, recipients=result.recipients)
    return Message(
        gid,
        result.msgid,
        result.seq,
        draft.sender_uid,
        draft.content,
        draft.client_msgid or None,
        None if draft.sent_at_ms is None else msgids.from_ms(draft.sent_at_ms),
        meta=draft.meta,
        recipients=result.recipients,
    )


def recall(gid: str, msgid: str, *, by: str, admin: bool) -> Effects[Message]:
    check_name(by, "uid")
    packed = check_msgid(msgid)
    recalled = yield from message(check_name(gid, "gid"), packed)
    if recalled is None:
        yield from group(gid)
        raise queries.unknown_message(gid, packed)
    if recalled.recalls is not None:
        raise error_of(b"TOMBSTONE", gid, msgid=packed)
    space = yield from GetKeyspace()
    tombstone = yield from call(
        message_calls.recall(space, gid, packed, by=by, sender_uid=recalled.sender_uid, admin=admin)
    )
    if tombstone is None:
        return replace(recalled, content="", recalled=True, meta=None)
    return Message(gid, tombstone.msgid, tombstone.seq, by, "", recalls=msgid)


def message(gid: str, packed: int) -> Effects[Message | None]:
    """Return one message (packed msgid), or None if the group has none of that id."""
    space, msgid = (yield from GetKeyspace()), msgids.unpack(packed)
    for entry in (yield from call(message_calls.entries(space, gid, msgid, msgid, 1))).entries:
        with suppress(IndexError, ValueError):  # somebody has added an entry by hand that is no message
            return wire.message(gid, entry)
    if packed > (yield from call(group_calls.trimmed(space, gid))):
        return None
    rows = yield from queries.MessagesByMsgid(gid, [packed])
    return (yield from queries.messages(space, gid, [rows[packed]]))[0] if rows else None


def pull(uid: str, gid: str | None, *, limit: int | None) -> Pages[Message]:
    check_name(uid, "uid")
    check_limit(limit)
    if gid is not None:
        yield from after(check_name(gid, "gid"), uid, None, limit)
        return
    for each in (yield from groups_of(uid)):
        with suppress(NotMember, UnknownGroup):  # the user has left it meanwhile
            yield from after(each, uid, None, limit)


def private_readings(uid: str, gids: Sequence[str]) -> Effects[dict[str, int]]:
    """Return the user's offset (packed) in those of the groups where they have read more, in private."""
    space = yield from GetKeyspace()
    answers = yield from call_each([group_calls.own_positions(space, gid, [uid]) for gid in gids])
    positions = {gid: raised(answer)[0] for gid, answer in zip(gids, answers, strict=True)}
    return {gid: at.offset for gid, at in positions.items() if at and at.private > at.offset}


def after(gid: str, uid: str, start: int | None, limit: int | None = None) -> Pages[Message]:
    """Yield what came after a message (packed), or after the member's offset. Raise UnknownGroup, NotMember."""
    left = msgids.HIGHEST if limit is None else limit
    more = True
    while more and left:
        page = yield from _page_after(gid, uid, start, min(left, queries.PAGE))
        yield page.messages
        left -= len(page.messages)
        more = page.more
        start = msgids.position_of(page.messages[-1].msgid) if more else start


def _page_after(gid: str, uid: str, start: int | None, count: int) -> Effects[queries.MessagePage]:
    """Return what came after a message (packed), or after the member's offset."""
    space = yield from GetKeyspace()
    pull = message_calls.pull(space, gid, [uid], after=start, count=count, most_bytes=queries.PAGE_BYTES)
    return raised((yield from queries.page(space, gid, (yield from call(pull)), count, queries.PAGE_BYTES)))
