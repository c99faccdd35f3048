"""Catching up: which sessions follow which groups, and pulls for those that are behind. No I/O."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from imcore.errors import ImError, NotMember, UnknownGroup, concerns_all, raise_what_stops_all
from imcore.gateway.acks import AckBuffer
from imcore.gateway.channels import Channels
from imcore.gateway.fanout import Cursor, DeliveryQueue, GroupSubscribers, ResumePoint, Session
from imcore.gateway.scheduler import DelayQueue
from imcore.model.values import Message
from imcore.operations import queries
from imcore.operations.effects import Effects, call_each
from imcore.operations.queries import PAGE, MessagePage
from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Call
from imcore.streams.calls.message_calls import PullResult
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Clock, ThrottledLog

CURSORS_PER_STEP = 64
SESSIONS_PER_STEP = 64

BYTES_PER_STEP = 4 << 20
"""Of text: all of it is in memory at once."""

JOINED = ResumePoint(0)
"""A group that was joined meanwhile begins with the join, even if another session has acked some of it already."""


@dataclass(eq=False)
class CatchUp:
    """A task: pulls for cursors that are behind. Sessions that restart in a group are queued in `to_resync`, too."""

    _space: Keyspace
    _channels: Channels
    _deliveries: DeliveryQueue
    _ack_buffer: AckBuffer
    _to_resync: DelayQueue[Session]
    _log: ThrottledLog
    _clock: Clock
    _behind: DelayQueue[Cursor] = field(default_factory=DelayQueue)

    def follow(self, session: Session, gid: str) -> None:
        """Let a session follow a group from its resume point. A session that follows it already catches up."""
        subscribers = self._channels.open_group(gid)
        if gid not in session.cursors:
            cursor = subscribers.add(session, session.resume_points.pop(gid, JOINED))
            if subscribers.is_subscribed:  # or all cursors are put behind once it is
                self._behind.add([cursor])
        elif subscribers.is_subscribed:
            self._behind.add(subscribers.fall_behind(session.cursors[gid]))

    def unfollow(self, session: Session, gid: str) -> None:
        """Let a session follow a group no more. If it comes back, it does not get the same messages again."""
        subscribers = self._channels.groups.get(gid)
        if subscribers and gid in session.cursors:
            resume_point = subscribers.remove(session)
            if resume_point:
                session.resume_points[gid] = resume_point
            if subscribers.is_empty:
                self._channels.close_group(gid)

    def restart(self, session: Session, gid: str) -> None:
        """Let a session begin again at the offset: messages that Redis had lost are back, before its cursor."""
        subscribers = self._channels.groups.get(gid)
        if subscribers and gid in session.cursors:
            subscribers.remove(session)
            self._behind.add([subscribers.add(session, None)])
            self._ack_buffer.forget([session], gid)
            self._deliveries.retract(session, gid)
            self._to_resync.add([session])  # receipts have changed, too

    def pushed(self, subscribers: GroupSubscribers, msgid: int, message: Message) -> None:
        events, behind = subscribers.pushed(message, msgid)
        self._deliveries.ready += events
        if behind:
            self._behind.add(behind)

    def fall_behind(self, subscribers: GroupSubscribers) -> None:
        """Let all subscribers of a group pull: pushes may have been missed."""
        for cursor in subscribers:
            self._behind.add(subscribers.fall_behind(cursor))

    def due(self) -> float:
        return self._behind.due()

    def step(self) -> Effects[None]:
        taken = self._behind.take(CURSORS_PER_STEP, self._clock())
        self._behind.succeeded(cursor for cursor in taken if not self._subscribers(cursor))
        try:
            yield from self._catch_up(
                [(subscribers, cursor) for cursor in taken if (subscribers := self._subscribers(cursor))]
            )
        except BaseException:
            self._behind.add(cursor for cursor in taken if self._subscribers(cursor) and cursor.behind)
            raise

    def _subscribers(self, cursor: Cursor) -> GroupSubscribers | None:
        subscribers = self._channels.groups.get(cursor.gid)
        return subscribers if subscribers and subscribers.sessions(cursor) else None

    def _catch_up(self, cursors: list[tuple[GroupSubscribers, Cursor]]) -> Effects[None]:
        answers = yield from call_each(
            [self._pull(subscribers, cursor, BYTES_PER_STEP // len(cursors)) for subscribers, cursor in cursors]
        )
        raise_what_stops_all(answers)
        size = 0
        for (subscribers, cursor), answer in zip(cursors, answers, strict=True):
            if size > BYTES_PER_STEP:
                self._behind.add([cursor])  # the pulls did not count the messages that SQL adds
            elif subscribers.sessions(cursor):
                size += yield from self._take(subscribers, cursor, answer)

    def _pull(self, subscribers: GroupSubscribers, cursor: Cursor, most_bytes: int) -> Call[PullResult]:
        uids = subscribers.recipients(cursor).uids
        return message_calls.pull(self._space, cursor.gid, uids, after=cursor.msgid, count=PAGE, most_bytes=most_bytes)

    def _take(self, subscribers: GroupSubscribers, cursor: Cursor, answer: PullResult | ImError) -> Effects[int]:
        """Take the answer to a pull; return the bytes of text of its messages."""
        if isinstance(answer, NotMember | UnknownGroup):
            self._behind.succeeded([cursor])
            self._separate(subscribers, cursor, dict.fromkeys(subscribers.recipients(cursor).uids, answer))
            return 0
        if isinstance(answer, ImError):  # about this group, or about one partition while it moves to another node
            self._postpone(cursor, answer)
            return 0
        self._separate(subscribers, cursor, answer.apart)
        if not subscribers.sessions(cursor):
            self._behind.succeeded([cursor])
            return 0
        page = yield from self._page(cursor, answer)
        if isinstance(page, ImError):
            self._postpone(cursor, page)
            return 0
        self._behind.succeeded([cursor])
        events, merged = subscribers.pulled(cursor, answer, page)
        self._deliveries.ready += events
        if merged.msgid is None:
            for session in subscribers.sessions(merged):
                self.restart(session, cursor.gid)
        elif merged.behind:
            self._behind.add([merged])
        return sum(len(event.message.content) for event in events)

    def _page(self, cursor: Cursor, pulled: PullResult) -> Effects[MessagePage | ImError]:
        try:
            return (yield from queries.page(self._space, cursor.gid, pulled, PAGE))
        except ImError as error:
            if concerns_all(error):
                raise
            return error

    def _separate(self, subscribers: GroupSubscribers, cursor: Cursor, reasons: Mapping[str, int | ImError]) -> None:
        """Take users out of a cursor: those who are no members unfollow, and later joiners get another cursor."""
        for session in subscribers.sessions(cursor) if reasons else ():
            reason = reasons.get(session.uid)
            if isinstance(reason, ImError):
                self.unfollow(session, cursor.gid)
            elif reason is not None:
                subscribers.remove(session)
                self._behind.add([subscribers.add(session, ResumePoint(reason))])

    def _postpone(self, cursor: Cursor, error: ImError) -> None:
        """Let this cursor wait alone: others may not need the database, and other groups may be on other nodes."""
        self._log.note(error, "what some have missed has to wait: %s")
        self._behind.postpone(cursor, self._clock())


@dataclass(eq=False)
class Resync:
    """A task: fetches the groups of sessions whose inbox has just been subscribed, and may have missed news before."""

    _space: Keyspace
    _queue: DelayQueue[Session]
    _catch_up: CatchUp
    _fetch_receipts: Callable[[Iterable[Session]], None]
    _log: ThrottledLog
    _clock: Clock

    def due(self) -> float:
        return self._queue.due()

    def step(self) -> Effects[None]:
        sessions = self._queue.take(SESSIONS_PER_STEP, self._clock())
        try:
            groups = yield from queries.groups_or_errors(self._space, list({session.uid for session in sessions}))
        except BaseException:
            self._queue.add(sessions)
            raise
        for session in sessions:
            gids = groups[session.uid]
            if isinstance(gids, ImError):
                self._log.note(gids, "what groups some are in has to wait: %s")
                self._queue.postpone(session, self._clock())
            else:
                self._queue.succeeded([session])
                self._sync(session, gids)

    def _sync(self, session: Session, gids: list[str]) -> None:
        for gid in session.cursors.keys() - set(gids):
            self._catch_up.unfollow(session, gid)
        for gid in gids:
            if gid not in session.cursors:
                self._catch_up.follow(session, gid)
        self._fetch_receipts([session])
        if session.is_synced:
            session.reconnects += 1
        session.is_synced = True
