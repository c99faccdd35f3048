"""A process of the cluster soak: people who send to all groups at once, and readers who ack by hand.

    python -m tests.helpers.cluster_soak.storm PLAN

PLAN is a JSON object: `name`, `seed`, `gids`, `senders`, `readers`, `pause_s` between two bursts of a group on average,
and `records`, the file of records: what is about to be sent or acked, and what was answered. A send without an answer
may have happened or not; it is repeated until there is one, also after a kill.
"""

import asyncio
import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from imcore import AsyncChat
from imcore.errors import TryAgain
from tests.helpers.cluster_soak.records import RecordFile, records_of

T = TypeVar("T")

GOES_ON = "going on"
_AGAIN_S = 0.05
_MOST_AT_ONCE = 6
_MANY_TRIES = 100


class Intent(NamedTuple):
    """A message that somebody wants to send."""

    gid: str
    uid: str
    client_msgid: str


def content_of(client_msgid: str) -> str:
    """Return the text of a message."""
    return f"the text of {client_msgid}"


class Storm:
    """Sends bursts to each group, and acks for the readers."""

    def __init__(self, chat: AsyncChat, plan: dict[str, Any]) -> None:
        self._chat, self._plan = chat, plan
        path = Path(plan["records"])
        self._open: dict[str, Intent] = {}
        self._said: Counter[str] = Counter()
        for kind, *values in records_of(path):
            self._count(kind, values)
        self._records = RecordFile(path)
        self._chance = random.Random(f"{plan['seed']} {sum(self._said.values())}")
        self.stopping = False

    def _count(self, kind: str, values: list[Any]) -> None:
        if kind == "say":
            intent = Intent(*values)
            self._said[intent.gid] += 1
            self._open[intent.client_msgid] = intent
        elif kind == "sent":
            self._open.pop(values[1], None)

    async def run(self) -> None:
        """Send what a kill has left open; then send until the end."""
        await asyncio.gather(*map(self._send, list(self._open.values())))
        print(GOES_ON, file=sys.stderr, flush=True)
        await asyncio.gather(*map(self._storm_in, self._plan["gids"]))

    async def _storm_in(self, gid: str) -> None:
        while not self.stopping:
            await asyncio.gather(*(self._say(gid) for _ in range(self._chance.randint(1, _MOST_AT_ONCE))))
            if self._chance.random() < 0.3:
                await self._read(gid)
            await asyncio.sleep(self._chance.uniform(0, 2 * self._plan["pause_s"]))

    async def _say(self, gid: str) -> None:
        self._said[gid] += 1
        intent = Intent(
            gid, self._chance.choice(self._plan["senders"]), f"{self._plan['name']}.{gid}.{self._said[gid]}"
        )
        self._records.note("say", *intent)
        await self._send(intent)
        if self._chance.random() < 0.1:  # as if the answer had been lost
            await self._send(intent)

    async def _send(self, intent: Intent) -> None:
        sent = await patiently(
            lambda: self._chat.send(
                intent.gid,
                content_of(intent.client_msgid),
                sender_uid=intent.uid,
                client_msgid=intent.client_msgid,
                durable="replicated",
            )
        )
        self._records.note("sent", intent.gid, intent.client_msgid, sent.msgid, sent.seq)

    async def _read(self, gid: str) -> None:
        uid = self._chance.choice(self._plan["readers"])
        pulled = await patiently(lambda: self._chat.pull(uid, gid, limit=20))
        seqs = [each.seq for each in pulled]
        if seqs != list(range(seqs[0], seqs[0] + len(seqs))) if seqs else False:
            self._records.note("holes", gid, uid, seqs)
        if pulled:
            target = self._chance.choice(pulled).msgid
            ack = await patiently(lambda: self._chat.ack(uid, gid, target))
            self._records.note("acked", gid, uid, target, ack.last_ack_msgid)


async def patiently(step: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Return the result of a step; repeat it while a server is away, or has not confirmed it."""
    for tries in count(1):
        try:
            return await step()
        except TryAgain as error:
            if tries % _MANY_TRIES == 0:
                print(f"tried {tries} times: {error!r}", file=sys.stderr, flush=True)
            await asyncio.sleep(_AGAIN_S)
    raise AssertionError


async def main(plan: dict[str, Any]) -> None:
    """Send until SIGTERM."""
    async with AsyncChat.connect() as chat:
        storm = Storm(chat, plan)

        def stop() -> None:
            storm.stopping = True

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        await storm.run()


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))
