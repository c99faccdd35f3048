"""The core of a gateway: the live sessions of many users. No I/O.

A driver performs the effects of its operations (`imcore.operations.effects`), passes on what the subscription brings,
and takes events. `imcore.gateway.gateway` is a synchronous driver; an asyncio driver needs no other core. Calls must
not overlap. Before `step` and `end` the driver passes on all that has come, or an ack could pass over an earlier
message:

    core.confirm()                  # the caller has received the events that were taken last
    core.handle(pubsub_events)
    perform(core.step(), ...)       # then wait for pubsub events, until core.due() at most
    events = core.take()            # core.has_events() says whether there are any

`received`, `confirm_receipts`, `pause`, `resume` and `requeue` may come at any time, also while effects of a step are
being performed, if only one thread is in the core at a time.

Each session gets every message of its user's groups once and in order: first what it has missed, then what is pushed.
After a gap in the seqs or a lost subscription it pulls, and a session that has expired is opened again.
"""

from collections.abc import Collection, Iterable, Sequence

from imcore import msgid as msgids
from imcore.errors import ImError, InvalidInput, RedisUnavailable, TryAgain
from imcore.gateway.ack_sender import ack_sender
from imcore.gateway.catch_up import CatchUp
from imcore.gateway.channels import ChannelOwner, Channels, Inbox, Resubscription
from imcore.gateway.delivery_queue import DeliveryQueue
from imcore.gateway.fanout import Event, NewMessage, ReceiptsChanged, Session
from imcore.gateway.opening import Opening
from imcore.gateway.options import GatewayOptions
from imcore.gateway.own_positions import OwnPositions
from imcore.gateway.request import SessionRequest
from imcore.gateway.scheduler import Scheduler
from imcore.gateway.sessions import Heartbeat, ReceiptConfirmation, ReceiptDelivery
from imcore.gateway.subscribers import GroupSubscribers
from imcore.model.values import Receipt
from imcore.operations.effects import Effects
from imcore.settings import Settings
from imcore.streams import wire
from imcore.streams.keys import Keyspace
from imcore.streams.wire import PONG, PUSHED, SUBSCRIBED, UNSUBSCRIBED, PubSubEvent
from imcore.util.backoff import Clock, ThrottledLog


