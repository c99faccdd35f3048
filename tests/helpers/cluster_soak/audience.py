"""A process of the cluster soak: a gateway with a live session for each of its users, which writes down what they get.

    python -m tests.helpers.cluster_soak.audience PLAN

PLAN is a JSON object: `uids`, and `records`, the file of records. Each session has a number in it: `begun` says where
it began in which group, `message` who was handed a message, `receipts` what its user was told.
"""

import asyncio
import json
import signal
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

from imcore import AsyncChat, AsyncGateway, Event, Joined, NewMessage, ReceiptsChanged, Session
from imcore.errors import TryAgain
from tests.helpers.cluster_soak.records import RecordFile

ALL_OPEN = "all sessions are open"
_AGAIN_S = 0.05


class Audience:
    """The sessions of one gateway."""

    def __init__(self, gateway: AsyncGateway, records: RecordFile) -> None:
        self._gateway, self._records = gateway, records
        self._numbers = count()
        self.stopping = False

    async def open(self, uid: str) -> None:
        """Begin a session, as soon as the servers answer."""
        while not self.stopping:
            try:
                session = await self._gateway.open(uid, tag=next(self._numbers))
            except TryAgain:
                await asyncio.sleep(_AGAIN_S)
            else:
                self._records.note(
                    "begun", session.tag, uid, {gid: session.starts[gid].after for gid in session.starts}
                )
                return

    async def poll(self) -> None:
        """Write down what comes, until the end."""
        while not self.stopping:
            events = await self._gateway.poll(timeout_s=0.1)
            if events:
                self._records.note_all([record for event in events for record in self._records_of(event)])

    def _records_of(self, event: Event) -> list[tuple[Any, ...]]:
        tags = [session.tag for session in event.sessions]
        if isinstance(event, NewMessage):
            message = event.message
            return [("message", message.gid, message.msgid, message.seq, message.client_msgid, tags)]
        if isinstance(event, ReceiptsChanged):
            told = [(each.gid, each.msgid, each.read, each.unread) for each in event.receipts]
            return [("receipts", event.sessions[0].uid, time.time(), told)]
        if isinstance(event, Joined):
            return [("joined", session.tag, event.gid, _begin_of(session, event.gid)) for session in event.sessions]
        if hasattr(event, "after_msgid"):  # what came after that message is taken back
            return [("rewound", event.gid, event.after_msgid, tags)]
        return [(type(event).__name__, tags)]


def _begin_of(session: Session, gid: str) -> str | None:
    return session.starts[gid].after


async def main(plan: dict[str, Any]) -> None:
    """Hold the sessions until SIGTERM."""
    records = RecordFile(Path(plan["records"]))
    async with AsyncChat.connect() as chat, chat.gateway(ack_every=10, ack_interval_s=0.3) as gateway:
        audience = Audience(gateway, records)

        def stop() -> None:
            audience.stopping = True
            gateway.wake()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        polling = asyncio.ensure_future(audience.poll())
        for uid in plan["uids"]:
            await audience.open(uid)
        print(ALL_OPEN, file=sys.stderr, flush=True)
        await polling
    records.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))
