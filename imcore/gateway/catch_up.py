"""Which sessions follow which groups, and how those that are behind catch up. No I/O."""

from collections.abc import Mapping

from imcore.errors import ImError, NotMember, UnknownGroup, concerns_all, raise_what_stops_all
from imcore.gateway.ack_buffer import AckBuffer
from imcore.gateway.channels import Channels
from imcore.gateway.cursor import Cursor, ResumePoint
from imcore.gateway.delay_queue import DelayQueue
from imcore.gateway.delivery_queue import DeliveryQueue
from imcore.gateway.fanout import GroupSubscribers, Session
from imcore.model.values import Message
from imcore.operations import queries
from imcore.operations.effects import Effects, call_each
from imcore.operations.queries import PAGE, MessagePage
from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Call
from imcore.streams.calls.message_calls import PullResult
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Clock, ThrottledLog

AT_ONCE = 64
"""How many places are pulled from in one go."""

BYTES_AT_ONCE = 4 << 20
"""How many bytes of text are pulled in one go: all of them are in memory at once."""

JOINED = ResumePoint(0)
"""Where a group begins that was joined meanwhile: with the join, even if another session has acked some already."""


class CatchUp:
    """A part. Sessions that share a place pull together; where a session begins again, `to_enter` has it, too."""

    def __init__(
        self,
        space: Keyspace,
        channels: Channels,
        handover: DeliveryQueue,
        book: AckBuffer,
        to_enter: DelayQueue[Session],
        trouble: ThrottledLog,
        clock: Clock,
    ) -> None:
        self._space = space
        self._channels = channels
        self._handover = handover
        self._book = book
        self._to_enter = to_enter
        self._trouble = trouble
        self._clock = clock
        self._behind: DelayQueue[Cursor] = DelayQueue()

    def follow(self, session: Session, gid: str) -> None:
        """Let a session follow a group from where it was; one that does so already catches up."""
        room = self._channels.open_room(gid)
        if gid not in session.feeds:
            feed = room.enter(session, session.former.pop(gid, JOINED))
            if room.stands:  # or all will pull once it does
                self._behind.add([feed])
        elif room.stands:
            self._behind.add(room.fall_behind(session.feeds[gid]))

    def unfollow(self, session: Session, gid: str) -> None:
        """Let a session follow a group no more. If it comes back, what it had is not handed over again."""
        room = self._channels.room(gid)
        if room and gid in session.feeds:
            place = room.leave(session)
            if place:
                session.former[gid] = place
            if room.is_empty:
                self._channels.close_room(room)

    def begin_again(self, session: Session, gid: str) -> None:
        """Go on from the offset: messages that Redis had lost are back, among those that were handed over since.

        What was handed over and not acked comes again, or its ack would pass over them.
        """
        room = self._channels.room(gid)
        if room and gid in session.feeds:
            room.leave(session)
            self._behind.add([room.enter(session, None)])
            self._book.forget([session], gid)
            self._handover.take_back(session, gid)
            self._to_enter.add([session])  # receipts have changed, too

    def pushed(self, room: GroupSubscribers, msgid: int, message: Message) -> None:
        """Take a message that was pushed."""
        arrived, behind = room.pushed(message, msgid)
        self._handover.ready += arrived
        if behind:
            self._behind.add(behind)

    def fall_behind(self, room: GroupSubscribers) -> None:
        """Let all who follow a group pull: pushes may have been missed, and from now on none is."""
        for feed in room:
            self._behind.add(room.fall_behind(feed))

    def due(self) -> float:
        """Return when somebody has to catch up."""
        return self._behind.due()

    def go_on(self) -> Effects[None]:
        """Let some catch up, by a page."""
        some = self._behind.take(AT_ONCE, self._clock())
        self._behind.done(feed for feed in some if not self._room_of(feed))
        try:
            yield from self._catch_up([(room, feed) for feed in some if (room := self._room_of(feed))])
        except BaseException:
            self._behind.add(feed for feed in some if self._room_of(feed) and feed.behind)
            raise

    def _room_of(self, feed: Cursor) -> GroupSubscribers | None:
        """Return the room of a feed, if somebody has it still."""
        room = self._channels.room(feed.gid)
        return room if room and room.sessions(feed) else None

    def _catch_up(self, some: list[tuple[GroupSubscribers, Cursor]]) -> Effects[None]:
        answers = yield from call_each([self._pull(room, feed, BYTES_AT_ONCE // len(some)) for room, feed in some])
        raise_what_stops_all(answers)
        handed_over = 0
        for (room, feed), answer in zip(some, answers, strict=True):
            if handed_over > BYTES_AT_ONCE:
                self._behind.add([feed])  # what SQL adds is not counted before
            elif room.sessions(feed):
                handed_over += yield from self._take(room, feed, answer)

    def _pull(self, room: GroupSubscribers, feed: Cursor, most_bytes: int) -> Call[PullResult]:
        uids = room.audience(feed).uids
        return message_calls.pull(self._space, feed.gid, uids, after=feed.msgid, count=PAGE, most_bytes=most_bytes)

    def _take(self, room: GroupSubscribers, feed: Cursor, answer: PullResult | ImError) -> Effects[int]:
        """Take what was pulled; return how many bytes of text that is."""
        if isinstance(answer, NotMember | UnknownGroup):
            self._behind.done([feed])
            self._set_apart(room, feed, dict.fromkeys(room.audience(feed).uids, answer))
            return 0
        if isinstance(answer, ImError):  # about this group, or one partition, while it moves to another node
            self._postpone(feed, answer)
            return 0
        self._set_apart(room, feed, answer.apart)
        if not room.sessions(feed):
            self._behind.done([feed])
            return 0
        page = yield from self._page(feed, answer)
        if isinstance(page, ImError):
            self._postpone(feed, page)
            return 0
        self._behind.done([feed])
        arrived, shared = room.pulled(feed, answer, page)
        self._handover.ready += arrived
        if shared.msgid is None:
            for session in room.sessions(shared):
                self.begin_again(session, room.gid)
        elif shared.behind:
            self._behind.add([shared])
        return sum(len(each.message.content) for each in arrived)

    def _page(self, feed: Cursor, pulled: PullResult) -> Effects[MessagePage | ImError]:
        try:
            return (yield from queries.page(self._space, feed.gid, pulled, PAGE))
        except ImError as error:
            if concerns_all(error):
                raise
            return error

    def _set_apart(self, room: GroupSubscribers, feed: Cursor, why: Mapping[str, int | ImError]) -> None:
        """Let go those who are no members, and let those who joined later pull from there."""
        for session in room.sessions(feed) if why else ():
            apart = why.get(session.uid)
            if isinstance(apart, ImError):
                self.unfollow(session, room.gid)
            elif apart is not None:
                room.leave(session)
                self._behind.add([room.enter(session, ResumePoint(apart))])

    def _postpone(self, feed: Cursor, error: ImError) -> None:
        """Let the others go on: only what is trimmed in Redis needs the database, and other groups are elsewhere."""
        self._trouble.note(error, "what some have missed has to wait: %s")
        self._behind.postpone(feed, self._clock())
