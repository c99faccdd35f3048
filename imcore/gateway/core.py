"""What decides in a gateway: the live sessions of many users, without any I/O.

Whoever drives it answers its questions (`imcore.operations.effects`), tells it what is heard, and asks for its events. The driver
`imcore.gateway.gateway` does so synchronously; an asyncio one needs no other core. Calls must not overlap, and what has
come is to be heard before `go_on` and `end`, or an ack could pass over a message that came before it:

    core.settle()                 # the events that were taken are received
    core.hear(what has come)
    answered(core.go_on(), ...)   # then wait, but not beyond core.due(), for something to hear
    events = core.take()

Each session is handed every message of its user's groups once and in order: first what was missed, then what is pushed;
a hole in the seqs and a lost subscription are mended by pulling, and an expired session is opened again.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from imcore.errors import ConfigurationError, ImError, RedisUnavailable, TryAgain
from imcore.gateway.ack_buffer import AckBuffer
from imcore.gateway.ack_sender import AckSender
from imcore.gateway.catch_up import CatchUp
from imcore.gateway.channels import Channels, Inbox
from imcore.gateway.cursor import ResumePoint
from imcore.gateway.delay_queue import DelayQueue
from imcore.gateway.delivery_queue import DeliveryQueue
from imcore.gateway.fanout import Event, GroupSubscribers, NewMessage, Session
from imcore.gateway.heartbeat import Heartbeat
from imcore.gateway.receipt_confirmation import ReceiptConfirmation
from imcore.gateway.receipt_delivery import ReceiptDelivery
from imcore.gateway.resubscribe import Resubscription
from imcore.gateway.resync import Resync
from imcore.gateway.scheduler import Scheduler
from imcore.model.values import Receipt
from imcore.operations import queries
from imcore.operations.effects import Effects, call_each
from imcore.settings import Settings
from imcore.streams import wire
from imcore.streams.calls import group_calls
from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace
from imcore.streams.wire import PONG, PUSHED, SUBSCRIBED, UNSUBSCRIBED, PubSubEvent
from imcore.util.backoff import Clock, ThrottledLog


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How sessions ack and are told. See `Gateway`."""

    ack_every: int = 10
    ack_interval_s: float = 1.0
    acks: Literal["auto", "client", "off"] = "auto"
    receipts: Literal["push", "poll"] = "push"


