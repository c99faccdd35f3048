"""A gateway: the live sessions of many users in one process, over one subscription connection.

What decides is in `imcore.gateway.core`; here are its questions answered one after the other, and its waits waited. A
message counts as received, and is acked with others after it, when `poll` is called again: a caller that dies in
between gets it again.
"""

import logging
import reprlib
import time
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, get_args

from imcore.errors import DatabaseUnavailable, InvalidInput, RedisUnavailable, TryAgain
from imcore.gateway.core import Core, GatewayOptions
from imcore.gateway.fanout import Event, Session
from imcore.model.limits import (
    check_count,
    check_handed_over,
    check_msgid,
    check_name,
    check_places,
    check_receipts,
    check_seconds,
    is_number,
)
from imcore.model.values import Receipt
from imcore.operations.effects import (
    ChangeChannels,
    Effect,
    Effects,
    OpenSubscription,
    PingSubscription,
    SqlQuery,
    perform,
)
from imcore.operations.performer import Performer
from imcore.settings import Settings
from imcore.streams.pubsub import Subscription

log = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_WAIT_S = 3600.0
"""Systems do not wait for ever at once."""

_TIMES_AS_LONG = 5
"""After a database was waited for in vain it is left alone for so many times as long."""

AckMode = Literal["auto", "client", "off"]
ReceiptMode = Literal["push", "poll"]


