"""The channels of a gateway, its users' inboxes and their groups, and the subscription that carries them. No I/O."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from imcore.errors import RedisUnavailable
from imcore.gateway.fanout import Session
from imcore.gateway.subscribers import GroupSubscribers
from imcore.operations.effects import ChangeChannels, Effects, OpenSubscription, PingSubscription, call_each
from imcore.streams.calls import session_calls
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Backoff, Clock

UNCONFIRMED_CHANGES = 5000
"""The most changes that await confirmation: a server keeps little for a subscriber that does not read."""


@dataclass(eq=False, slots=True)
class Inbox:
    """The channels of a user, one of each served partition, of which `missing` are not subscribed yet."""

    uid: str
    missing: int
    sessions: dict[Session, None] = field(default_factory=dict)

    @property
    def is_subscribed(self) -> bool:
        return self.missing == 0


ChannelOwner = Inbox | GroupSubscribers


class Channels:
    """The channels that sessions here need, and the changes that the server has to make for them."""

    def __init__(self, space: Keyspace) -> None:
        self._space = space
        self._inboxes: dict[str, Inbox] = {}
        self.owners: dict[str, ChannelOwner] = {}
        self.groups: dict[str, GroupSubscribers] = {}
        self._to_drop: dict[str, None] = {}
        self._to_add: dict[str, None] = {}
        self._dropping: Counter[str] = Counter()
        self._adding: Counter[str] = Counter()

    def open_group(self, gid: str) -> GroupSubscribers:
        """Return the subscribers of a group; subscribe to it unless that was done."""
        subscribers = self.groups.get(gid)
        if subscribers is None:
            subscribers = self.groups[gid] = GroupSubscribers(gid)
            self._add(self._space.group(gid).channel, subscribers)
        return subscribers

    def close_group(self, gid: str) -> None:
        del self.groups[gid]
        self._drop(self._space.group(gid).channel)

    def open_inbox(self, session: Session) -> Inbox:
        inbox = self._inboxes.get(session.uid)
        if inbox is None:
            channels = self._space.inboxes(session.uid)
            inbox = self._inboxes[session.uid] = Inbox(session.uid, len(channels))
            for channel in channels:
                self._add(channel, inbox)
        inbox.sessions[session] = None
        return inbox

    def close_inbox(self, session: Session) -> None:
        """Remove a session from its user's inbox; unsubscribe after the last one."""
        inbox = self._inboxes[session.uid]
        del inbox.sessions[session]
        if not inbox.sessions:
            del self._inboxes[session.uid]
            for channel in self._space.inboxes(session.uid):
                self._drop(channel)

    # Changes, and what the server has confirmed of them.

    def restart(self) -> None:
        """Begin on a new connection, which is subscribed to nothing."""
        self._to_drop.clear()
        self._dropping.clear()
        self._adding.clear()
        self._to_add = dict.fromkeys(self.owners)
        for subscribers in self.groups.values():
            subscribers.is_subscribed = False
        for inbox in self._inboxes.values():
            inbox.missing = len(self._space.served)

    def has_changes(self) -> bool:
        return bool(self._to_drop or self._to_add) and self._free() > 0

    def changes(self) -> ChangeChannels:
        """Return the next changes, whose confirmations are awaited from now on."""
        drop = _pop(self._to_drop, self._free())
        self._dropping.update(drop)
        # The same channel may be dropped and added: so nothing is added before all is dropped.
        add = [] if self._to_drop else _pop(self._to_add, self._free())
        self._adding.update(add)
        return ChangeChannels(drop, add)

    def added(self, channel: str) -> ChannelOwner | None:
        """Note that a channel was added; return its owner if this has made the owner subscribed."""
        if not _confirmed(self._adding, channel) or channel in self._adding or channel in self._to_add:
            return None  # dropped and added again meanwhile: that confirmation is still to come
        owner = self.owners.get(channel)
        if isinstance(owner, GroupSubscribers):
            owner.is_subscribed = True
        elif owner is not None:
            owner.missing -= 1
        return owner if owner and owner.is_subscribed else None

    def dropped(self, channel: str) -> bool:
        return _confirmed(self._dropping, channel)

    def _add(self, channel: str, owner: ChannelOwner) -> None:
        self.owners[channel] = owner
        self._to_add[channel] = None

    def _drop(self, channel: str) -> None:
        del self.owners[channel]
        if channel in self._to_add:
            del self._to_add[channel]
        else:
            self._to_drop[channel] = None

    def _free(self) -> int:
        return UNCONFIRMED_CHANGES - len(self._dropping) - len(self._adding)


def _pop(channels: dict[str, None], limit: int) -> list[str]:
    popped = list(islice(channels, limit))
    for channel in popped:
        del channels[channel]
    return popped


def _confirmed(awaited: Counter[str], channel: str) -> bool:
    """Return whether a confirmation was awaited, and await one less."""
    if not awaited[channel]:
        return False
    awaited[channel] -= 1
    if not awaited[channel]:
        del awaited[channel]
    return True


@dataclass(eq=False)
class Resubscription:
    """A task: opens the subscription, and again after it was lost; changes its channels; pings it every `every_s`.

    A subscription that has not answered by the next PING is lost; and so is one if another process of the server
    answers now: what the former one has pushed last may be nowhere. Only an answered PING ends the back-off. `on_open`
    is called whenever a subscription was opened.
    """

    _space: Keyspace
    _channels: Channels
    _every_s: float
    _on_open: Callable[[], None]
    _clock: Clock
    is_open: bool = False
    _backoff: Backoff = field(default_factory=Backoff)
    _next_ping: float = math.inf
    _awaits_pong: bool = False
    _process: str | None = None

    def lost(self) -> None:
        self.is_open = False
        self._backoff.failed(self._clock())

    def pong(self) -> None:
        self._awaits_pong = False
        self._backoff.succeeded()

    def due(self) -> float:
        """Return when to step: at once if channels have to change and may."""
        if not self.is_open:
            return math.inf if not self._channels.owners else self._backoff.until
        return 0.0 if self._channels.has_changes() else self._next_ping

    def step(self) -> Effects[None]:
        """Open, ping and change what is due. After any error nobody knows which channels are subscribed: it is lost."""
        try:
            if not self.is_open:
                yield OpenSubscription()
                self._begin()
                self._process = yield from self._answering()
            if self._next_ping <= self._clock():
                yield from self._ping()
            if self._channels.has_changes():
                yield self._channels.changes()
        except BaseException:
            self.lost()
            raise

    def _begin(self) -> None:
        self.is_open = True
        self._awaits_pong, self._process = False, None
        self._next_ping = self._clock() + self._every_s
        self._channels.restart()
        self._on_open()

    def _ping(self) -> Effects[None]:
        if self._awaits_pong:
            raise RedisUnavailable("the subscription is silent: opening another")
        yield PingSubscription()
        self._awaits_pong = True
        self._next_ping = self._clock() + self._every_s
        process = yield from self._answering()
        if process and self._process and process != self._process:
            raise RedisUnavailable("another process of the server answers now: opening another subscription")
        self._process = self._process or process

    def _answering(self) -> Effects[str | None]:
        """Return the name of the process that answers; None if none does."""
        [process] = yield from call_each([session_calls.process(self._space)])
        return process if isinstance(process, str) else None
