"""A gateway: the live sessions of many users in one process, over one subscription connection.

`imcore.gateway.core` decides; this driver performs its effects one after the other, and waits. A message counts as
received, and is acked with others after it, when `poll` is called again: if the caller dies before, the message comes
again.
"""

import logging
import reprlib
import time
from collections.abc import Mapping
from typing import Any, Self, TypeVar, Unpack

from imcore.errors import ImError, InvalidInput, RedisUnavailable, TryAgain
from imcore.gateway.confirmations import Confirmations
from imcore.gateway.core import Core
from imcore.gateway.fanout import Event, Session
from imcore.gateway.options import GatewayOptions, SessionOptions
from imcore.gateway.request import SessionRequest, StartMode
from imcore.gateway.rest import LONGEST_WAIT_S, DatabaseRest
from imcore.model.limits import is_number
from imcore.operations.effects import (
    ChangeChannels,
    Effect,
    Effects,
    OpenSubscription,
    PingSubscription,
    SqlQuery,
)
from imcore.operations.performer import Performer
from imcore.settings import Settings
from imcore.streams.pubsub import Subscription, Waker
from imcore.util.steps import perform

log = logging.getLogger(__name__)

T = TypeVar("T")


class Gateway(Confirmations[Core]):
    """Sessions that share a connection. One thread uses it; only `wake` may be called from any thread."""

    def __init__(self, performer: Performer, settings: Settings, **options: Unpack[SessionOptions]) -> None:
        super().__init__(GatewayOptions(**options))
        self._client = performer.system.client
        self._settings = settings
        self._performer = performer
        self._subscription: Subscription | None = None
        self._rest = DatabaseRest()
        self._waker = Waker()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(clean=kind is None)

    def open(
        self,
        uid: str,
        *,
        start: StartMode = "unread",
        after: Mapping[str, str] | None = None,
        most: int | None = None,
        tag: Any = None,
    ) -> Session:
        """Begin a session. `session.starts` maps each gid to a SessionStart.

        `start` says where: "unread" after what the user has read, in private or not; "live" after the newest message;
        "join" where the user joined. `after` says it for some groups, by gid, as the msgid up to which the client has
        the group, "0-0" for nothing: a group begins exactly there, but never before the join, nor after the newest
        message. It is ignored for groups that the user is not in; a group that is joined later begins with the join.
        What is before the start of a session is not acked by it, unless something later is.

        With `most`, whenever more messages than that are missed in a group, only so many of the newest are handed over,
        after one `Gap` that names the first and the last of the others: at the beginning, after a lost subscription,
        after a pause. "unread" then begins after the offset, so what was read in private may come again: else what is
        delivered would show to others how far that is. `tag` is kept in the session for the caller.

        Raise InvalidInput for a value that cannot be, TryAgain if the session could not begin. For the thread of the
        gateway.
        """
        request = SessionRequest.checked(uid, start, after, most, tag)
        core = self._core = self._core or Core(self._client.space, self._settings, self._options, time.monotonic)
        session = self._perform(core.open(request))
        self._performer.open_early()
        return session

    def end(self, session: Session, *, clean: bool = True) -> None:
        """End one session; the user is offline if it was the last one. A session that has ended is ignored.

        A clean end acks what was handed over (with `acks="client"` what was received). If Redis does not take that now,
        the session ends here all the same, and its acks and its end are delivered by later polls. Any other end, as
        where a socket is found dead, acks only what the client has confirmed: the rest comes again to the user's next
        session; the server learns of it with the next `poll`. Raise no TryAgain. For the thread of the gateway.
        """
        if self._core and clean:
            self._read(0.0)
            self._perform(self._core.end([session]))
        elif self._core:
            self._core.drop([session])

    def close(self, *, clean: bool = True) -> None:
        """End all sessions. Not clean: as if the process had been killed, so nothing more is acked.

        For the thread of the gateway.
        """
        try:
            if clean and self._core:
                self._read(0.0)
                refusal = self._perform(self._core.close())
                if refusal:
                    log.warning("%s; what was not acked comes again", refusal)
        except TryAgain as error:
            log.warning("%s; what was not acked comes again", error)
        finally:
            core, self._core = self._core, None  # so that no session is ended once more
            if core:
                self._perform(core.abandon())
            self._unsubscribe()
            self._waker.close()

    def pause(self, session: Session) -> None:
        """Hand nothing over to a session until `resume`: its client is slow. Ignored for one that has ended.

        Its user stays online. What was ready for it and what comes costs nothing until then. What the last `poll`
        returned is not taken back. For the thread of the gateway.
        """
        if self._core:
            self._core.pause(session)

    def resume(self, session: Session) -> None:
        """Let a paused session catch up, without a hole or a double, then be live again. Ignored if it is not paused.

        For the thread of the gateway.
        """
        if self._core:
            self._core.resume(session)

    def send_acks(self, session: Session) -> None:
        """Send at once what the client of a session has confirmed, as before a mark that must come after it.

        Raise TryAgain if some of it has to wait; it is kept. For the thread of the gateway.
        """
        refusal = self._perform(self._core.flush([session])) if self._core else None
        if refusal:
            raise refusal

    @property
    def ack_calls(self) -> int:
        """The calls that have sent acks since the first session. Each acks one group, for any number of users."""
        return self._core.ack_calls if self._core else 0

    def wake(self) -> None:
        """End the `poll` in progress, or else the next one, with the events that are there. From any thread."""
        self._waker.wake()

    def poll(self, timeout_s: float = 1.0) -> list[Event]:
        """Return new events, after waiting at most so long for the first. The events of the last call are received now.

        While Redis is away, full, or refuses something (any TryAgain), the gateway tries that again after longer and
        longer waits, and nothing is lost. A user whose missed messages or receipts need the database waits alone for
        it. `wake` ends the wait. Raise InvalidInput for a timeout that is no number, ConfigurationError for a problem
        that waiting does not mend. For the thread of the gateway.
        """
        if not is_number(timeout_s):
            raise InvalidInput(f"timeout_s must be seconds; it is {reprlib.repr(timeout_s)}")
        deadline = time.monotonic() + timeout_s
        if core := self._core:
            core.confirm()
            self._read(0.0)
            self._perform(core.step())
            self._wait(core, deadline)
        else:
            self._read(timeout_s)
        self._waker.reset()
        return core.take() if core else []

    def _wait(self, core: Core, deadline: float) -> None:
        """Go on until there are events, or somebody wakes this, or the time is over."""
        while not (core.has_events() or self._waker.is_awake) and (now := time.monotonic()) < deadline:
            self._read(min(deadline, core.due()) - now)
            if not core.has_events():
                self._perform(core.step())

    def requeue(self, count: int) -> None:
        """Make the last `count` events of the last `poll` not received: they come again. Raise InvalidInput.

        For the thread of the gateway.
        """
        if self._core:
            self._core.requeue(count)
        elif count:
            raise InvalidInput(f"{count} events cannot be taken back: 0 were returned")

    # The driver of the core.

    def _perform(self, effects: Effects[T]) -> T:
        return perform(effects, self._perform_one)

    def _perform_one(self, effect: Effect[Any]) -> Any:
        match effect:
            case OpenSubscription():
                self._unsubscribe()
                self._subscription = Subscription(self._client)
            case ChangeChannels(drop, add) if self._subscription:
                self._subscription.change(drop, add)
            case PingSubscription() if self._subscription:
                self._subscription.ping()
            case SqlQuery():
                with self._rest.attempt():
                    return self._performer.perform_one(effect)
            case _:
                return self._performer.perform_one(effect)
        return None

    def _read(self, timeout_s: float) -> None:
        timeout_s = min(max(0.0, timeout_s), LONGEST_WAIT_S)
        if self._core is None or self._subscription is None:
            self._waker.wait(timeout_s)
            return
        try:
            self._core.handle(self._subscription.read(timeout_s, self._waker))
        except ImError as error:
            self._unsubscribe()
            self._core.subscription_lost(error)
            if not isinstance(error, RedisUnavailable):
                raise

    def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription:
            subscription.close()
