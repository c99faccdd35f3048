"""Puts the messages and spans of a group in the order of events. No I/O.

Memberships come between the messages where they began and ended. The positions of a span come at its end: its offset
then is at least where the replayed messages have moved it to, since a sender who was caught up stays caught up. An ack
just behind its message could make a sender caught up who was not.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from imcore import msgid as msgids
from imcore.exporter.client_msgids import ClientMsgids
from imcore.model.records import Record
from imcore.model.rows import SpanRow
from imcore.model.values import Message


class _Named(NamedTuple):
    """A message of the file, by its packed msgid, or (`of_recall`) the recall of the message with the client_msgid."""

    msgid: int
    client_msgid: str
    sender_uid: str
    of_recall: bool = False


class Timeline:
    """The events of a group. Give it the messages in order; in memory are spans, and recalled messages without recall.

    A span has `joined_msgid`, `left_msgid` (None: it is open), `acked_msgid` and `delivered_msgid`.
    """

    def __init__(
        self, gid: str, spans: Iterable[SpanRow], client_msgids: ClientMsgids, bookmark: tuple[int, int] = (0, 0)
    ) -> None:
        """`bookmark` is that of the user whose open span is the last one; see `lua/positions.lua`."""
        self._gid = gid
        self._client_msgids = client_msgids
        in_order = sorted(spans, key=lambda span: (span.uid, span.joined_msgid))
        self._open = [span for span in in_order if span.left_msgid is None]
        # Sorted with the next one last. At one place memberships end before others begin.
        self._changes = sorted((change for span in in_order for change in _changes(span)), reverse=True)
        self._private, self._mark = bookmark
        places = {place for span in in_order for place in (span.acked_msgid, span.delivered_msgid) if place is not None}
        self._offsets = sorted({*places, self._private, self._mark + 1}, reverse=True)
        self._at_offset: dict[int, _Named | None] = {}
        """By offset the newest message of the file that it covers."""
        self._newest: _Named | None = None
        self._recalled: dict[int, _Named] = {}

    def begin(self) -> Record:
        return {"type": "group", "gid": self._gid}

    def add(self, message: Message) -> Iterator[Record]:
        """Yield the events up to a message, and the message itself.

        The recall of a message that is not in the file is left out.
        """
        msgid = msgids.position_of(message.msgid)
        yield from self._until(msgid - 1)
        if message.recalls is None:
            self._newest = _Named(msgid, self._client_msgids.of(message), message.sender_uid)
            if is_gone := message.recalled or not message.content:
                self._recalled[msgid] = self._newest
            yield _message(message, self._newest.client_msgid, is_gone=is_gone)
        elif recalled := self._recalled.pop(msgids.position_of(message.recalls), None):
            self._newest = _Named(msgid, recalled.client_msgid, message.sender_uid, of_recall=True)
            yield self._event("recall", message.sender_uid, client_msgid=recalled.client_msgid)

    def end(self) -> Iterator[Record]:
        """Yield the events after the last message. Messages whose recall is not in the file are recalled here."""
        yield from self._until(msgids.HIGHEST)
        for recalled in self._recalled.values():
            yield self._event("recall", recalled.sender_uid, client_msgid=recalled.client_msgid)
        for span in self._open:
            yield from self._positions(span)
            yield from self._bookmark(span)

    def _until(self, msgid: int) -> Iterator[Record]:
        """Yield the memberships that began or ended at a message (packed) or before it."""
        while self._offsets and self._offsets[-1] <= msgid:
            self._at_offset[self._offsets.pop()] = self._newest
        while self._changes and self._changes[-1].msgid <= msgid:
            change = self._changes.pop()
            if not change.is_begin:
                yield from self._positions(change.span)
            yield self._event("join" if change.is_begin else "leave", change.span.uid)

    def _positions(self, span: SpanRow) -> Iterator[Record]:
        """Yield an event for each position of a span that is past its beginning."""
        yield from self._position("ack", span, span.acked_msgid)
        if span.delivered_msgid is not None:
            yield from self._position("delivered", span, span.delivered_msgid)

    def _bookmark(self, span: SpanRow) -> Iterator[Record]:
        """Yield what only the user may know. A mark whose message is not in the file, or too old, is left out."""
        if self._private:
            yield from self._position("ack", span, self._private, private=True)
        marked = self._at_offset[self._mark + 1] if self._mark else None
        if marked and marked.msgid == self._mark + 1 and not marked.of_recall:
            yield self._event("mark", span.uid, client_msgid=marked.client_msgid)

    def _position(self, type_: str, span: SpanRow, msgid: int, **more: object) -> Iterator[Record]:
        named = self._at_offset[msgid]
        if named and named.msgid > span.joined_msgid:
            recall = {"recall": True} if named.of_recall else {}
            yield self._event(type_, span.uid, client_msgid=named.client_msgid, **recall, **more)

    def _event(self, type_: str, uid: str, **more: object) -> Record:
        return {"type": type_, "gid": self._gid, "uid": uid, **more}


class _Change(NamedTuple):
    """A membership begins or ends after a message."""

    msgid: int
    is_begin: bool
    uid: str
    span: SpanRow


def _changes(span: SpanRow) -> Iterator[_Change]:
    yield _Change(span.joined_msgid, True, span.uid, span)
    if span.left_msgid is not None:
        yield _Change(span.left_msgid, False, span.uid, span)


def _message(message: Message, client_msgid: str, *, is_gone: bool) -> Record:
    event: dict[str, object] = {
        "type": "message",
        "time": message.sent_at or message.time,
        "gid": message.gid,
        "uid": message.sender_uid,
        "content": message.content,
        "client_msgid": client_msgid,
    }
    if message.meta is not None:
        event["meta"] = message.meta
    if is_gone:
        event["recalled"] = True
    return event