class Core:
    """Sessions that share a subscription."""

    def __init__(self, space: Keyspace, settings: Settings, manner: GatewayOptions, clock: Clock) -> None:
        """`clock` tells the time in seconds, and never goes back."""
        self._space = space
        self._manner = manner
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._handover = DeliveryQueue()
        self._to_enter: DelayQueue[Session] = DelayQueue()
        self._channels = Channels(space)
        self._trouble = trouble = ThrottledLog(clock)
        book = AckBuffer(manner.ack_every, manner.ack_interval_s)
        self._acking = AckSender(space, book, trouble, clock)
        self._confirming = ReceiptConfirmation(space, manner.ack_interval_s, trouble, clock)
        self._telling = ReceiptDelivery(space, self._handover, trouble, clock)
        self._following = CatchUp(space, self._channels, self._handover, book, self._to_enter, trouble, clock)
        self._beating = Heartbeat(space, settings, self._sessions, self._telling, trouble, clock)
        self._beating.polls_receipts = manner.receipts == "poll"
        self._listening = Resubscription(
            self._channels, settings.heartbeat_ms / 1000, self._telling.forget_versions, clock
        )
        entering = Resync(space, self._to_enter, self._following, self._telling, trouble, clock)
        # The channels last: what the others follow by then goes out at once.
        self._parts = Scheduler(
            [
                *(self._beating, self._acking, self._confirming),
                *(entering, self._following, self._telling, self._listening),
            ],
            trouble,
            clock,
        )

    # Sessions.

    @property
    def sessions(self) -> Collection[Session]:
        """All that were opened and not ended."""
        return self._sessions.values()

    def open(self, uid: str, places: Mapping[str, int], *, since_join: bool) -> Effects[Session]:
        """Begin a session. See `Gateway.open`; a place is a packed msgid."""
        session = Session(uid)
        gids = (yield from queries.groups_of(self._space, [uid]))[uid]
        standing = [call for gid in gids for call in group_calls.offset_and_join(self._space, gid, uid)]
        batch: list[Call[int | None]] = [*standing, self._beating.beat(session, opens=True)]
        *found, beaten = yield from call_each(batch)
        if isinstance(beaten, ImError):
            raise beaten
        for answer in found:
            if isinstance(answer, TryAgain | ConfigurationError):
                raise answer
        for gid, offset, joined in zip(gids, found[::2], found[1::2], strict=True):
            if isinstance(offset, ImError) or isinstance(joined, ImError):  # something is wrong in that group alone
                session.former[gid] = ResumePoint(places[gid]) if gid in places else None
            elif offset is not None and joined is not None:  # who has not left meanwhile
                otherwise = joined if since_join else offset
                session.former[gid] = ResumePoint(min(places[gid], offset) if gid in places else otherwise)
        self._sessions[session.sid] = session
        if self._channels.open_inbox(session).stands:
            self._to_enter.add([session])
        for gid in list(session.former):
            self._following.follow(session, gid)
        return session

    def end(self, sessions: Sequence[Session]) -> Effects[None]:
        """End sessions in order. See `Gateway.end`."""
        ending = [session for session in sessions if session.sid in self._sessions]
        if self._manner.acks == "auto":
            self._receive(self._handover.settle_of(ending))
        yield from self._acking.send_of(ending)
        yield from self._confirming.send_of({session.uid for session in ending})
        yield from self._beating.bye(ending)
        self._acking.book.forget(ending)  # what was refused in a group comes again
        self._forget(ending)

    def give_up(self, sessions: Sequence[Session]) -> None:
        """End sessions whose clients are gone. See `Gateway.end`, not clean."""
        ending = [session for session in sessions if session.sid in self._sessions]
        if self._manner.acks == "auto":
            self._acking.book.forget(ending)
        self._beating.give_up(ending)
        self._forget(ending)

    def _forget(self, ending: Sequence[Session]) -> None:
        self._handover.end(ending)
        for session in ending:
            del self._sessions[session.sid]
            self._channels.close_inbox(session)
            self._to_enter.discard(session)
            self._telling.forget(session)
            self._beating.forget(session)
            for gid in list(session.feeds):
                self._following.unfollow(session, gid)

    def abandon(self) -> Effects[None]:
        """End nothing in order: only give back what still waits for answers."""
        yield from self._acking.abandon()

    # What clients say.

    def received(self, session: Session, gid: str, msgid: int) -> None:
        """A client has received a message (packed msgid). See `Gateway.received`."""
        feed = session.feeds.get(gid)
        place = session.former.get(gid) if feed is None else ResumePoint(feed.msgid or 0, feed.seq)
        if session.sid in self._sessions and place and msgid <= place.msgid:
            received = place if msgid == place.msgid else ResumePoint(msgid)
            self._acking.book.received(gid, session.alone, received, self._clock())

    def confirm_receipts(self, session: Session, receipts: Iterable[Receipt]) -> None:
        """A client knows what its user was told. See `Gateway.confirm_receipts`."""
        if session.sid in self._sessions:
            self._confirming.known(session.uid, receipts)

    def settle(self) -> None:
        """Note that the events which were taken last are received."""
        settled = self._handover.settle()
        if self._manner.acks == "auto":
            self._receive(settled)

    def _receive(self, events: Iterable[Event]) -> None:
        now = self._clock()
        for event in events:
            if isinstance(event, NewMessage):
                message = event.message
                self._acking.book.received(message.gid, event.audience, ResumePoint(event.msgid, message.seq), now)
            else:
                self._confirming.known(event.sessions[0].uid, event.receipts)

    # Events.

    @property
    def is_ready(self) -> bool:
        """Whether there are events to take."""
        return bool(self._handover.ready)

    def take(self) -> list[Event]:
        """Return the events that are ready, in order."""
        return self._handover.take()

    @property
    def taken(self) -> int:
        """How many events were taken last and are not settled."""
        return self._handover.count_in_hand

    def give_back(self, count: int) -> None:
        """Take back the last so many events that were taken: they are ready again."""
        self._handover.give_back(count)

    # Going on.

    def due(self) -> float:
        """Return when to go on, if nothing is heard before."""
        return self._parts.due()

    def go_on(self) -> Effects[None]:
        """Do what is due. What Redis or the database cannot do now is done later."""
        yield from self._parts.go_on()

    def lost(self, error: RedisUnavailable) -> None:
        """The subscription has ended. Another one is opened in time, and what was missed is pulled."""
        if self._listening.is_open:  # a node that gives channels away says so of each
            self._listening.lost()
            self._trouble.note(error)
            self._beating.soon()

    def hear(self, heard: Iterable[PubSubEvent]) -> None:
        """Take what came on the subscription."""
        for kind, channel, data in heard:
            if kind == PUSHED:
                self._pushed(channel, data)
            elif kind == SUBSCRIBED:
                self._added(channel)
            elif kind == UNSUBSCRIBED:
                self._dropped(channel)
            elif kind == PONG:
                self._listening.answered()

    def _added(self, channel: str) -> None:
        """Ask only once a channel stands: what happens from then on is pushed, so nothing falls in between."""
        of = self._channels.added(channel)
        if of:
            self._ask_again(of)

    def _ask_again(self, of: Inbox | GroupSubscribers) -> None:
        """Ask for what was not pushed."""
        if isinstance(of, GroupSubscribers):
            self._following.fall_behind(of)
        else:
            self._to_enter.add(of.sessions)

    def _dropped(self, channel: str) -> None:
        if not self._channels.dropped(channel):
            self.lost(RedisUnavailable("a partition has been given to another node: looking where it is"))

    def _pushed(self, channel: str, data: bytes) -> None:
        of = self._channels.at(channel)
        try:
            self._take_push(of, *wire.push(data))
        except (ArithmeticError, LookupError, ValueError) as error:
            # Somebody has published it by hand: what was to come may have been lost, and is asked for.
            self._trouble.note(ImError(f"what came on {channel} cannot be read ({error!r})"), "%s: asking for it")
            if of and of.stands:  # else all is asked for once it does
                self._ask_again(of)

    def _take_push(self, of: Inbox | GroupSubscribers | None, kind: bytes, fields: list[bytes]) -> None:
        if isinstance(of, GroupSubscribers) and kind in _MESSAGES:
            self._following.pushed(of, *_MESSAGES[kind](fields))
        elif isinstance(of, Inbox) and kind == b"d":
            if self._manner.receipts == "push":
                self._telling.pushed(of, wire.pushed_receipts(fields))
        elif isinstance(of, Inbox) and kind in _MEMBERSHIPS:
            self._membership(kind, fields, of)
        elif of:
            raise ValueError(f"a push of the kind {kind!r}")

    def _membership(self, kind: bytes, fields: list[bytes], inbox: Inbox) -> None:
        gid = wire.text(fields[0])
        for session in list(inbox.sessions):
            if fields[1:]:
                self._following.begin_again(session, gid)
            (self._following.follow if kind == b"j" else self._following.unfollow)(session, gid)


_MEMBERSHIPS = {b"j", b"l"}
_MESSAGES = {b"m": wire.pushed_message, b"r": wire.pushed_recall}
