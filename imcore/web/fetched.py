"""What the clients of sessions are given by calls: it may fill what their sessions have left out.

What was left out shows in what is delivered. So a call whose answer begins where the user has read in private is noted
as if it had begun at the offset: nobody else can tell what was read in private.
"""

from collections.abc import Sequence
from contextlib import suppress

from imcore.errors import NotMember, UnknownGroup
from imcore.model.values import HistoryPage, Message
from imcore.operations import messages
from imcore.operations.history import around_offset
from imcore.util.batches import grouped
from imcore.web.method import Caller


def note_fetched(caller: Caller, gid: str, page: HistoryPage, *, before: str | None = None) -> None:
    """Note what the client of a session gets with an answer."""
    if caller.session:
        caller.hub.gateway.fetched(caller.session, gid, page, before=before)


async def pull(caller: Caller, gid: str | None, limit: int) -> list[Message]:
    """Pull, and note what the client gets."""
    performer, uid = caller.chat.performer, caller.user
    public: dict[str, Sequence[Message]] = {}
    # Before the pull: what is noted was pulled then.
    for each, offset in (await performer.perform(messages.private_readings(uid, _holes(caller, gid)))).items():
        with suppress(NotMember, UnknownGroup):  # the user has left it meanwhile
            public[each] = [message async for message in performer.stream(messages.after(each, uid, offset, limit))]
    pulled = await caller.chat.pull(uid, gid, limit=limit)
    for each, found in {**grouped((message.gid, message) for message in pulled), **public}.items():
        note_fetched(caller, each, HistoryPage(tuple(found), older=False, newer=True))
    return pulled


async def around_unread(caller: Caller, gid: str, limit: int) -> HistoryPage:
    """Return a page of history around the first unread message, and note what the client gets."""
    page = public = await caller.chat.history(caller.user, gid, first_unread=True, limit=limit)
    if _holes(caller, gid):
        public = await caller.chat.performer.perform(around_offset(caller.user, gid, limit))
    note_fetched(caller, gid, public)
    return page


def _holes(caller: Caller, gid: str | None) -> list[str]:
    """Return the groups in which the session has left something out; of one group, if a gid is given."""
    holes = caller.session.whole_after if caller.session else {}
    return [each for each, begin in holes.items() if begin and gid in (None, each)]
