"""Exports a group, or all data of one user, as the events that `im import` replays."""

from collections.abc import Iterable, Iterator
from contextlib import suppress

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.errors import DatabaseNotReady, UnknownGroup, UnknownUser
from imcore.exporter import reader
from imcore.exporter.client_msgids import ClientMsgids
from imcore.exporter.timeline import Timeline
from imcore.model.direct import is_direct
from imcore.model.limits import ASKED_BY, GROUP_RECEIPTS
from imcore.model.records import Record
from imcore.model.rows import SpanRow
from imcore.repair import window
from imcore.sql import queries
from imcore.streams.calls import journal_calls, span_calls
from imcore.streams.events import SpanEnded


class Export:
    """One export. What it yields are JSON objects; times are datetimes.

    The same events imported into an empty system make the same messages in the same order, memberships and offsets.
    Messages are named by ClientMsgids. Msgids, the server's times and read times are those of the new system. Messages
    of erased users come as recalled ones.
    """

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self.messages = 0
        """The number of messages and recalls so far."""
        self.total: int | None = None
        """The number of messages and recalls in all, if it is known."""
        self.renamed = 0
        """The number of messages so far whose client_msgid another message of their group has."""

    def group(self, gid: str) -> Iterator[Record]:
        """Yield the events of a group. Raise UnknownGroup, also if the group is deleted meanwhile."""
        self.total = self._chat.group(gid).messages
        return self._group(gid, None)

    def user(self, uid: str) -> Iterator[Record]:
        """Yield what a user may see of each group that they are in, or were in.

        That is their own memberships and offsets, and all messages that were sent while they were members. Of a
        one-to-one chat it is also that the other user is in it. Raise UnknownUser for a user who was in no group.
        """
        current = self._chat.groups_of(uid)
        gids = sorted({*current, *self._left_groups(uid)})
        if not gids:
            raise UnknownUser(f"{uid!r} is in no group, and was in none")
        for gid in gids:
            with suppress(UnknownGroup):  # it was deleted meanwhile
                yield from self._group(gid, uid)

    def _group(self, gid: str, uid: str | None) -> Iterator[Record]:
        last = self._chat.group(gid).last_msgid
        newest = msgids.position_of(last) if last else msgids.NONE
        spans = self._chat.performer.perform(reader.spans(gid, newest, None if is_direct(gid) else uid))
        parts = [(msgids.NONE, newest)] if uid is None else _parts_of(uid, spans, newest)
        if not parts:
            return
        if uid is not None:
            spans = [span if span.uid == uid else _without_positions(span) for span in spans]
        client_msgids, before = ClientMsgids(), self.renamed
        timeline = Timeline(gid, spans, client_msgids, self._bookmark(gid, uid))
        yield {**timeline.begin(), **self._policy(gid, uid)}
        for after, until in parts:
            for message in self._chat.performer.stream(reader.messages(gid, after, until)):
                self.messages += 1
                yield from timeline.add(message)
                self.renamed = before + client_msgids.renamed
        self._chat.group(gid)
        yield from timeline.end()

    def _policy(self, gid: str, uid: str | None) -> Record:
        """Return what a group's receipt policy has that a new group's has not; nothing in a user's data."""
        if uid is not None:
            return {}
        policy = self._chat.group_policy(gid)
        values = {"receipts": (policy.receipts, GROUP_RECEIPTS[0]), "asked_by": (policy.asked_by, ASKED_BY[0])}
        return {name: value for name, (value, default) in values.items() if value != default}

    def _bookmark(self, gid: str, uid: str | None) -> tuple[int, int]:
        """Return the bookmark of the user whose data this is. A group's export has what others may know, too."""
        client = self._chat.system.client
        return (0, 0) if uid is None else client.call(span_calls.bookmark(client.space, gid, uid))

    def _left_groups(self, uid: str) -> Iterator[str]:
        """Yield groups that a user has left: those that SQL has, and those of which only the journals tell so far.

        The journals are read first: what they have lost by then is in SQL.
        """
        client = self._chat.system.client
        begun = client.call_many(
            [
                journal_calls.undone(client.space, partition, [window.KIND], only=True)
                for partition in range(client.space.partitions)
            ]
        )
        for partition in range(client.space.partitions):
            for entry in window.undone(client, partition):
                if isinstance(entry.event, SpanEnded) and entry.event.uid == uid:
                    yield entry.event.gid
        try:
            yield from queries.gids_of(self._chat.performer.history_database, uid)
        except DatabaseNotReady:
            if any(begun):  # it has stored something, so this is not its database
                raise


def _parts_of(uid: str, spans: Iterable[SpanRow], newest: int) -> list[tuple[int, int]]:
    """Return the messages that a user may see: for each span after which one (packed), and up to which one."""
    own = (span for span in spans if span.uid == uid)
    return sorted((span.joined_msgid, newest if span.left_msgid is None else span.left_msgid) for span in own)


def _without_positions(span: SpanRow) -> SpanRow:
    return span._replace(acked_msgid=span.joined_msgid, delivered_msgid=None)
