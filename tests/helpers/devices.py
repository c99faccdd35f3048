"""Devices in tests: what a live session yields, what its local database shows, and what workers do meanwhile."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from imcore import msgid as msgids
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase
from imcore.model.values import Message, Receipt

MOST_S = 20.0


def listen(
    client: Device, until: Callable[[], object] | int, into: list[Message | Receipt] | None = None, **options: Any
) -> list[Message | Receipt]:
    """Run a session until the condition holds, as seen between two polls, or until it has yielded `until` messages."""
    give_up = time.monotonic() + MOST_S
    events = [] if into is None else into

    def stopping() -> bool:
        assert time.monotonic() < give_up, f"not so within {MOST_S} s"
        return len(said(events)) >= until if isinstance(until, int) else bool(until())

    for event in client.live(stopping, **options):
        events.append(event)
    return events


def until_all_have_happened(story: Iterator[Callable[[], object]]) -> Callable[[], bool]:
    """Return a condition that lets a story go on, and is true at its end. It yields what each event waits for."""
    waits = [next(story)]

    def stopping() -> bool:
        while waits and waits[0]():
            waits[:] = [step] if (step := next(story, None)) else []
        return not waits

    return stopping


def said(events: list[Message | Receipt]) -> list[str]:
    """The contents of the messages among what a session has yielded."""
    return [each.content for each in events if isinstance(each, Message)]


def texts(local: LocalDatabase, gid: str = "team") -> list[str]:
    return [line.content for line in local.log(gid)]


def states(local: LocalDatabase, gid: str = "team") -> list[str | None]:
    return [line.state for line in local.log(gid)]


BASE = msgids.EPOCH_MS + 1000


def message(seq: int, *, sender: str = "ann", gid: str = "g") -> Message:
    return Message(gid, f"{BASE + seq}-0", seq, sender, f"words {seq}")
