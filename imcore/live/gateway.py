"""A gateway: the live sessions of many users in one process, over one subscription connection.

Each session hands over every message of its user's groups once and in order: first what was missed, then what is
pushed; a hole in the seqs and a lost connection are mended by pulling, and an expired session is opened again. A
message counts as received, and is acked with others after it, when `poll` is called again: a caller that dies in
between gets it again.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self, TypeVar

from imcore import msgid as msgids
from imcore import reading
from imcore.errors import (
    DatabaseUnavailable,
    ImError,
    InvalidInput,
    NotMember,
    RedisUnavailable,
    SessionExpired,
    UnknownGroup,
)
from imcore.history import History
from imcore.limits import check_name, check_place, check_seconds
from imcore.live.acking import Acking
from imcore.live.acks import AckBook
from imcore.live.channels import Channels
from imcore.live.feed import Feed, Place
from imcore.live.rooms import Arrived, Audience, Event, Room, Session, Told
from imcore.live.subscription import Heard
from imcore.reading import PAGE, PAGE_BYTES
from imcore.receipts import Receipts
from imcore.settings import Settings
from imcore.streams import calls, session_calls, wire
from imcore.streams.link import Link
from imcore.values import Message, Receipt

S = TypeVar("S")
T = TypeVar("T")

log = logging.getLogger(__name__)

_HOW_TOLD = ("push", "poll")
_CATCH_UP_AT_ONCE = 64
_LONGEST_WAIT_S = 2.0
_FIRST_WAIT_S = 0.05


class Gateway:
    """Sessions that share a connection. For one thread.

    `ack_every` messages or `ack_interval_s` seconds, whichever is first, make one ack; with `acks=False` none is sent.
    `receipts` says how senders learn who has read: "push" as it happens, "poll" with each heartbeat. Raise
    InvalidInput for any of these that makes no sense.
    """

    def __init__(
        self,
        link: Link,
        history: History,
        settings: Settings,
        *,
        ack_every: int = 10,
        ack_interval_s: float = 1.0,
        acks: bool = True,
        receipts: Literal["push", "poll"] = "push",
    ) -> None:
        if not isinstance(ack_every, int) or ack_every < 1:
            raise InvalidInput(f"ack_every {ack_every!r} makes no sense: give how many messages make one ack")
        if receipts not in _HOW_TOLD:
            raise InvalidInput(f"receipts must be one of {', '.join(_HOW_TOLD)}; it is {receipts!r}")
        self._link = link
        self._history = history
        self._settings = settings
        self._receipts = Receipts(link, history)
        check_seconds(ack_interval_s, "ack_interval_s")
        self._acking = Acking(link, AckBook(ack_every, ack_interval_s)) if acks else None
        self._confirm_interval_s = ack_interval_s
        self._polls_receipts = receipts == "poll"
        self._sessions: dict[str, Session] = {}
        self._channels = Channels(link)
        self._entering: dict[Session, None] = {}
        self._behind: dict[tuple[Session, str], None] = {}
        self._postponed: dict[tuple[Session, str], float] = {}
        self._confirmed: dict[str, list[Receipt]] = {}
        self._ready: list[Event] = []
        self._handed_over: list[Event] = []
        self._next_beat = time.monotonic() + settings.heartbeat_ms / 1000
        self._confirm_at = math.inf
        self._retry_at = 0.0
        self._wait_s = _FIRST_WAIT_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(clean=kind is None)

    def open(self, uid: str, *, places: Mapping[str, Place] | None = None) -> Session:
        """Begin a session. It resumes each group after the client's own place, or else after the user's offset as the
        next `poll` finds it. Raise InvalidInput for a uid or a place that cannot be one, RedisUnavailable.
        """
        for gid, place in (places or {}).items():
            check_place(gid, *place)
        session = Session(check_name(uid, "uid"))
        self._link.run(self._beat(session, opens=True))
        self._sessions[session.sid] = session
        for gid, place in (places or {}).items():
            session.former[gid] = Feed(gid, *place)
            session.resumed[gid] = place  # it may have been killed before it acked what it has
        self._enter(session)
        return session

    def end(self, session: Session) -> None:
        """End one session: what was handed over is acked, and the user is offline if it was the last one.

        One that has ended already is passed over. Raise RedisUnavailable; then the session goes on.
        """
        if session.sid in self._sessions:
            self._end([session])

    def _end(self, sessions: Collection[Session]) -> None:
        self._settle()
        with suppress(RedisUnavailable):  # acks go another way
            self._hear_before_acks()
        if self._acking:
            self._acking.send_of(sessions)
        self._confirm({session.uid for session in sessions})
        self._link.run_many([session_calls.bye(self._link.space, each.uid, each.sid) for each in sessions])
        for session in sessions:
            del self._sessions[session.sid]
            self._listening(self._channels.close_inboxes, session)
            for gid in list(session.feeds):
                self._unfollow(session, gid)
            self._entering.pop(session, None)
        rest = (event._replace(audience=event.audience.without(sessions)) for event in self._ready)
        self._ready = [event for event in rest if event.sessions]

    def close(self, *, clean: bool = True) -> None:
        """End all sessions. Not clean: as if the process had been killed, so nothing more is acked."""
        try:
            if clean:
                self._end(dict.fromkeys(self._sessions.values()))
        except RedisUnavailable as error:
            log.warning("%s; what was not acked comes again", error)
        finally:
            if self._acking:
                self._acking.close()
            self._channels.close()

    def poll(self, timeout_s: float = 1.0) -> list[Event]:
        """Return what came, after waiting at most so long for the first; and confirm what the last call returned.

        While Redis is away it returns nothing, and goes on by itself when it is back. Raise InvalidInput for a time
        that is none.
        """
        if math.isnan(timeout_s):
            raise InvalidInput("timeout_s is not a number: this would wait for ever")
        self._settle()
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._step(deadline)
            except RedisUnavailable as error:
                self._lost(error)
            if self._ready or time.monotonic() >= deadline:
                self._handed_over, self._ready = self._ready, []
                return self._handed_over

    def give_back(self, count: int) -> None:
        """Take back the last so many events of the last `poll`: not received, they are returned by the next one.

        Raise InvalidInput if it returned less.
        """
        if not 0 <= count <= len(self._handed_over):
            raise InvalidInput(f"{count} events cannot be taken back: {len(self._handed_over)} were returned")
        at = len(self._handed_over) - count
        self._handed_over, unseen = self._handed_over[:at], self._handed_over[at:]
        self._ready = unseen + self._ready

    def _step(self, deadline: float) -> None:
        now = time.monotonic()
        if now < self._retry_at:
            time.sleep(max(0.0, min(self._retry_at, deadline) - now))
            return
        if not self._channels.is_open:
            self._channels.reopen()
        if now >= self._next_beat:
            self._heartbeat()
        if self._acking and self._acking.book.next_due() <= now:
            self._hear_before_acks()
            self._acking.send_due(now)
        if self._confirm_at <= now:
            self._confirm(self._confirmed)
        for key in [key for key, due in self._postponed.items() if due <= now]:
            del self._postponed[key]
            self._behind[key] = None
        self._learn()
        self._catch_up()
        if self._channels.is_open:  # it may have been lost as groups were followed
            self._hear(deadline)
            self._wait_s = _FIRST_WAIT_S

    def _hear(self, deadline: float) -> None:
        heard = self._channels.read(0.0)
        if not (heard or self._ready or self._behind or self._entering):
            until = min(deadline, self._next_beat, self._confirm_at, next(iter(self._postponed.values()), math.inf))
            if self._acking:
                self._acking.read_answers()
                until = min(until, self._acking.book.next_due())
            heard = self._channels.read(until - time.monotonic())
        for each in heard:
            self._take(each)

    def _hear_before_acks(self) -> None:
        """Hear whether messages have come before those that were handed over: an ack would pass over them."""
        for heard in self._channels.read(0.0):
            self._take(heard)

    # What was handed over by the last poll is received now.

    def _settle(self) -> None:
        if not self._handed_over or self._acking is None:
            self._handed_over = []
            return
        now = time.monotonic()
        for event in self._handed_over:
            if isinstance(event, Arrived):
                self._acking.book.received(event, now)
            else:
                self._confirmed.setdefault(event.sessions[0].uid, []).extend(event.receipts)
                self._confirm_at = min(self._confirm_at, now + self._confirm_interval_s)
        self._handed_over = []

    def _confirm(self, uids: Iterable[str]) -> None:
        for uid in self._confirmed.keys() & uids:
            self._receipts.confirm(uid, self._confirmed[uid])
            del self._confirmed[uid]
        if not self._confirmed:
            self._confirm_at = math.inf

    # What comes.

    def _take(self, heard: Heard) -> None:
        if heard.data is None:
            self._stands(heard.channel)
            return
        kind, fields = wire.push(heard.data)
        if kind in _MESSAGES:
            if room := self._channels.room_at(heard.channel):
                self._deliver(room, *_MESSAGES[kind](fields))
        elif sessions := list(self._channels.inbox(heard.channel)):
            self._tell(kind, fields, sessions)

    def _deliver(self, room: Room, msgid: int, message: Message) -> None:
        arrived, behind = room.pushed(message, msgid)
        self._ready += arrived
        for session in behind:
            if (session, room.gid) not in self._postponed:
                self._behind[session, room.gid] = None

    def _tell(self, kind: bytes, fields: list[bytes], sessions: list[Session]) -> None:
        if kind == b"d":
            if not self._polls_receipts:
                self._ready.append(Told(Audience(sessions), tuple(wire.pushed_receipts(fields))))
            return
        gid = fields[0].decode()
        for session in sessions:
            if fields[1:] and gid in session.feeds:
                self._begin_again(session, gid)
            (self._follow if kind == b"j" else self._unfollow)(session, gid)

    def _stands(self, channel: str) -> None:
        """Ask only once a subscription stands: what happens from then on is pushed, so nothing falls in between."""
        if room := self._channels.room_at(channel):
            for session in room:
                room.fall_behind(session)
                self._behind[session, room.gid] = None
        for session in self._channels.inbox(channel):
            self._entering[session] = None

    def _catch_up(self) -> None:
        some = list(self._behind)[:_CATCH_UP_AT_ONCE]
        batch = [
            calls.pull(
                self._link.space, gid, [session.uid], after=session.feeds[gid].msgid, count=PAGE, most_bytes=PAGE_BYTES
            )
            for session, gid in some
        ]
        for (session, gid), answer in zip(some, self._link.gather(batch), strict=True):
            if isinstance(answer, (NotMember, UnknownGroup)):
                self._unfollow(session, gid)
                continue
            if isinstance(answer, ImError):
                raise answer
            try:
                self._pulled(session, session.feeds[gid], answer)
            except DatabaseUnavailable as error:
                self._postpone(session, gid, error)

    def _postpone(self, session: Session, gid: str, error: DatabaseUnavailable) -> None:
        """Let the others go on: only what is trimmed in Redis needs the database."""
        log.warning("what %r has missed in %r has to wait: %s", session.uid, gid, error)
        del self._behind[session, gid]
        self._postponed[session, gid] = time.monotonic() + _LONGEST_WAIT_S

    def _pulled(self, session: Session, feed: Feed, pulled: calls.Pulled) -> None:
        page = self._history.answering.run(reading.page(self._link.space, feed.gid, pulled, PAGE))
        new = feed.pulled(pulled, page.messages, full=page.more)
        if feed.msgid is None:
            self._begin_again(session, feed.gid)
            return
        if self._acking and feed.gid in session.resumed:  # now that nothing is known to have come before that place
            self._acking.book.resume(feed.gid, session, session.resumed.pop(feed.gid), time.monotonic())
        room = self._room(feed.gid)
        audience = room.audience(feed)
        self._ready += [Arrived(audience, message, msgids.pack(message.msgid)) for message in new]
        if not feed.behind:
            self._behind.pop((session, feed.gid), None)
            room.gather()

    # Groups and channels.

    def _enter(self, session: Session) -> None:
        """Listen to the user's inboxes, and to the groups that are known."""
        if self._listening(self._channels.open_inboxes, session):
            self._entering[session] = None  # they stand, or the news of it is on its way: both is early enough
        for gid in list(session.former):
            self._follow(session, gid)

    def _learn(self) -> None:
        """Ask what happened before an inbox stood: the groups that were joined and left, the receipts that wait."""
        for session in list(self._entering)[:_CATCH_UP_AT_ONCE]:
            gids = self._history.groups_of(session.uid)
            for gid in set(session.feeds).difference(gids):
                self._unfollow(session, gid)
            for gid in set(gids).difference(session.feeds):
                self._follow(session, gid)
            self._ready += self._pending_receipts(session)
            session.entered = True
            del self._entering[session]

    def _follow(self, session: Session, gid: str) -> None:
        """Let a session follow a group from its own place; one that does so already catches up."""
        room = self._channels.room(gid)
        if room is None:
            room = Room(gid)
            self._listening(self._channels.open_room, room)
        else:  # it stands, or the news of it is on its way: then all who follow are behind
            self._behind[session, gid] = None
        if gid not in session.feeds:
            # A group joined meanwhile is heard from the join on (0), even if another session has acked some already.
            fresh = Feed(gid, 0 if session.entered else None)
            room.enter(session, session.former.pop(gid, fresh))
        room.fall_behind(session)

    def _begin_again(self, session: Session, gid: str) -> None:
        """Go on from the offset: messages that Redis had lost are back, among those that were handed over since.

        What was handed over and not acked comes again, or its ack would pass over them.
        """
        room = self._room(gid)
        room.leave(session)
        room.enter(session, Feed(gid))
        session.resumed.pop(gid, None)
        if self._acking:
            self._acking.book.forget(gid, session)
        self._postponed.pop((session, gid), None)
        self._behind[session, gid] = None
        self._entering[session] = None  # receipts have changed, too
        events = (_without(event, session) if _is_of(event, gid) else event for event in self._ready)
        self._ready = [event for event in events if event.sessions]

    def _unfollow(self, session: Session, gid: str) -> None:
        room = self._room(gid)
        if gid in session.feeds:
            # Who comes back goes on from here: what they had is not handed over again.
            session.former[gid] = room.leave(session)
        session.resumed.pop(gid, None)
        self._behind.pop((session, gid), None)
        self._postponed.pop((session, gid), None)
        if not len(room):
            self._listening(self._channels.close_room, room)

    def _room(self, gid: str) -> Room:
        return self._channels.room(gid) or Room(gid)

    def _listening(self, change: Callable[[S], T], about: S) -> T | None:
        """Change what is listened to. Where that fails, the next `poll` opens another subscription for all of it."""
        try:
            return change(about)
        except RedisUnavailable as error:
            self._lost(error)
            return None

    # Keeping alive.

    def _heartbeat(self) -> None:
        sessions = list(self._sessions.values())
        answers = self._link.gather([self._beat(session, opens=False) for session in sessions])
        self._next_beat = time.monotonic() + self._settings.heartbeat_ms / 1000
        for session, answer in zip(sessions, answers, strict=True):
            if isinstance(answer, SessionExpired):
                self._link.run(self._beat(session, opens=True))
            elif isinstance(answer, ImError):
                raise answer
            if self._polls_receipts:
                self._ready += self._pending_receipts(session)

    def _beat(self, session: Session, *, opens: bool) -> calls.Call[int]:
        return session_calls.beat(self._link.space, session.uid, session.sid, self._settings.online_ms, opens=opens)

    def _pending_receipts(self, session: Session) -> list[Event]:
        receipts = tuple(self._receipts.pending(session.uid))
        return [Told(Audience([session]), receipts)] if receipts else []

    def _lost(self, error: RedisUnavailable) -> None:
        if self._channels.close() or self._wait_s == _FIRST_WAIT_S:
            log.warning("%s; trying again", error)
        self._next_beat = 0.0
        self._retry_at = time.monotonic() + self._wait_s
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)


_MESSAGES: dict[bytes, Callable[[list[bytes]], tuple[int, Message]]] = {
    b"m": wire.pushed_message,
    b"r": wire.pushed_recall,
}


def _is_of(event: Event, gid: str) -> bool:
    return isinstance(event, Arrived) and event.message.gid == gid


def _without(event: Event, session: Session) -> Event:
    return event._replace(audience=event.audience.without([session]))
