"""The live sessions of the storm: the sender and 40 recipients of a group of 200."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from imcore.chat import Chat
from imcore.cli.bench.harness.servers import BenchServers
from imcore.cli.bench.harness.traffic import TEXT
from imcore.errors import ImError
from imcore.gateway.fanout import Event, NewMessage, ReceiptsChanged, Session
from imcore.gateway.gateway import Gateway
from imcore.model.values import Draft
from imcore.operations.effects import raised

MEMBERS = 200
ONLINE = 40

IN_FLIGHT = 20
"""The limit of messages in flight at once, unless a pool is given another one."""

Confirm = Literal["delivered", "received"]

DEADLINE_S = 30
_WAIT_S = 0.05


@dataclass(slots=True)
class SessionCounts:
    """Times by seq (perf_counter): sent, arrived at the last of the 40, and known to the sender as 40/199."""

    began: float = field(default_factory=time.perf_counter)
    sent: dict[int, float] = field(default_factory=dict)
    arrived: dict[int, float] = field(default_factory=dict)
    known: dict[int, float] = field(default_factory=dict)
    pushes: int = 0
    digests: int = 0
    _missing: dict[int, int] = field(default_factory=dict)
    _seqs: dict[str, int] = field(default_factory=dict)

    @property
    def under_way(self) -> int:
        """The number of messages that have not arrived at all of the 40."""
        return len(self.sent) - len(self.arrived)

    def note_sent(self, msgid: str, seq: int, at: float) -> None:
        self._seqs[msgid] = seq
        self.sent[seq] = at

    def note(self, event: Event, sender: Session, now: float) -> None:
        if isinstance(event, NewMessage):
            others = len(event.sessions) - (sender in event.recipients.session_set)
            self.note_arrival(event.message.seq, others, now)
        elif isinstance(event, ReceiptsChanged):
            self.digests += 1
            for receipt in event.receipts:
                if receipt.read == ONLINE and receipt.msgid in self._seqs:
                    self.known.setdefault(self._seqs[receipt.msgid], now)

    def note_arrival(self, seq: int, sessions: int, now: float) -> bool:
        """Note more sessions of the 40 that received a message; return whether these were the last."""
        self.pushes += sessions
        self._missing[seq] = self._missing.get(seq, ONLINE) - sessions
        if not self._missing[seq]:
            self.arrived[seq] = now
        return not self._missing[seq]


class SessionPool:
    """Live sessions, polled in turn by one thread."""

    def __init__(
        self, chat: Chat, gid: str, gateways: Sequence[Gateway], sender: Session, confirms: Sequence[Confirm] = ()
    ) -> None:
        """`confirms`: what each session says of each message by itself; nothing if its gateway acks."""
        self.in_flight = IN_FLIGHT
        self._confirms = confirms
        self.chat = chat
        self.gid = gid
        self.seen = SessionCounts()
        self._gateways = gateways
        self._sender = sender
        self._wait_s = _WAIT_S if len(gateways) == 1 else 0.0

    def send(self, count: int) -> list[int]:
        """Send messages in one call; return their seqs."""
        at = time.perf_counter()
        drafts = [Draft(self._sender.uid, TEXT)] * count
        messages = [raised(message) for message in self.chat.send_many(self.gid, drafts)]
        for message in messages:
            self.seen.note_sent(message.msgid, message.seq, at)
        return [message.seq for message in messages]

    def poll(self) -> None:
        """Ask every gateway once for events. This confirms its events of the poll before."""
        for gateway in self._gateways:
            events = gateway.poll(self._wait_s)
            now = time.perf_counter()
            for event in events:
                self.seen.note(event, self._sender, now)
                if self._confirms and isinstance(event, NewMessage):
                    self._confirm(gateway, event)

    def _confirm(self, gateway: Gateway, event: NewMessage) -> None:
        for session in event.sessions:
            for method in self._confirms:
                getattr(gateway, method)(session, self.gid, event.message.msgid)

    def send_when_free(self, most: int) -> list[int]:
        """Poll until fewer than `in_flight` messages are under way; fill up with `most` at most. Return their seqs."""
        self._poll_until(lambda: self.seen.under_way < self.in_flight)
        return self.send(min(most, self.in_flight - self.seen.under_way))

    def poll_until_in(self, seqs: Sequence[int], times: dict[int, float]) -> None:
        """Poll until `times` has all of these messages. Raise ImError if that takes too long."""
        missing = list(reversed(seqs))

        def has_all() -> bool:
            while missing and missing[-1] in times:
                missing.pop()
            return not missing

        self._poll_until(has_all)

    def start_over(self) -> SessionCounts:
        """Wait until the sender knows of all messages. Then count anew; return the new counts."""
        self.poll_until_in(list(self.seen.sent), self.seen.known)
        self.seen = SessionCounts()
        return self.seen

    def _poll_until(self, condition: Callable[[], bool]) -> None:
        give_up = time.perf_counter() + DEADLINE_S
        while not condition():
            self.poll()
            if time.perf_counter() > give_up:
                raise ImError(f"{self.seen.under_way} messages under way took longer than {DEADLINE_S} s")


@contextmanager
def open_sessions(
    servers: BenchServers, gid: str, *, ack_every: int = 1, separate: bool = False, confirms: Sequence[Confirm] = ()
) -> Iterator[SessionPool]:
    """Make the group and open the sessions, on one connection or on 41. With `confirms` the sessions ack themselves.

    Send as many messages as one ack confirms: then all have subscribed.
    """
    uids = [f"{gid}-{number}" for number in range(MEMBERS)]
    with ExitStack() as things:
        chat = things.enter_context(servers.chat())
        chat.create_group(gid, uids)
        gateways: list[Gateway] = []
        for _ in range(ONLINE + 1 if separate else 1):
            own_chat = things.enter_context(servers.chat())
            gateways.append(own_chat.gateway(ack_every=ack_every, acks="client" if confirms else "auto"))
            # Not ended in order: that would take longer than the measurement, and the group is not used again.
            things.callback(gateways[-1].close, clean=False)
        sessions = [gateways[number % len(gateways)].open(uids[number]) for number in range(ONLINE + 1)]
        pool = SessionPool(chat, gid, gateways, sessions[0], confirms)
        pool.poll_until_in(pool.send(ack_every), pool.seen.arrived)
        yield pool
