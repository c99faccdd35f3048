"""The core of a gateway: the live sessions of many users. No I/O.

A driver performs the effects of its operations (`imcore.operations.effects`), passes on what the subscription brings,
and takes events. `imcore.gateway.gateway` is a synchronous driver; an asyncio driver needs no other core. Calls must
not overlap. Before `step` and `end` the driver passes on all that has come, or an ack could pass over an earlier
message:

    core.confirm()                  # the caller has received the events that were taken last
    core.handle(pubsub_events)
    perform(core.step(), ...)       # then wait for pubsub events, until core.due() at most
    events = core.deliveries.take()

Each session gets every message of its user's groups once and in order: first what it has missed, then what is pushed.
After a gap in the seqs or a lost subscription it pulls, and a session that has expired is opened again.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from imcore.errors import ConfigurationError, ImError, InvalidInput, RedisUnavailable, TryAgain
from imcore.gateway.acks import AckBuffer, AckSender
from imcore.gateway.catch_up import CatchUp
from imcore.gateway.channels import ChannelOwner, Channels, Inbox, Resubscription
from imcore.gateway.fanout import DeliveryQueue, Event, GroupSubscribers, NewMessage, ResumePoint, Session
from imcore.gateway.scheduler import Scheduler
from imcore.gateway.sessions import Heartbeat, ReceiptConfirmation, ReceiptDelivery
from imcore.model.limits import check_count, check_seconds
from imcore.model.values import Receipt
from imcore.operations import queries
from imcore.operations.effects import Effects, call_each, raised
from imcore.settings import Settings
from imcore.streams import wire
from imcore.streams.calls import group_calls
from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace
from imcore.streams.wire import PONG, PUSHED, SUBSCRIBED, UNSUBSCRIBED, PubSubEvent
from imcore.util.backoff import Clock, ThrottledLog

AckMode = Literal["auto", "client", "off"]
ReceiptMode = Literal["push", "poll"]


class SessionOptions(TypedDict, total=False):
    """The fields of `GatewayOptions`, as keyword arguments."""

    ack_every: int
    ack_interval_s: float
    acks: AckMode
    receipts: ReceiptMode


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How a gateway acks, and how it learns of receipts.

    `ack_every` messages of a group or `ack_interval_s` seconds, whichever is first, make one ack. `acks` says what
    counts as received: "auto" all that a `poll` has returned, once the next one is called; "client" only what
    `received` and `confirm_receipts` are given; "off" nothing, so nothing is acked or confirmed. `receipts` says how
    senders learn who has read: "push" as it happens, "poll" with each heartbeat. Raise InvalidInput for any other
    value.
    """

    ack_every: int = 10
    ack_interval_s: float = 1.0
    acks: AckMode = "auto"
    receipts: ReceiptMode = "push"

    def __post_init__(self) -> None:
        check_count(self.ack_every, "ack_every")
        for name, choices in (("acks", get_args(AckMode)), ("receipts", get_args(ReceiptMode))):
            if (value := getattr(self, name)) not in choices:
                raise InvalidInput(f"{name} must be one of {', '.join(choices)}; it is {value!r}")
        check_seconds(self.ack_interval_s, "ack_interval_s")


