"""Random calls of everything public, right and wrong ones, in any order: a refused call has changed nothing."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from imcore import Chat
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, Outgoing, path_of
from imcore.errors import ImError, TryAgain
from imcore.gateway.fanout import Session
from imcore.gateway.gateway import Gateway
from imcore.gateway.listener import Listener
from imcore.model.values import HistoryPage, Message, Receipt
from imcore.repair.check import check
from imcore.streams.dead_letters import DeadLetter, list_dead
from imcore.streams.keys import CONFIG
from imcore.workers.receipts import ReceiptsWorker
from tests.helpers.persist_runs import new_persist
from tests.model.entries import Entry, entries
from tests.model.fingerprint import Fingerprint, fingerprint
from tests.model.mischief import GIDS, UIDS, Known, resolved

_OLD = "1767225600000-0"
_NOTHING: dict[str, Callable[[], Any]] = {
    "msgid": lambda: _OLD,
    "sid": lambda: "never begun",
    "dead": lambda: f"0:{_OLD}",
    "message": lambda: Message(GIDS[0], _OLD, 1, UIDS[0], "hi"),
    "receipt": lambda: Receipt(GIDS[0], _OLD, 1, 1, 1, 1),
    "page": lambda: HistoryPage((Message(GIDS[0], _OLD, 1, UIDS[0], "hi"),), older=True, newer=True),
    "session": lambda: Session(UIDS[0]),
    "outgoing": lambda: Outgoing(0, GIDS[0], None, "hi", "none"),
    "dataset": lambda: "none",
}
"""What stands for what was given out before, while there is nothing: wrong, but of the right form."""

_WORK = ("persist", "receipts", "poison")
_MOST = 1000


def step() -> st.SearchStrategy[tuple[Entry | str, dict[str, Any]]]:
    """A public function with its arguments, or something that a worker does."""
    kinds: list[Entry | str] = [*entries(), *(entry for entry in entries() if entry.owner == "Chat"), *_WORK]
    return st.sampled_from(kinds).flatmap(
        lambda kind: st.tuples(st.just(kind), st.just({}) if isinstance(kind, str) else kind.arguments())
    )


class Fuzzing(RuleBasedStateMachine):
    """One history on a Chat, with the client of one user, a gateway, and the workers."""

    def __init__(self, open_chat: Callable[[], Chat], folder: Path) -> None:
        super().__init__()
        self.chat = open_chat()
        path = path_of(folder, UIDS[0])
        self.local = LocalDatabase(path, UIDS[0])
        self.files = (path, folder / "imcore.db")
        self.owners = {
            "Chat": self.chat,
            "Gateway": self.chat.gateway(ack_every=2, ack_interval_s=0.0, acks="client"),
            "Device": Device(self.chat, UIDS[0], self.local),
            "LocalDatabase": self.local,
        }
        settings = replace(self.chat.system.settings, block_ms=0, retry_ms=0, receipt_window_ms=0, max_deliveries=1)
        self.persist = new_persist(self.chat.system.client, self.chat.system.database, settings)
        self.receipts = ReceiptsWorker(self.chat.system.client, self.chat.system.database, settings)
        self.given_out: dict[str, list[Any]] = {"system": [self.chat.system], "client": [self.chat.system.client]}
        self.before: Fingerprint | None = None
        self.without: frozenset[str] = frozenset()

    def teardown(self) -> None:
        """What was accepted, however odd, is the same on both sides, once it is stored."""
        try:
            self.work_persist()
            while self.persist.step():
                pass
            assert [difference for difference in check(self.chat.system) if difference.gid] == []
        finally:
            gateway = self.owners["Gateway"]
            assert isinstance(gateway, Gateway)
            gateway.close(clean=False)
            self.local.close()
            self.chat.close()

    @initialize()
    def begin(self) -> None:
        """Something to work on."""
        for gid in GIDS[:2]:
            self.chat.create_group(gid, UIDS)
        self.remember(self.chat.send(GIDS[0], "hi", sender_uid=UIDS[0]))
        self.chat.ack(UIDS[1], GIDS[0])
        self.work_poison()
        self.work_persist()
        self.work_receipts()
        self.remember(list(list_dead(self.chat.system.client)))
        self.given_out["sid"] = [self.chat.begin_session(UIDS[0])]
        self.given_out["dataset"] = [self.chat.system.client.query("HGET", CONFIG, "dataset").decode()]
        Device(self.chat, UIDS[0], self.local).sync()

    @rule(step=step())
    def take(self, step: tuple[Entry | str, dict[str, Any]]) -> None:
        entry, arguments = step
        if isinstance(entry, str):
            getattr(self, f"work_{entry}")()
            self.before = None
        elif entry.title not in self.without:
            self.call(entry, {name: resolved(value, self.lookup) for name, value in arguments.items()})

    def call(self, entry: Entry, arguments: dict[str, Any]) -> None:
        before = self.before or self.look()
        owner = self.owners.get(entry.owner)
        function = entry.function if owner is None else getattr(owner, entry.name)
        try:
            answer = self.taken(function(**arguments))
        except ImError as error:
            self.refused(entry, error, before)
            return
        self.before = None
        self.remember(answer)
        if entry.name == "begin_session":
            self.given_out.setdefault("sid", []).append(answer)

    def refused(self, entry: Entry, error: ImError, before: Fingerprint) -> None:
        self.before = self.look()
        assert str(error).strip()
        assert self.before == before, f"{entry.title} raised {error!r}, and yet something has changed"

    def look(self) -> Fingerprint:
        return fingerprint(self.chat, *self.files)

    def taken(self, answer: Any) -> Any:
        """Ask for all that an answer gives bit by bit."""
        if isinstance(answer, Listener):
            with answer:
                return answer.poll(0.0)
        if isinstance(answer, Gateway):
            answer.close()
        return list(islice(answer, _MOST)) if isinstance(answer, Iterator) else answer

    def remember(self, answer: Any) -> None:
        """Keep what was given out, to give it back in another call."""
        if isinstance(answer, list):
            for item in answer[:3]:
                self.remember(item)
        kinds = {
            Message: "message",
            Receipt: "receipt",
            HistoryPage: "page",
            Session: "session",
            Outgoing: "outgoing",
            DeadLetter: "dead",
        }
        if kind := kinds.get(type(answer)):
            self.given_out.setdefault(kind, []).append(answer.id if isinstance(answer, DeadLetter) else answer)
        if isinstance(answer, Message):
            self.given_out.setdefault("msgid", []).append(answer.msgid)

    def lookup(self, known: Known) -> Any:
        given_out = self.given_out.get(known.kind)
        return given_out[-1 - known.back % len(given_out)] if given_out else _NOTHING[known.kind]()

    def work_persist(self) -> None:
        with suppress(TryAgain):  # after an erasure, as after a repair, it reads its entries again
            self.persist.step()

    def work_receipts(self) -> None:
        self.receipts.step()

    def work_poison(self) -> None:
        """An entry that nobody can read becomes a dead letter."""
        client: Any = self.chat.system.client.driver
        client.xadd(self.chat.system.client.space.journal(0), {"kind": "nonsense", "gid": "\x1b[2J"})
