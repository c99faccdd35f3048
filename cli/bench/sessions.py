"""The people of the storm: a group of 200 of whom 40 recipients and the sender are online, as live sessions."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from imcore.chat import Chat
from imcore.cli.bench.stack import Stack
from imcore.errors import ImError
from imcore.gateway.fanout import Event, NewMessage, Session
from imcore.gateway.gateway import Gateway
from imcore.model.values import Draft
from imcore.operations.effects import raised

MEMBERS = 200
ONLINE = 40
TEXT = "x" * 100
"""What every message says: the length of a usual chat message."""

HEARTBEAT_MS = 1000
"""Where receipts are polled: the default, 20 s, would be nothing to wait for."""

IN_FLIGHT = 20
"""How many messages are under way at once, at most, whatever they go through."""

DEADLINE_S = 30
_WAIT_S = 0.05


@dataclass(frozen=True, slots=True)
class Mode:
    """How the sessions live: acks of so many messages, receipts pushed or polled, one connection or one each."""

    ack_every: int = 1
    receipts: Literal["push", "poll"] = "push"
    separate: bool = False


@dataclass(slots=True)
class SessionCounts:
    """When things happened, by seq (perf_counter): sent, at the last of the 40, and the sender knows 40/199."""

    sent: dict[int, float] = field(default_factory=dict)
    arrived: dict[int, float] = field(default_factory=dict)
    known: dict[int, float] = field(default_factory=dict)
    pushes: int = 0
    digests: int = 0
    _missing: dict[int, int] = field(default_factory=dict)
    _seqs: dict[str, int] = field(default_factory=dict)

    def send(self, msgid: str, seq: int, at: float) -> None:
        """Note a message that was sent."""
        self._seqs[msgid] = seq
        self.sent[seq] = at

    def take(self, event: Event, sender: Session, now: float) -> None:
        """Note what a session was told."""
        if isinstance(event, NewMessage):
            others = len(event.sessions) - (sender in event.recipients.session_set)
            self._arrive(event.message.seq, others, now)
            return
        self.digests += 1
        for receipt in event.receipts:
            if receipt.read == ONLINE and receipt.msgid in self._seqs:
                self.known.setdefault(self._seqs[receipt.msgid], now)

    def _arrive(self, seq: int, sessions: int, now: float) -> None:
        self.pushes += sessions
        missing = self._missing.get(seq, ONLINE) - sessions
        self._missing[seq] = missing
        if not missing:
            self.arrived[seq] = now


class SessionPool:
    """Live sessions, polled in turn by one thread."""

    def __init__(self, chat: Chat, gid: str, gateways: Sequence[Gateway], sender: Session) -> None:
        self.chat = chat
        self.gid = gid
        self.seen = SessionCounts()
        self._gateways = gateways
        self._sender = sender
        self._wait_s = _WAIT_S if len(gateways) == 1 else 0.0

    def send(self, count: int) -> list[int]:
        """Send so many messages, in one call; return their seqs."""
        at = time.perf_counter()
        sent = [raised(one) for one in self.chat.send_many(self.gid, [Draft(self._sender.uid, TEXT)] * count)]
        for one in sent:
            self.seen.send(one.msgid, one.seq, at)
        return [one.seq for one in sent]

    def poll(self) -> None:
        """Ask every session's gateway once what came; what it brought before is confirmed by that."""
        for gateway in self._gateways:
            events = gateway.poll(self._wait_s)
            now = time.perf_counter()
            for event in events:
                self.seen.take(event, self._sender, now)

    def send_when_free(self, most: int) -> list[int]:
        """Send as many messages as may be under way, `most` at most; poll before, until one may. Return their seqs."""
        self._poll_until(lambda: self._under_way() < IN_FLIGHT)
        return self.send(min(most, IN_FLIGHT - self._under_way()))

    def poll_until_in(self, seqs: Sequence[int], there: dict[int, float]) -> None:
        """Poll until `there` has all of these messages. Raise ImError if that takes too long."""
        missing = list(reversed(seqs))

        def none_is_missing() -> bool:
            while missing and missing[-1] in there:
                missing.pop()
            return not missing

        self._poll_until(none_is_missing)

    def _under_way(self) -> int:
        return len(self.seen.sent) - len(self.seen.arrived)

    def _poll_until(self, condition: Callable[[], bool]) -> None:
        give_up = time.perf_counter() + DEADLINE_S
        while not condition():
            self.poll()
            if time.perf_counter() > give_up:
                raise ImError(f"{self._under_way()} messages under way took longer than {DEADLINE_S} s")


@contextmanager
def open_sessions(stack: Stack, gid: str, mode: Mode) -> Iterator[SessionPool]:
    """Make the group, open the sessions, and let as many messages go round as make one ack, so that all stands."""
    uids = [f"{gid}-{number}" for number in range(MEMBERS)]
    with ExitStack() as open_things:
        chat = open_things.enter_context(stack.chat())
        chat.create_group(gid, uids)
        if mode.receipts == "poll":
            stack = stack.using(stack.settings.database_url, heartbeat_ms=HEARTBEAT_MS)
        gateways = [_gateway(open_things, stack, mode) for _ in range(ONLINE + 1 if mode.separate else 1)]
        sessions = [gateways[number % len(gateways)].open(uids[number]) for number in range(ONLINE + 1)]
        crowd = SessionPool(chat, gid, gateways, sessions[0])
        first = crowd.send(mode.ack_every)
        crowd.poll_until_in(first, crowd.seen.arrived)
        yield crowd


def _gateway(open_things: ExitStack, stack: Stack, mode: Mode) -> Gateway:
    chat = open_things.enter_context(stack.chat())
    # Not ended in order: the 40 goodbyes would take longer than what is measured, and the group is used no more.
    gateway = chat.gateway(ack_every=mode.ack_every, receipts=mode.receipts)
    open_things.callback(gateway.close, clean=False)
    return gateway