class Core:
    """Sessions that share a subscription. `Gateway` documents the operations; msgids are packed here."""

    def __init__(self, space: Keyspace, settings: Settings, options: GatewayOptions, clock: Clock) -> None:
        self._space = space
        self._options = options
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self.deliveries = DeliveryQueue()
        self._channels = Channels(space)
        self._log = log = ThrottledLog(clock)
        self._acks = AckSender(space, AckBuffer(options.ack_every, options.ack_interval_s), log, clock)
        self._confirmation = ReceiptConfirmation(space, options.ack_interval_s, log, clock)
        self._receipts = ReceiptDelivery(space, self.deliveries, log, clock)
        self._catch_up = CatchUp(space, self._channels, self.deliveries, self._acks.buffer, self._receipts, log, clock)
        polls = options.receipts == "poll"
        self._heartbeat = Heartbeat(space, settings, self._sessions, self._receipts, polls, log, clock)
        every_s, on_open = self._heartbeat.every_s, self._receipts.forget_versions
        self._resubscription = Resubscription(self._channels, every_s, on_open, clock)
        # Resubscription is last: channels that the others open are then subscribed in the same step.
        self._scheduler = Scheduler(
            [
                *(self._heartbeat, self._acks, self._confirmation),
                *(self._catch_up.to_resync, self._catch_up.behind, self._receipts, self._resubscription),
            ],
            log,
            clock,
        )

    # Sessions.

    @property
    def sessions(self) -> Collection[Session]:
        return self._sessions.values()

    def open(self, uid: str, after: Mapping[str, int], *, since_join: bool) -> Effects[Session]:
        """Begin a session. See `Gateway.open`; msgids are packed."""
        session = Session(uid)
        gids = (yield from queries.groups_of(self._space, [uid]))[uid]
        positions = yield from self._open_at_server(session, gids)
        for gid, offset, joined in zip(gids, positions[::2], positions[1::2], strict=True):
            if isinstance(offset, ImError) or isinstance(joined, ImError):  # something is wrong in that group alone
                session.resume_points[gid] = ResumePoint(after[gid]) if gid in after else None
            elif offset is not None and joined is not None:  # else the user has left meanwhile
                begin = joined if since_join else offset
                session.resume_points[gid] = ResumePoint(_begin(after.get(gid), offset, begin))
        self._sessions[session.sid] = session
        if self._channels.open_inbox(session).is_subscribed:
            self._catch_up.to_resync.add([session])
        for gid in list(session.resume_points):
            self._catch_up.follow(session, gid)
        return session

    def _open_at_server(self, session: Session, gids: Sequence[str]) -> Effects[list[int | ImError | None]]:
        """Open a session; return of each group the user's offset, and after which message they joined."""
        asked = [call for gid in gids for call in group_calls.offset_and_join(self._space, gid, session.uid)]
        calls: list[Call[int | None]] = [*asked, self._heartbeat.call(session, opens=True)]
        *positions, opened = yield from call_each(calls)
        raised(opened)
        for position in positions:
            if isinstance(position, TryAgain | ConfigurationError):
                raise position
        return positions

    def end(self, sessions: Sequence[Session]) -> Effects[None]:
        ending = [session for session in sessions if session.sid in self._sessions]
        if self._options.acks == "auto":
            self._receive(self.deliveries.in_flight_of(ending))
        yield from self._acks.flush(ending)
        yield from self._confirmation.flush({session.uid for session in ending})
        yield from self._heartbeat.end(ending)
        self._acks.buffer.forget(ending)  # messages whose acks were refused in a group come again
        self._forget(ending)

    def drop(self, sessions: Sequence[Session]) -> None:
        ending = [session for session in sessions if session.sid in self._sessions]
        if self._options.acks == "auto":
            self._acks.buffer.forget(ending)
        self._heartbeat.end_soon(ending)
        self._forget(ending)

    def _forget(self, ending: Sequence[Session]) -> None:
        self.deliveries.end(ending)
        for session in ending:
            del self._sessions[session.sid]
            self._channels.close_inbox(session)
            self._catch_up.to_resync.discard(session)
            self._receipts.forget(session)
            self._heartbeat.forget(session)
            for gid in list(session.cursors):
                self._catch_up.unfollow(session, gid)

    def abandon(self) -> Effects[None]:
        """End no session; only read the answers that are still to come."""
        yield from self._acks.abandon()

    # What clients have received.

    def received(self, session: Session, gid: str, msgid: int) -> None:
        cursor = session.cursors.get(gid)
        newest = ResumePoint(cursor.msgid or 0, cursor.seq) if cursor else session.resume_points.get(gid)
        if session.sid in self._sessions and newest and msgid <= newest.msgid:
            message = newest if msgid == newest.msgid else ResumePoint(msgid)
            self._acks.buffer.received(gid, session.as_recipients, message, self._clock())

    def confirm_receipts(self, session: Session, receipts: Iterable[Receipt]) -> None:
        if session.sid in self._sessions:
            self._confirmation.received(session.uid, receipts)

    def confirm(self) -> None:
        """Note that the caller has received the events that were taken last."""
        confirmed = self.deliveries.confirm()
        if self._options.acks == "auto":
            self._receive(confirmed)

    def _receive(self, events: Iterable[Event]) -> None:
        now = self._clock()
        for event in events:
            if isinstance(event, NewMessage):
                message = event.message
                newest = ResumePoint(event.msgid, message.seq)
                self._acks.buffer.received(message.gid, event.recipients, newest, now)
            else:
                self._confirmation.received(event.sessions[0].uid, event.receipts)

    # Tasks, and what comes on the subscription.

    def due(self) -> float:
        return self._scheduler.due()

    def step(self) -> Effects[None]:
        yield from self._scheduler.step()

    def subscription_lost(self, error: RedisUnavailable) -> None:
        """Open another subscription in time, and pull what was missed."""
        if self._resubscription.is_open:  # a node that gives its channels away sends an event for each
            self._resubscription.lost()
            self._log.note(error)
            self._heartbeat.beat_now()

    def handle(self, pubsub_events: Iterable[PubSubEvent]) -> None:
        for kind, channel, data in pubsub_events:
            if kind == PUSHED:
                self._pushed(channel, data)
            elif kind == SUBSCRIBED:
                # Pull only now: messages are pushed from this moment on, so none falls in between.
                owner = self._channels.added(channel)
                if owner:
                    self._fetch_missed(owner)
            elif kind == UNSUBSCRIBED:
                if not self._channels.dropped(channel):
                    self.subscription_lost(
                        RedisUnavailable("a partition has been given to another node: looking where it is")
                    )
            elif kind == PONG:
                self._resubscription.pong()

    def _fetch_missed(self, owner: ChannelOwner) -> None:
        if isinstance(owner, GroupSubscribers):
            self._catch_up.fall_behind(owner)
        else:
            self._catch_up.to_resync.add(owner.sessions)

    def _pushed(self, channel: str, data: bytes) -> None:
        owner = self._channels.owners.get(channel)
        try:
            self._handle_push(owner, *wire.push(data))
        except (ArithmeticError, LookupError, ValueError) as error:
            # Somebody has published this by hand, perhaps in place of a message: so fetch what may be missed.
            self._log.note(ImError(f"what came on {channel} cannot be read ({error!r})"), "%s: asking for it")
            if owner and owner.is_subscribed:  # else all is fetched once it is
                self._fetch_missed(owner)

    def _handle_push(self, owner: ChannelOwner | None, kind: bytes, fields: list[bytes]) -> None:
        if isinstance(owner, GroupSubscribers) and kind in _MESSAGES:
            self._catch_up.pushed(owner, *_MESSAGES[kind](fields))
        elif isinstance(owner, Inbox) and kind == b"d":
            if self._options.receipts == "push":
                self._receipts.pushed(owner, wire.pushed_receipts(fields))
        elif isinstance(owner, Inbox) and kind in _MEMBERSHIPS:
            self._membership_changed(owner, kind, fields)
        elif owner:
            raise ValueError(f"a push of the kind {kind!r}")

    def _membership_changed(self, inbox: Inbox, kind: bytes, fields: list[bytes]) -> None:
        gid = wire.text(fields[0])
        for session in list(inbox.sessions):
            if fields[1:]:
                self._catch_up.restart(session, gid)
            (self._catch_up.follow if kind == b"j" else self._catch_up.unfollow)(session, gid)


def _begin(known: int | None, offset: int, otherwise: int) -> int:
    """Return after which msgid a group begins: the one that the client knows, unless less is acked."""
    return otherwise if known is None else min(known, offset)


_MEMBERSHIPS = {b"j", b"l"}
_MESSAGES = {b"m": wire.pushed_message, b"r": wire.pushed_recall}
