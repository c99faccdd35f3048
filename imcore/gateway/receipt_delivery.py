"""Tells senders who has read: what is pushed, and what waited for them, page by page. No I/O."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from imcore.errors import ImError
from imcore.gateway.channels import Inbox
from imcore.gateway.delay_queue import DelayQueue
from imcore.gateway.delivery_queue import DeliveryQueue
from imcore.gateway.fanout import ReceiptsChanged, Recipients, Session
from imcore.model.values import Receipt
from imcore.operations import dirty_receipts
from imcore.operations.dirty_receipts import DirtyCursor
from imcore.operations.effects import Effects
from imcore.streams.calls.receipt_calls import DirtyReceipt
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Clock, ThrottledLog

AT_ONCE = 32
"""For how many sessions is asked at once."""

PAGE = 100
"""How many receipts of a partition are asked for at once for each of them."""

LONGEST = 10_000
"""How many receipts one event has at most: as many as one digest."""


class _Versions:
    """Which changes a session was told when it asked, of late."""

    def __init__(self) -> None:
        self._newer: dict[tuple[str, str], int] = {}
        self._older: dict[tuple[str, str], int] = {}

    def is_news(self, receipt: Receipt) -> bool:
        """Return whether a receipt is of a later change than what was told of that message."""
        key = receipt.gid, receipt.msgid
        return receipt.version > max(self._newer.get(key, 0), self._older.get(key, 0))

    def note(self, receipts: Iterable[Receipt]) -> None:
        """Note that receipts are told."""
        self._newer.update(((receipt.gid, receipt.msgid), receipt.version) for receipt in receipts)

    def turn(self) -> bool:
        """Forget what was noted before the last turn; return whether anything is left."""
        self._older, self._newer = self._newer, {}
        return bool(self._older)


class ReceiptDelivery:
    """A part. Asks for the receipts that wait for sessions, and drops what they have been told meanwhile.

    A push names versions, too; one that was under way while a session asked is older than what it was told.
    """

    def __init__(self, space: Keyspace, handover: DeliveryQueue, trouble: ThrottledLog, clock: Clock) -> None:
        self._space = space
        self._handover = handover
        self._trouble = trouble
        self._clock = clock
        self._todo: DelayQueue[Session] = DelayQueue()
        self._cursors: dict[Session, DirtyCursor] = {}
        self._told: dict[Session, _Versions] = {}

    def want(self, sessions: Iterable[Session]) -> None:
        """Let sessions be told what waits for them."""
        for session in sessions:
            self._cursors[session] = DirtyCursor.of(self._space, session.uid)
            self._todo.add([session])

    def forget(self, session: Session) -> None:
        """A session has ended, or the versions that it was told mean nothing any more."""
        self._todo.discard(session)
        self._cursors.pop(session, None)
        self._told.pop(session, None)

    def forget_versions(self) -> None:
        """The server may be another one, and count from below again."""
        self._told.clear()

    def turn(self) -> None:
        """What was told by asking before the last turn has overtaken no push that is still under way."""
        self._told = {session: versions for session, versions in self._told.items() if versions.turn()}

    def pushed(self, inbox: Inbox, receipts: Sequence[Receipt]) -> None:
        """Tell a user what was pushed."""
        asked = [session for session in inbox.sessions if session in self._told]
        for session in asked:
            self._tell([session], [each for each in receipts if self._told[session].is_news(each)])
        self._tell([session for session in inbox.sessions if session not in self._told], receipts)

    def due(self) -> float:
        """Return when somebody is to be told something."""
        return self._todo.due()

    def go_on(self) -> Effects[None]:
        """Tell some sessions the next page of what waits for them."""
        some = self._todo.take(AT_ONCE, self._clock())
        cursors = [replace(self._cursors[session]) for session in some]
        try:
            marked = yield from dirty_receipts.dirty_receipts(self._space, cursors, PAGE)
            found = yield from dirty_receipts.receipts(self._space, [_marks(each) for each in marked])
        except BaseException:
            self._todo.add(some)
            raise
        for session, cursor, marks, to_tell in zip(some, cursors, marked, found, strict=True):
            problem = marks if isinstance(marks, ImError) else to_tell.waits
            if problem:
                self._postpone(session, problem)
                continue
            self._todo.done([session])
            if to_tell.left_out:
                self._note(to_tell.left_out)
            self._go_on(session, cursor, to_tell.receipts)

    def _go_on(self, session: Session, cursor: DirtyCursor, receipts: list[Receipt]) -> None:
        if receipts:
            versions = self._told.setdefault(session, _Versions())
            self._tell([session], [receipt for receipt in receipts if versions.is_news(receipt)])
            versions.note(receipts)
        if cursor.after:
            self._cursors[session] = cursor
            self._todo.add([session])
        else:
            del self._cursors[session]

    def _postpone(self, session: Session, error: ImError) -> None:
        """Let the others go on: only receipts of what is trimmed in Redis need the database, a partition moves, or what
        Redis has of this user cannot be read.
        """
        self._note(error)
        self._todo.postpone(session, self._clock())

    def _note(self, error: ImError) -> None:
        self._trouble.note(error, "receipts of some have to wait: %s")

    def _tell(self, sessions: Sequence[Session], receipts: Sequence[Receipt]) -> None:
        audience = sessions[0].alone if len(sessions) == 1 else Recipients(sessions)
        if sessions:
            self._handover.ready += [
                ReceiptsChanged(audience, tuple(receipts[at : at + LONGEST])) for at in range(0, len(receipts), LONGEST)
            ]


def _marks(found: list[DirtyReceipt] | ImError) -> list[DirtyReceipt]:
    return [] if isinstance(found, ImError) else found
