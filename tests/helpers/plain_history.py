"""Pages of history as plain lists have them: what `Chat.history` must answer, by slices and comparisons."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from imcore import Chat
from imcore import msgid as msgids
from imcore.model.values import Message


class WithMsgid(Protocol):
    @property
    def msgid(self) -> str: ...


M = TypeVar("M", bound=WithMsgid)
PlainPage = tuple[list[M], bool, bool]
"""The messages of a page, and whether there are older and newer ones."""


def plain_page(
    visible: Sequence[M],
    limit: int,
    *,
    before: str | None = None,
    after: str | None = None,
    around: str | None = None,
) -> PlainPage[M]:
    """The page of a list of all messages that a member may see, oldest first."""
    cursor = msgids.pack(before or after or around or msgids.unpack(msgids.HIGHEST))
    older = [message for message in visible if msgids.pack(message.msgid) < cursor]
    newer = [message for message in visible if msgids.pack(message.msgid) > cursor]
    at = [message for message in visible if msgids.pack(message.msgid) == cursor]
    if around is not None:
        page = older[len(older) - min(limit // 2, len(older)) :] + (at + newer)[: limit - limit // 2]
    elif after is not None:
        page = newer[:limit]
    else:
        page = older[-limit:]
    if not page:
        return [], bool(older), bool(newer)
    return page, page[0] is not visible[0], page[-1] is not visible[-1]


def page_of(
    chat: Chat,
    uid: str,
    gid: str,
    limit: int,
    *,
    before: str | None = None,
    after: str | None = None,
    around: str | None = None,
    first_unread: bool = False,
) -> PlainPage[Message]:
    """The page that the system answers, in the same form."""
    page = chat.history(uid, gid, before=before, after=after, around=around, first_unread=first_unread, limit=limit)
    return list(page.messages), page.older, page.newer


def scroll_back(chat: Chat, uid: str, gid: str, limit: int) -> list[Message]:
    """All that a member may see, page by page from the newest to the oldest."""
    messages, older, newer = page_of(chat, uid, gid, limit)
    assert not newer
    while older:
        page, older, newer = page_of(chat, uid, gid, limit, before=messages[0].msgid)
        assert newer
        messages = page + messages
    return messages


def scroll_on(chat: Chat, uid: str, gid: str, limit: int) -> list[Message]:
    """All that a member may see, page by page from the oldest to the newest."""
    messages, older, newer = page_of(chat, uid, gid, limit, after=msgids.unpack(1))
    assert not older
    while newer:
        page, older, newer = page_of(chat, uid, gid, limit, after=messages[-1].msgid)
        assert older
        messages += page
    return messages
