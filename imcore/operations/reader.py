"""What was said and who has read it: Redis first, and SQL for what is trimmed there, as if it were one."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from imcore import msgid as msgids
from imcore.errors import DatabaseNotReady, DatabaseUnavailable, ImError, NotMember, UnknownGroup, UnknownMessage
from imcore.model.rows import MessageRow
from imcore.model.values import Message, MessageStatus, MessageTally, Reader, Unread
from imcore.operations import queries
from imcore.operations.effects import raised
from imcore.operations.performer import Performer
from imcore.streams import wire
from imcore.streams.calls import group_calls, message_calls, receipt_calls
from imcore.streams.calls.call import Trimmed
from imcore.streams.calls.receipt_calls import Counts, Gone, Names
from imcore.streams.keys import Keyspace
from imcore.util.backoff import ThrottledLog

if TYPE_CHECKING:
    from imcore.sql.database import Database

T = TypeVar("T")

PAGE = queries.PAGE
"""How many messages one call of Redis brings."""

NAMES = 1000
"""About how many names one call of Redis brings."""

_TALLIES = 200
"""How many messages one call of Redis brings with their tallies."""


class History:
    """Reads messages, tallies and positions. Never writes."""

    def __init__(self, performer: Performer) -> None:
        self._client = performer.system.client
        self.performer = performer
        self._trouble = ThrottledLog(time.monotonic)

    @property
    def _database(self) -> "Database | None":
        return self.performer.system.database_if_any

    @property
    def _space(self) -> Keyspace:
        return self._client.space

    def message(self, gid: str, packed: int) -> Message | None:
        """Return one message, or None if there is none of that id."""
        msgid = msgids.unpack(packed)
        for entry in self._client.call(message_calls.entries(self._space, gid, msgid, msgid, 1)).entries:
            with suppress(IndexError, ValueError):  # somebody has added by hand what is no message
                return wire.message(gid, entry)
        if self._database is None or packed > self._trimmed(gid):
            return None
        row = self.performer.history_database.message(gid, packed)
        return self._messages(gid, [row])[0] if row else None

    def _trimmed(self, gid: str) -> int:
        """Return up to which message (packed) only SQL has the group."""
        return int(self._client.query("HGET", self._space.group(gid).meta, "trimmed") or 0)

    def groups_of(self, uid: str) -> list[str]:
        """Return the gids of a user's groups, in order."""
        return self.performer.perform(queries.groups_of(self._space, [uid]))[uid]

    def after_offset(self, gid: str, uid: str, *, limit: int | None) -> Iterator[Message]:
        """Yield what a member has not acked, oldest first. Raise UnknownGroup, NotMember."""
        return self.after(gid, uid, None, limit=limit)

    def after(self, gid: str, uid: str, start: int | None, *, limit: int | None = None) -> Iterator[Message]:
        """Yield what came after a message (packed), or after the member's offset, in their present membership."""
        while limit is None or limit > 0:
            count = PAGE if limit is None else min(limit, PAGE)
            call = message_calls.pull(self._space, gid, [uid], after=start, count=count, most_bytes=queries.PAGE_BYTES)
            page = raised(self.performer.perform(queries.page(self._space, gid, self._client.call(call), count)))
            yield from page.messages
            if not page.more:
                return
            start = msgids.position_of(page.messages[-1].msgid)
            limit = None if limit is None else limit - len(page.messages)

    def _messages(self, gid: str, rows: Sequence[MessageRow]) -> list[Message]:
        return self.performer.perform(queries.messages(self._space, gid, rows))

    def unread(self, uid: str, gids: Sequence[str]) -> list[Unread]:
        """Return the member's position in each group; one that they left meanwhile, or that is none, is left out."""
        found = self._positions([(gid, uid) for gid in gids], NotMember, UnknownGroup)
        return [position for position in found if position]

    def positions(self, gid: str, uids: Sequence[str]) -> list[Unread | None]:
        """Return the position of each of a group's members; None for one who has left meanwhile."""
        return self._positions([(gid, uid) for uid in uids], NotMember)

    def _positions(self, pairs: Sequence[tuple[str, str]], *none_for: type[ImError]) -> list[Unread | None]:
        found = self._client.call_each([group_calls.position(self._space, gid, uid) for gid, uid in pairs])
        return [
            None if isinstance(position, none_for) else self._unread(gid, raised(position))
            for (gid, _), position in zip(pairs, found, strict=True)
        ]

    def _unread(self, gid: str, position: group_calls.Position) -> Unread:
        seq = position.acked_seq
        if seq is None:
            # Of the newest message up to there: a crash of both servers may have taken the one at the offset.
            known = self.performer.history_database.messages_before(gid, position.acked + 1, limit=1)
            seq = max((row.seq for row in known), default=0)
        return Unread(
            gid=gid,
            unread=position.head_seq - seq - position.not_unread,
            last_msgid=msgids.unpack_offset(position.last),
            last_ack_msgid=msgids.unpack_offset(position.acked),
        )

    def newest(self, gid: str, *, limit: int) -> list[MessageTally]:
        """Return the newest messages (0: all) with their tallies, oldest first. Raise UnknownGroup."""
        found: list[MessageTally] = []
        before = "+"
        while not limit or len(found) < limit:
            count = min(_TALLIES, limit - len(found)) if limit else _TALLIES
            call = receipt_calls.status(self._space, gid, before=before, count=count, most_bytes=queries.PAGE_BYTES)
            page = self._client.call(call)
            found += page.tallies
            if not page.more:
                if page.trimmed:
                    oldest = msgids.position_of(found[-1].message.msgid) if found else page.trimmed + 1
                    found += self._newest_trimmed(
                        gid, min(oldest, page.trimmed + 1), limit - len(found) if limit else None
                    )
                break
            before = f"({page.tallies[-1].message.msgid}"
        return found[::-1]

    def _newest_trimmed(self, gid: str, before: int, limit: int | None) -> Iterator[MessageTally]:
        while limit is None or limit > 0:
            rows = self.performer.history_database.messages_before(
                gid, before, limit=PAGE if limit is None else min(PAGE, limit)
            )
            if not rows:
                return
            yield from reversed(self._tallied(gid, rows))
            before = rows[0].msgid
            limit = None if limit is None else limit - len(rows)

    def _tallied(self, gid: str, rows: Sequence[MessageRow]) -> list[MessageTally]:
        counts = self.performer.perform(queries.counts_of_rows(self._space, gid, rows))
        return [
            MessageTally(message, *raised(counts[gid, row.msgid]))
            for row, message in zip(rows, self._messages(gid, rows), strict=True)
        ]

    def status(self, gid: str, packed: int) -> MessageStatus:
        """Return who has read a message, when, and who has not. Raise UnknownGroup, UnknownMessage.

        In a large group the names come page by page: each member counts as they stood when their page came.
        """
        names = self._names(gid, packed)
        message = names.message or self._messages(gid, [self._stored(gid, packed)])[0]
        read, unread = (uids - {message.sender_uid} for uids in (names.read, names.unread - names.read))
        read_at = self._read_times(gid, packed) if read else {}
        return MessageStatus(
            message=message,
            read_by=tuple(
                Reader(uid, msgids.from_ms(read_at[uid]) if uid in read_at else None) for uid in sorted(read)
            ),
            unread_by=tuple(sorted(unread)),
        )

    def _names(self, gid: str, packed: int) -> Names:
        """Return the names behind a tally, all pages of them; who read it between two pages may be on both sides."""
        first = names = self._client.call(receipt_calls.names(self._space, gid, packed, cursor="0", count=NAMES))
        read, unread = names.read, names.unread
        while names.cursor != "0":
            names = self._client.call(receipt_calls.names(self._space, gid, packed, cursor=names.cursor, count=NAMES))
            read |= names.read
            unread |= names.unread
        if names is not first:
            for gone in self._names_gone(gid, packed, first.newest):
                read |= gone.read
                unread |= gone.unread
        return first._replace(read=read, unread=unread)

    def _names_gone(self, gid: str, packed: int, since: int) -> Iterator[Gone]:
        """Yield who has left while the pages came: their spans have other names since, and may be on none of them."""
        offset = 0
        while True:
            call = receipt_calls.names_gone(self._space, gid, packed, since=since, offset=offset, count=NAMES)
            gone = self._client.call(call)
            yield gone
            if gone.looked_at < NAMES:
                return
            offset += gone.looked_at

    def _read_times(self, gid: str, packed: int) -> dict[str, int]:
        """Return when each reader read it, as far as a worker has stored it: none, before any has run.

        While the database is away, who has read it is told all the same.
        """
        try:
            return self.performer.history_database.read_times(gid, packed) if self._database else {}
        except DatabaseNotReady:
            return {}
        except DatabaseUnavailable as error:
            self._trouble.note(error, "when each has read it cannot be told now: %s")
            return {}

    def tallies(self, gid: str, messages: Sequence[int]) -> list[Counts]:
        """Return how many have read each message (packed) and how many have not. Raise UnknownGroup, UnknownMessage."""
        return [raised(count) for count in self.tallies_or_why(gid, messages)]

    def tallies_or_why(self, gid: str, messages: Sequence[int]) -> list[Counts | ImError]:
        """Return the tally of each message (packed), or why it cannot be had."""
        found = self.performer.perform(queries.tallies(self._space, {gid: messages}))
        return [found[gid, message] for message in messages]

    def seq_of(self, gid: str, packed: int) -> int:
        """Return the seq that SQL knows of a message. Raise UnknownMessage."""
        return self._stored(gid, packed).seq

    def _stored(self, gid: str, packed: int) -> MessageRow:
        row = self.performer.history_database.message(gid, packed)
        if row is None:
            raise UnknownMessage(f"{msgids.unpack(packed)} is not a message of {gid!r}")
        return row

    def if_trimmed(self, gid: str, packed: int, attempt: Callable[[int | None], T]) -> T:
        """Run an attempt on a message; where Redis has trimmed it, run it again with its seq from SQL."""
        try:
            return attempt(None)
        except Trimmed:
            return attempt(self.seq_of(gid, packed))