class Core:
    """Sessions that share a subscription. `Gateway` documents the operations; msgids are packed here."""

    def __init__(self, space: Keyspace, settings: Settings, options: GatewayOptions, clock: Clock) -> None:
        self._space = space
        self._options = options
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._to_switch: dict[Session, None] = {}
        """Sessions that were paused or resumed since the last step."""
        self.deliveries = DeliveryQueue()
        self._channels = Channels(space)
        self._log = log = ThrottledLog(clock)
        self._acks = ack_sender(space, options, log, clock)
        self._public_acks, self._private_acks = self._acks.buffers["read"], self._acks.buffers["private"]
        self._confirmation = ReceiptConfirmation(space, options.ack_interval_s, log, clock)
        self._receipts = ReceiptDelivery(space, self.deliveries, log, clock)
        self._positions = OwnPositions(space, self.deliveries, log, clock, acks_all=options.acks == "auto")
        self._catch_up = CatchUp(
            *(
                space,
                self._channels,
                self.deliveries,
                self._acks.forget,
                self._rewound,
                self._receipts,
                self._positions,
            ),
            *(options.page_bytes, log, clock),
        )
        polls = options.receipts == "poll"
        self._heartbeat = Heartbeat(space, settings, self._sessions, self._receipts, polls, log, clock, self._erased)
        self._opening = Opening(space, self._sessions, self._heartbeat, self._positions, self._catch_up)
        every_s, on_open = self._heartbeat.every_s, self._receipts.forget_versions
        self._resubscription = Resubscription(space, self._channels, every_s, on_open, clock)
        # Resubscription is last: channels that the others open are then subscribed in the same step.
        self._scheduler = Scheduler(
            [
                *(self._heartbeat, self._acks, self._confirmation),
                *(self._catch_up.to_resync, self._catch_up.behind, self._receipts, self._positions),
                self._resubscription,
            ],
            log,
            clock,
        )

    # Sessions.

    @property
    def ack_calls(self) -> int:
        return self._acks.calls

    @property
    def sessions(self) -> Collection[Session]:
        return self._sessions.values()

    def open(self, request: SessionRequest, part: Session | None = None) -> Effects[Session]:
        """Begin a session, or the part of one that this core has. See `Gateway.open`."""
        return self._opening.open(request, part or Session(request.uid, request.most, request.tag))

    def pause(self, session: Session) -> None:
        self._set_paused(session, True)

    def resume(self, session: Session) -> None:
        self._set_paused(session, False)

    def _set_paused(self, session: Session, is_paused: bool) -> None:
        if session.sid in self._sessions and session.is_paused != is_paused:
            session.is_paused = is_paused
            self._to_switch[session] = None

    def _switch(self) -> None:
        """Let sessions follow nothing, or again, that were paused or resumed since."""
        while self._to_switch:
            session, _ = self._to_switch.popitem()
            if session.is_paused != session.is_held:
                (self._catch_up.pause if session.is_paused else self._catch_up.resume)(session)

    def end(self, sessions: Sequence[Session]) -> Effects[TryAgain | None]:
        """End sessions here in any case. Return why their acks or ends have to wait: the tasks deliver them later."""
        ending = [session for session in sessions if session.sid in self._sessions]
        if self._options.acks == "auto":
            self._receive(self.deliveries.in_flight_of(ending))
        self._heartbeat.end_soon(ending)
        try:
            if not self._scheduler.is_waiting:
                return (yield from self.flush(ending))
        finally:
            self._forget(ending)
        return RedisUnavailable("Redis did not answer a moment ago")

    def close(self) -> Effects[TryAgain | None]:
        """End all sessions, and those whose end had to wait. Return why that could not be done."""
        yield from self.end(list(self._sessions.values()))
        return (yield from self.flush(None))

    def flush(self, sessions: Collection[Session] | None) -> Effects[TryAgain | None]:
        """Send the acks and confirmations of these sessions or of all, and all ends. Return the first refusal."""
        uids = None if sessions is None else {session.uid for session in sessions}
        parts = (self._acks.flush(sessions), self._confirmation.flush(uids), self._heartbeat.flush())
        refusal: TryAgain | None = None
        for part in parts:
            try:
                yield from part
            except TryAgain as error:
                refusal = refusal or error
                if isinstance(error, RedisUnavailable):
                    break
        return refusal

    def drop(self, sessions: Sequence[Session]) -> None:
        ending = [session for session in sessions if session.sid in self._sessions]
        if self._options.acks == "auto":
            self._acks.forget(ending)
        self._heartbeat.end_soon(ending)
        self._forget(ending)

    def holds(self, session: Session) -> bool:
        """Return whether `flush` has something to send of a session, or to wait for."""
        return self._acks.holds(session) or self._confirmation.holds(session.uid)

    def _rewound(self, session: Session, gid: str, msgid: int) -> None:
        """Ack again up to a message (packed): its client has acked a later one, which the server does not have."""
        if session.known_offsets.get(gid, msgids.NONE) > msgid:
            session.known_offsets[gid] = msgid
            if msgid and self._options.acks == "client":
                self._public_acks.received(gid, session.as_recipients, msgid, None, self._clock())

    def _erased(self, session: Session) -> None:
        """End a session whose user was erased. There is nothing to end at the server, and nothing to ack."""
        self._acks.forget([session])
        self._forget([session])
        self.deliveries.told_end(session)

    def _forget(self, ending: Sequence[Session]) -> None:
        self.deliveries.end(ending)
        for session in ending:
            del self._sessions[session.sid]
            self._to_switch.pop(session, None)
            self._channels.close_inbox(session)
            self._catch_up.to_resync.discard(session)
            self._receipts.forget(session)
            self._positions.discard(session)
            self._heartbeat.forget(session)
            for gid in list(session.cursors):
                self._catch_up.unfollow(session, gid)

    def abandon(self) -> Effects[None]:
        """End no session; only read the answers that are still to come."""
        yield from self._acks.abandon()

    # What clients have received.

    def received(self, session: Session, gid: str, msgid: int, private: bool = False) -> bool:
        """Return whether `due` may be earlier than before."""
        if session.sid not in self._sessions:
            return False
        seq = None  # the server looks it up
        cursor = session.cursors.get(gid)
        if cursor and cursor.msgid is not None and cursor.msgid >= msgid:
            seq = cursor.seq if cursor.msgid == msgid else None
            if not private and session.known_offsets.get(gid, 0) < msgid:
                session.known_offsets[gid] = msgid
        buffer = self._private_acks if private else self._public_acks
        return buffer.received(gid, session.as_recipients, msgid, seq, self._clock())

    def delivered(self, session: Session, gid: str, msgid: int) -> bool:
        """Return whether `due` may be earlier than before."""
        since = session.whole_since(gid, msgid) if session.sid in self._sessions else None
        if since is None:
            return False
        cursor = session.cursors.get(gid)
        seq = cursor.seq if cursor and cursor.msgid == msgid else None
        delivered = self._acks.buffers["delivered"].received
        return delivered(gid, session.as_recipients, msgid, seq, self._clock(), since)

    def fetched(self, session: Session, gid: str, after: int, until: int) -> None:
        """Note that a client has all messages after a position up to another one (packed)."""
        if after < session.whole_after.get(gid, 0) <= until:
            session.whole_after[gid] = after

    def confirm_receipts(self, session: Session, receipts: Iterable[Receipt]) -> None:
        if session.sid in self._sessions:
            self._confirmation.received(session.uid, receipts)

    def confirm(self) -> None:
        """Note that the caller has received the events that were taken last."""
        confirmed = self.deliveries.confirm()
        if self._options.acks == "auto":
            self._receive(confirmed)

    def _receive(self, events: Iterable[Event]) -> None:
        now, buffer = self._clock(), self._public_acks
        for event in events:
            if isinstance(event, NewMessage):
                message = event.message
                buffer.received(message.gid, event.recipients, event.msgid, message.seq, now)
            elif isinstance(event, ReceiptsChanged):
                self._confirmation.received(event.sessions[0].uid, event.receipts)

    # Tasks, and what comes on the subscription.

    def due(self) -> float:
        return 0.0 if self._to_switch else self._scheduler.due()

    def step(self) -> Effects[None]:
        self._switch()
        yield from self._scheduler.step()

    def has_events(self) -> bool:
        return bool(self.deliveries.ready)

    def take(self) -> list[Event]:
        """Return the events that are ready, in order: they are in flight now."""
        self._switch()
        return self.deliveries.take()

    def requeue(self, count: int) -> None:
        """Make the last `count` events in flight not received: they come again. Raise InvalidInput."""
        if not 0 <= count <= self.deliveries.in_flight:
            raise InvalidInput(f"{count} events cannot be taken back: {self.deliveries.in_flight} were returned")
        if count:
            self.deliveries.requeue(count)

    def subscription_lost(self, error: ImError) -> None:
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
        if isinstance(owner, GroupSubscribers) and kind in wire.MESSAGE_KINDS:
            for message in wire.pushed_messages(kind, fields):
                self._catch_up.pushed(owner, message)
        elif isinstance(owner, Inbox):
            self._handle_notice(owner, kind, fields)
        elif owner:
            raise ValueError(f"a push of the kind {kind!r}")

    def _handle_notice(self, inbox: Inbox, kind: bytes, fields: list[bytes]) -> None:
        if kind == b"d":
            if self._options.receipts == "push":
                self._receipts.pushed(inbox, wire.pushed_receipts(fields))
        elif kind == b"p":
            gid, offset, is_bookmark = wire.pushed_position(fields)
            self._positions.pushed(inbox, gid, offset, is_bookmark=is_bookmark)
        elif kind in _MEMBERSHIPS:
            self._membership_changed(inbox, kind, fields)
        else:
            raise ValueError(f"a notice of the kind {kind!r}")

    def _membership_changed(self, inbox: Inbox, kind: bytes, fields: list[bytes]) -> None:
        gid = wire.text(fields[0])
        for session in list(inbox.sessions):
            if fields[1:]:
                self._catch_up.restart(session, gid)
            (self._catch_up.joined if kind == b"j" else self._catch_up.left)(session, gid)


_MEMBERSHIPS = {b"j", b"l"}
