"""Keeps a subscription: opens it anew when it is lost, says what it listens to, looks whether it lives. No I/O."""

import math
from collections.abc import Callable

from imcore.errors import RedisUnavailable
from imcore.gateway.channels import Channels
from imcore.operations.effects import ChangeChannels, Effects, OpenSubscription, PingSubscription
from imcore.util.backoff import Backoff, Clock


class Resubscription:
    """A part. With every heartbeat it sends a PING; without an answer by the next one the subscription is lost.

    One that was lost before it answered a PING has succeeded in nothing: the next one waits longer.
    """

    def __init__(self, channels: Channels, every_s: float, on_anew: Callable[[], None], clock: Clock) -> None:
        """`on_anew` is called when a new subscription begins."""
        self._channels = channels
        self._every_s = every_s
        self._on_anew = on_anew
        self._clock = clock
        self.is_open = False
        """Whether there is a subscription, as far as is known."""
        self._wait = Backoff()
        self._next_ping = math.inf
        self._silent = False

    def lost(self) -> None:
        """The subscription is lost: pushes may be, too."""
        self.is_open = False
        self._wait.failed(self._clock())

    def answered(self) -> None:
        """The server has answered the last PING."""
        self._silent = False
        self._wait.succeeded()

    def due(self) -> float:
        """Return when there is something to do: now, where channels have to change and may."""
        if not self.is_open:
            return math.inf if self._channels.is_empty else self._wait.until
        return 0.0 if self._channels.has_changes() else self._next_ping

    def go_on(self) -> Effects[None]:
        """Do it. After any error it is unknown what is listened to: then all begins anew."""
        try:
            yield from self._listen()
        except BaseException:
            self.lost()
            raise

    def _listen(self) -> Effects[None]:
        if not self.is_open:
            yield OpenSubscription()
            self._begin()
        if self._next_ping <= self._clock():
            yield from self._ping()
        if self._channels.has_changes():
            yield ChangeChannels(*self._channels.changes())

    def _begin(self) -> None:
        self.is_open = True
        self._silent = False
        self._next_ping = self._clock() + self._every_s
        self._channels.begin_anew()
        self._on_anew()

    def _ping(self) -> Effects[None]:
        if self._silent:
            raise RedisUnavailable("the subscription is silent: opening another")
        yield PingSubscription()
        self._silent = True
        self._next_ping = self._clock() + self._every_s
