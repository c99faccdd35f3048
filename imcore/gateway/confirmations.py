"""Clients confirm to a gateway what they have received and fetched. Both drivers of the core share this."""

import reprlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

from imcore import msgid as msgids
from imcore.errors import InvalidInput
from imcore.gateway.fanout import Session
from imcore.gateway.options import GatewayOptions, check_client_acks
from imcore.gateway.request import packed_msgid
from imcore.model.limits import check_handed_over, check_msgid, check_receipts
from imcore.model.values import HistoryPage, Receipt

if TYPE_CHECKING:
    from imcore.gateway.core import Core
    from imcore.gateway.spanning import SpanningCore

C = TypeVar("C", bound="Core | SpanningCore")


class Confirmations(Generic[C]):
    """Passes on what clients confirm. A driver is one of these."""

    def __init__(self, options: GatewayOptions) -> None:
        self._options = options
        self._core: C | None = None
        """Made for the first session: the server may be unreachable before."""
        self._checked, self._packed = ("", ""), 0
        """The last gid and msgid, and the packed msgid: many clients receive one message one after the other."""

    def _notify(self) -> None:
        """Let a `poll` in progress look at what is due now."""

    def received(self, session: Session, gid: str, msgid: str, private: bool = False) -> None:
        """Note that the client of a session has received a message, and so all before it in this group.

        It is acked with others, whether this session was handed the message or not; with `private` for nobody else to
        see, as with `Chat.ack`. The server refuses a message that it does not know; that is logged. A session that has
        ended is ignored. Raise InvalidInput unless `acks="client"`, and for a msgid that cannot be one. For the thread
        of the gateway.
        """
        if (gid, msgid) != self._checked:
            self._check(gid, msgid)
        if self._core and self._core.received(session, gid, self._packed, private):
            self._notify()

    def delivered(self, session: Session, gid: str, msgid: str) -> None:
        """Note that the client of a session has all messages of a group that this session was handed, up to this one.

        It may not have been shown yet. It is sent with others, and counts as `delivered` in tallies as far as nothing
        is missing before: what the session has left out (`start="live"`, `after`, a `Gap`) counts as missing until it
        was acked or `fetched`. An ack says the same and more. A message that this session was not handed is ignored.
        Raise InvalidInput as `received` does. For the thread of the gateway.
        """
        if (gid, msgid) != self._checked:
            self._check(gid, msgid)
        if self._core and self._core.delivered(session, gid, self._packed):
            self._notify()

    def fetched(self, session: Session, gid: str, page: HistoryPage, *, before: str | None = None) -> None:
        """Note that the client of a session was given this page of `Chat.history`, which may fill what it has left out.

        `before` is what `history` was given. Nothing counts as delivered by this, but a later `delivered` reaches as
        far back as nothing is missing. Leave a page of `first_unread` out: what it fills would show others where the
        user has read in private, or marked. Raise InvalidInput for anything but a page. For the thread of the gateway.
        """
        check_client_acks(self._options)
        check_handed_over(gid, "gid")
        reach = _reach_of(page, None if before is None else check_msgid(before))
        if self._core and reach:
            self._core.fetched(session, gid, *reach)

    def confirm_receipts(self, session: Session, receipts: Iterable[Receipt]) -> None:
        """Note that the client of a session has got these receipts. They are confirmed for all the user's sessions.

        Raise InvalidInput unless `acks="client"`, and for receipts that were never given out. For the thread of the
        gateway.
        """
        check_client_acks(self._options)
        checked = check_receipts(receipts)
        if self._core:
            self._core.confirm_receipts(session, checked)
            self._notify()

    def _check(self, gid: str, msgid: str) -> None:
        check_client_acks(self._options)
        check_handed_over(gid, "gid")
        self._packed = packed_msgid(msgid)
        self._checked = gid, msgid


def _reach_of(page: HistoryPage, before: int | None) -> tuple[int, int] | None:
    """Return after which position, and up to which (packed), a page has all messages; None for an empty one."""
    if not isinstance(page, HistoryPage):
        raise InvalidInput(f"a page must be a HistoryPage; it is {reprlib.repr(page)}")
    if not page.messages:
        return None
    first, last = check_msgid(page.messages[0].msgid), check_msgid(page.messages[-1].msgid)
    until = before - 1 if before is not None and page.newer else last
    return (first - 1 if page.older else msgids.NONE), max(last, until)