class Gateway:
    """Sessions that share a connection. For one thread.

    `ack_every` messages of a group or `ack_interval_s` seconds, whichever is first, make one ack. `acks` says what
    counts as received: "auto" all that a `poll` has returned, once the next one is called; "client" only what
    `received` and `confirm_receipts` are told; "off" nothing, so nothing is acked or confirmed. `receipts` says how
    senders learn who has read: "push" as it happens, "poll" with each heartbeat. Raise InvalidInput for any of these
    that makes no sense.
    """

    def __init__(
        self,
        performer: Performer,
        settings: Settings,
        *,
        ack_every: int = 10,
        ack_interval_s: float = 1.0,
        acks: AckMode = "auto",
        receipts: ReceiptMode = "push",
    ) -> None:
        check_count(ack_every, "ack_every")
        _check_choice(acks, "acks", get_args(AckMode))
        _check_choice(receipts, "receipts", get_args(ReceiptMode))
        check_seconds(ack_interval_s, "ack_interval_s")
        self._client = performer.system.client
        self._settings = settings
        self._manner = GatewayOptions(ack_every, ack_interval_s, acks, receipts)
        self._performer = performer
        self._subscription: Subscription | None = None
        self._sql_trouble, self._no_sql_until = "", 0.0

    @cached_property
    def _core(self) -> Core:
        """Made when the first session begins: not before it is known whether the server can be reached."""
        return Core(self._client.space, self._settings, self._manner, time.monotonic)

    @property
    def _begun(self) -> bool:
        return "_core" in vars(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(clean=kind is None)

    def open(self, uid: str, *, places: Mapping[str, str] | None = None, since_join: bool = False) -> Session:
        """Begin a session.

        `places` are those of the client's own database: by gid, the msgid up to which it has the group. Each group
        begins after that or after the user's offset as it is now, whichever comes first: so what is not acked is always
        handed over, and what another device has acked is not missed by this one. A group without a place begins after
        the offset; with `since_join`, as for a device that had a database before, where the user joined it.

        Raise InvalidInput for a uid or a place that cannot be one, TryAgain if the session could not begin.
        """
        check_name(uid, "uid")
        session = self._run(self._core.open(uid, check_places(places), since_join=since_join))
        self._performer.open_early()
        return session

    def end(self, session: Session, *, clean: bool = True) -> None:
        """End one session; the user is offline if it was the last one.

        What was handed over to it is acked before (with `acks="client"` what was received). Raise TryAgain if that is
        impossible now: then the session goes on. Not clean, as where a socket is found dead: nothing is acked that the
        client has not said, so it comes again to the user's next session; it ends at once, at the server with the next
        `poll`, and raises nothing. A session that has ended already is passed over.
        """
        if not self._begun:
            return
        if clean:
            self._end([session])
        else:
            self._core.give_up([session])

    def _end(self, sessions: Collection[Session]) -> None:
        self._hear(0.0)
        self._run(self._core.end(list(sessions)))

    def close(self, *, clean: bool = True) -> None:
        """End all sessions. Not clean: as if the process had been killed, so nothing more is acked.

        Sessions that are opened afterwards begin anew.
        """
        try:
            if clean and self._begun:
                self._end(self._core.sessions)
        except TryAgain as error:
            log.warning("%s; what was not acked comes again", error)
        finally:
            if self._begun:
                core = self._core
                del self._core  # nothing of it is left to be ended once more
                self._run(core.abandon())
            self._unsubscribe()

    def received(self, session: Session, gid: str, msgid: str) -> None:
        """Note that the client of a session has received a message, and so all before it in this group.

        It is acked with others. What was not handed over to this session, or is being handed over again, is passed
        over, and so is a session that has ended. Raise InvalidInput unless `acks="client"`, and for what is no msgid.
        """
        self._check_client()
        check_handed_over(gid, "gid")
        packed = check_msgid(msgid)
        if self._begun:
            self._core.received(session, gid, packed)

    def confirm_receipts(self, session: Session, receipts: Iterable[Receipt]) -> None:
        """Note that the client of a session knows these receipts: they are confirmed with others, for all the user's
        sessions. Raise InvalidInput unless `acks="client"`, and for receipts that were never given out.
        """
        self._check_client()
        known = check_receipts(receipts)
        if self._begun:
            self._core.confirm_receipts(session, known)

    def _check_client(self) -> None:
        if self._manner.acks != "client":
            raise InvalidInput(f'this gateway acks by itself (acks="{self._manner.acks}"): open it with acks="client"')

    def poll(self, timeout_s: float = 1.0) -> list[Event]:
        """Return what came, after waiting at most so long for the first; what the last call returned is received now.

        While Redis is away, full, or refuses something (any TryAgain), it waits longer and longer before it tries that
        again; all else goes on, and nothing is lost. A user whose missed messages or receipts need the database waits
        alone while that is away. Raise InvalidInput for a time that is none, ConfigurationError for what waiting does
        not mend, such as a missing right.
        """
        if not is_number(timeout_s):
            raise InvalidInput(f"timeout_s must be seconds; it is {reprlib.repr(timeout_s)}")
        if not self._begun:
            self._hear(timeout_s)
            return []
        deadline = time.monotonic() + timeout_s
        self._core.settle()
        self._hear(0.0)
        self._run(self._core.go_on())
        while not self._core.is_ready and (now := time.monotonic()) < deadline:
            self._hear(min(deadline, self._core.due()) - now)
            if not self._core.is_ready:
                self._run(self._core.go_on())
        return self._core.take()

    def give_back(self, count: int) -> None:
        """Take back the last so many events of the last `poll`: not received, they are returned by the next one.

        Raise InvalidInput if it returned less.
        """
        taken = self._core.taken if self._begun else 0
        if not 0 <= count <= taken:
            raise InvalidInput(f"{count} events cannot be taken back: {taken} were returned")
        if count:
            self._core.give_back(count)

    # The driver of the core.

    def _run(self, asking: Effects[T]) -> T:
        return perform(asking, self._answer)

    def _answer(self, question: Effect[Any]) -> Any:
        match question:
            case OpenSubscription():
                self._unsubscribe()
                self._subscription = Subscription(self._client)
            case ChangeChannels(drop, add) if self._subscription:
                self._subscription.change(drop, add)
            case PingSubscription() if self._subscription:
                self._subscription.ping()
            case SqlQuery():
                return self._ask_sql(question)
            case _:
                return self._performer.perform_one(question)
        return None

    def _ask_sql(self, question: SqlQuery[Any]) -> Any:
        """Ask the database. While it is silent, each attempt takes seconds, and all wait for it: so there are few."""
        begun = time.monotonic()
        if begun < self._no_sql_until:
            raise DatabaseUnavailable(self._sql_trouble)
        try:
            return self._performer.perform_one(question)
        except DatabaseUnavailable as error:
            now = time.monotonic()
            self._sql_trouble, self._no_sql_until = str(error), now + _TIMES_AS_LONG * (now - begun)
            raise

    def _hear(self, timeout_s: float) -> None:
        """Tell the core what came on the subscription, after waiting at most so long for the first."""
        timeout_s = min(max(0.0, timeout_s), _LONGEST_WAIT_S)
        if self._subscription is None:
            time.sleep(timeout_s)
            return
        try:
            self._core.hear(self._subscription.read(timeout_s))
        except RedisUnavailable as error:
            self._unsubscribe()
            self._core.lost(error)

    def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription:
            subscription.close()


def _check_choice(value: object, what: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise InvalidInput(f"{what} must be one of {', '.join(choices)}; it is {value!r}")
