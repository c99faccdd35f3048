"""Devices in tests: what a live session yields, what its local database shows, and what workers do meanwhile."""

import time
from collections.abc import Callable
from typing import Any

from imcore import Chat
from imcore import msgid as msgids
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase
from imcore.model.values import Draft, Message, Receipt
from imcore.streams.calls import message_calls
from imcore.workers.receipts import ReceiptsWorker
from tests.persist_runs import new_persist

MOST_S = 20.0


def say(chat: Chat, *texts: str, gid: str = "team", sender: str = "ann") -> list[str]:
    sent = chat.system.client.call(
        message_calls.send(chat.system.client.space, gid, [Draft(sender, text) for text in texts], 1000)
    )
    return [each.msgid for each in sent if isinstance(each, message_calls.SendResult)]


def listen(
    client: Device, until: Callable[[], object] | int, into: list[Message | Receipt] | None = None, **options: Any
) -> list[Message | Receipt]:
    """Run a session until the condition holds, as seen between two polls, or until so many messages were yielded."""
    give_up = time.monotonic() + MOST_S
    found = [] if into is None else into

    def stopping() -> bool:
        assert time.monotonic() < give_up, f"not so within {MOST_S} s"
        return len(said(found)) >= until if isinstance(until, int) else bool(until())

    for event in client.live(stopping, **options):
        found.append(event)
    return found


def said(found: list[Message | Receipt]) -> list[str]:
    """The contents of the messages among what a session has yielded."""
    return [each.content for each in found if isinstance(each, Message)]


def texts(local: LocalDatabase, gid: str = "team") -> list[str]:
    return [line.content for line in local.log(gid)]


def states(local: LocalDatabase, gid: str = "team") -> list[str | None]:
    return [line.state for line in local.log(gid)]


def tell(chat: Chat) -> None:
    """Have the worker `receipts` tell what is there."""
    worker = ReceiptsWorker(chat.system.client, chat.system.database, chat.system.settings)
    while not worker.drained():
        worker.step()
    worker.close()


def store(chat: Chat) -> None:
    """Have the worker `persist` store what is there."""
    chat.system.database.upgrade()
    worker = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    while not worker.drained():
        worker.step()
    worker.close()


BASE = msgids.EPOCH_MS + 1000


def message(seq: int, *, sender: str = "ann", gid: str = "g") -> Message:
    return Message(gid, f"{BASE + seq}-0", seq, sender, f"words {seq}")
