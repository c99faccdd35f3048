"""How long a message takes to the last of 40 live sessions, and the last ack to the sender, beside a bare PUBLISH.

The bare PUBLISH goes to 40 subscribers on connections of their own, read in turn by one thread through the same
client, as the sessions are; and, for a gateway's one connection, to a single subscriber.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from statistics import median
from typing import Any

from imcore.cli.bench.figures import Aim, Figure, Yardstick
from imcore.cli.bench.processes import running_workers
from imcore.cli.bench.sessions import DEADLINE_S, ONLINE, TEXT, Mode, SessionCounts, SessionPool, open_sessions
from imcore.cli.bench.stack import Stack
from imcore.cli.bench.timing import Measured, Progress, RoundPlan, Rounds, interleave, percentile
from imcore.errors import ImError
from imcore.streams.client import open_client

_BARE = f"bare PUBLISH to {ONLINE} connections"
_BARE_ONE = "bare PUBLISH to 1 connection"
_AIM = Aim("<=", 3)
_TOPOLOGIES = {"one gateway": Mode(), "40 connections": Mode(separate=True)}
_PARTS = {"sent": "from send to the last of 40", "told": "from the last ack to the sender's full tally"}


def run_latency(stack: Stack, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure both, with sessions on one gateway and on 40 connections, and with a window of 0."""
    messages = plan.size(200, 40)
    stack = stack.using(stack.tables(), receipt_window_ms=0)
    contestants: dict[str, Callable[[], Measured]] = {}
    with ExitStack() as things:
        things.enter_context(running_workers(stack, "receipts"))
        for name, mode in _TOPOLOGIES.items():
            crowd = things.enter_context(open_sessions(stack, f"{stack.name}-{name[:2]}", mode))
            contestants[name] = _crowd_turn(crowd, messages)
        for name, count in ((_BARE, ONLINE), (_BARE_ONE, 1)):
            audience = things.enter_context(_audience(stack, count))
            contestants[name] = _bare_turn(audience, messages)
        found = interleave(contestants, plan, progress)
    return list(_figures(found))


def _figures(found: dict[str, dict[str, Rounds]]) -> Iterator[Figure]:
    for name in _TOPOLOGIES:
        for part, what in _PARTS.items():
            for share in ("p50", "p99"):
                yield Figure(
                    bench="latency",
                    subject=name,
                    what=f"{what}, {share}",
                    charted=share == "p50",
                    unit="us",
                    rounds=found[name][f"{part} {share}"],
                    yardstick=Yardstick(_BARE, found[_BARE][share]),
                    aim=_AIM,
                )
    for name in (_BARE, _BARE_ONE):
        for share in ("p50", "p99"):
            yield Figure(
                bench="latency", subject=name, what=share, unit="us", charted=share == "p50", rounds=found[name][share]
            )


def _crowd_turn(crowd: SessionPool, messages: int) -> Callable[[], Measured]:
    def turn() -> Measured:
        crowd.poll_until_in(list(crowd.seen.sent), crowd.seen.known)
        crowd.seen = seen = SessionCounts()
        told = []
        for _ in range(messages):
            seqs = crowd.send(1)
            crowd.poll_until_in(seqs, seen.arrived)
            began = time.perf_counter()  # the next poll sends the acks
            crowd.poll_until_in(seqs, seen.known)
            told.append((seen.known[seqs[0]] - began) * 1e6)
        sent = [(seen.arrived[seq] - at) * 1e6 for seq, at in seen.sent.items()]
        return {**_shares(sent, "sent "), **_shares(told, "told ")}

    return turn


def _shares(samples: Sequence[float], prefix: str = "") -> Measured:
    return {f"{prefix}p50": median(samples), f"{prefix}p99": percentile(samples, 0.99)}


class _Audience:
    """Subscribers that are read in turn, each on a connection of its own."""

    def __init__(self, client: Any, channel: str, count: int) -> None:
        self._client = client
        self._channel = channel
        self._subscribers = [client.pubsub() for _ in range(count)]
        self._timeout_s = DEADLINE_S if count == 1 else 0.0
        for subscriber in self._subscribers:
            subscriber.ssubscribe(channel)
            subscriber.get_message(timeout=DEADLINE_S)

    def close(self) -> None:
        """Give the connections back."""
        for subscriber in self._subscribers:
            subscriber.close()

    def publish(self) -> float:
        """Publish once; return the microseconds until the last one has it."""
        began = time.perf_counter()
        self._client.execute_command("SPUBLISH", self._channel, TEXT)
        waiting = list(self._subscribers)
        while waiting:
            waiting = [each for each in waiting if each.get_message(timeout=self._timeout_s) is None]
            if time.perf_counter() - began > DEADLINE_S:
                raise ImError(f"a bare PUBLISH has not reached {len(waiting)} of its subscribers")
        return (time.perf_counter() - began) * 1e6


@contextmanager
def _audience(stack: Stack, count: int) -> Iterator[_Audience]:
    with (
        open_client(stack.settings.redis_url) as client,
        closing(_Audience(client, f"im:{{0}}:{stack.name}-bare-{count}", count)) as audience,
    ):
        yield audience


def _bare_turn(audience: _Audience, messages: int) -> Callable[[], Measured]:
    return lambda: _shares([audience.publish() for _ in range(messages)])
