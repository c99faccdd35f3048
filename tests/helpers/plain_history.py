"""Pages of history as plain lists have them: what `Chat.history` must answer, by slices and comparisons."""

from collections.abc import Sequence

from imcore import Chat, HistoryPage
from imcore import msgid as msgids
from imcore.model.values import Message


def plain_page(
    visible: Sequence[Message],
    limit: int,
    *,
    before: str | None = None,
    after: str | None = None,
    around: str | None = None,
) -> HistoryPage:
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
        return HistoryPage((), bool(older), bool(newer))
    return HistoryPage(tuple(page), page[0] != visible[0], page[-1] != visible[-1])


def scroll_back(chat: Chat, uid: str, gid: str, limit: int) -> list[Message]:
    """All that a member may see, page by page from the newest to the oldest."""
    page = chat.history(uid, gid, limit=limit)
    pages = [page]
    while page.older:
        page = chat.history(uid, gid, before=page.messages[0].msgid, limit=limit)
        pages.insert(0, page)
    return [message for page in pages for message in page.messages]


def scroll_on(chat: Chat, uid: str, gid: str, limit: int) -> list[Message]:
    """All that a member may see, page by page from the oldest to the newest."""
    page = chat.history(uid, gid, after=msgids.unpack(1), limit=limit)
    messages = [*page.messages]
    while page.newer:
        page = chat.history(uid, gid, after=page.messages[-1].msgid, limit=limit)
        messages += page.messages
    return messages
