"""Receipts to the sender on real servers, with the worker as a process: few, right, and none lost."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import inspect, text

from imcore import Chat
from imcore import msgid as msgids
from imcore.device.local_database import LocalDatabase, path_of
from imcore.gateway.fanout import NewMessage, ReceiptsChanged, Session
from imcore.gateway.gateway import Gateway
from imcore.model.values import Receipt
from imcore.settings import Settings
from imcore.streams.calls import journal_calls, message_calls
from imcore.streams.client import RedisClient
from imcore.streams.journal import Journal
from imcore.workers.receipts import ReceiptsWorker
from tests.helpers.deadline import wait_until
from tests.helpers.processes import WorkerProcess
from tests.helpers.talk import say_many as say
from tests.helpers.workers import drain, run_bursts, start_worker

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

READERS = [f"u{number}" for number in range(40)]
WINDOW_MS = 200
MOST_S = 30.0


on_both = pytest.mark.parametrize("settings", ["valkey", "cluster"], indirect=True)


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    url = request.getfixturevalue(getattr(request, "param", "valkey"))
    return replace(
        Settings.from_env({}, redis_url=url, data_dir=str(tmp_path)), receipt_window_ms=WINDOW_MS, lease_ms=500
    )


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerProcess]:
    with start_worker(settings, "receipts") as worker:
        worker.wait_for("working as")
        yield worker


def read(chat: Chat, *uids: str, gid: str = "team", msgid: str | None = None) -> None:
    packed = None if msgid is None else msgids.pack(msgid)
    chat.system.client.call(message_calls.ack(chat.system.client.space, gid, [message_calls.AckTarget(packed, uids)]))


def live(chat: Chat, gid: str = "team") -> dict[str, tuple[int, int]]:
    return {each.message.msgid: (each.read, each.unread) for each in chat.status(gid, limit=0)}


class Sender:
    """A sender's live session: the digests it got, and the newest tally of each message."""

    def __init__(self, gateway: Gateway, uid: str = "ann") -> None:
        self.gateway = gateway
        self.session: Session = gateway.open(uid)
        self.digests: list[tuple[Receipt, ...]] = []
        self.others: dict[Session, int] = {}
        self.until(lambda: self.session.is_synced)

    @property
    def tallies(self) -> dict[str, tuple[int, int]]:
        return {each.msgid: (each.read, each.unread) for digest in self.digests for each in digest}

    def poll(self, timeout_s: float = 0.05) -> None:
        for event in self.gateway.poll(timeout_s):
            if isinstance(event, ReceiptsChanged) and self.session in event.sessions:
                self.digests.append(event.receipts)
            elif isinstance(event, NewMessage):
                for session in event.sessions:
                    self.others[session] = self.others.get(session, 0) + 1

    def until(self, condition: Callable[[], object]) -> None:
        give_up = time.monotonic() + MOST_S
        while not condition():
            assert time.monotonic() < give_up, f"not so within {MOST_S} s; told {self.tallies}"
            self.poll()

    def settled(self) -> None:
        """Wait until no digest has come for some windows."""
        quiet_until = time.monotonic() + 4 * WINDOW_MS / 1000
        while time.monotonic() < quiet_until:
            before = len(self.digests)
            self.poll()
            if len(self.digests) > before:
                quiet_until = time.monotonic() + 4 * WINDOW_MS / 1000


@on_both
def test_one_message_read_by_forty_in_a_window_makes_one_digest(chat: Chat, worker: WorkerProcess) -> None:
    chat.create_group("team", ["ann", *READERS])
    with chat.gateway() as gateway:
        ann = Sender(gateway)
        [message] = say(chat, 1)
        began = time.monotonic()
        for uid in READERS:
            read(chat, uid)
        ann.until(lambda: ann.tallies == {message: (40, 0)})
        windows = (time.monotonic() - began) / (WINDOW_MS / 1000)
        ann.settled()
    # Then it is one, unless this took several windows
    assert 1 <= len(ann.digests) <= windows
    assert [(each.msgid, each.read, each.unread) for each in ann.digests[-1]] == [(message, 40, 0)]


def test_a_hundred_messages_read_by_forty_do_not_storm(chat: Chat, settings: Settings, worker: WorkerProcess) -> None:
    # Given a group of 200 with 40 online
    uids = READERS + [f"away{number}" for number in range(159)]
    chat.create_group("team", ["ann", *uids])
    with chat.gateway() as gateway:
        readers = [gateway.open(uid) for uid in READERS]
        ann = Sender(gateway)
        began = time.monotonic()
        # When
        sent = []
        for _ in range(100):
            sent += say(chat, 1)
            ann.poll(0)
        ann.until(lambda: all(ann.others.get(session) == 100 for session in readers))
        ann.until(lambda: ann.tallies == dict.fromkeys(sent, (40, 159)))
        ann.settled()
        windows = (time.monotonic() - began) / (WINDOW_MS / 1000)
    # Then
    assert len(moves(chat)) <= 400
    assert 1 <= len(ann.digests) <= windows
    assert ann.tallies == live(chat)
    run_bursts(settings, "persist")
    assert rows(chat)["group_msgs"] == 100
    assert rows(chat)["group_spans"] == 200
    assert sum(rows(chat).values()) < 1000  # a row for each receipt would make 19,900


def moves(chat: Chat) -> list[bytes]:
    """The acks that moved an offset, as the journal has them."""
    acks: list[bytes] = []
    for key in chat.system.client.space.journals():
        for _, fields in chat.system.client.query("XRANGE", key, "-", "+"):
            acks += fields[b"moves"].split(b"\x1e") if fields[b"kind"] == b"ack" else []
    return [each for each in acks if not each.startswith(b"ann\x1f")]


def rows(chat: Chat) -> dict[str, int]:
    with chat.system.database.connection() as connection:
        names = inspect(connection).get_table_names()
        return {name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in names}


@on_both
def test_offline_and_online_senders_see_the_same_receipts(
    chat: Chat, settings: Settings, worker: WorkerProcess
) -> None:
    # Given ann who is online, and bob who is not, and who both talk
    chat.create_group("team", ["ann", "bob", *READERS])
    chat.create_group("home", ["ann", "bob", "cyd"])
    with chat.gateway() as gateway:
        ann = Sender(gateway)
        hers = say(chat, 30)
        his = say(chat, 30, sender="bob")
        for uid in READERS[:10]:
            read(chat, uid, msgid=his[4])
        his_at_home = say(chat, 600, gid="home", sender="bob")
        read(chat, "cyd", gid="home")
        for uid in READERS[10:15]:
            read(chat, uid)
        chat.remove_members("team", [READERS[0]])
        ann.until(lambda: {msgid: live(chat)[msgid] for msgid in hers}.items() <= ann.tallies.items())
        ann.settled()
    run_bursts(settings, "receipts")
    # When bob comes, with an empty local database
    with LocalDatabase(path_of(settings.data_dir, "bob"), "bob") as local:
        local.keep(chat.receipts("bob"))
        # Then
    tallies = {each.msgid: (each.read, each.unread) for each in chat.receipts("bob")}
    everything = {**live(chat), **live(chat, "home")}
    assert tallies == {msgid: everything[msgid] for msgid in his + his_at_home if everything[msgid][0]}
    assert len(tallies) == 630


def test_receipts_of_messages_that_redis_no_longer_has(chat: Chat, settings: Settings) -> None:
    chat.create_group("team", ["ann", "bob", "cyd"])
    sent = say(chat, 1500)
    run_bursts(settings, "persist")
    chat.system.client.call(message_calls.trim(chat.system.client.space, "team", msgids.pack(sent[1200])))
    chat.ack("bob", "team", sent[1400])
    chat.ack("cyd", "team", sent[3])
    run_bursts(settings, "receipts")
    with chat.gateway() as gateway:
        ann = Sender(gateway)
        ann.until(lambda: len(ann.tallies) == 1401)
    assert ann.tallies == {msgid: tally for msgid, tally in live(chat).items() if tally[0]}


def test_a_worker_killed_again_and_again_leaves_no_tally_wrong(chat: Chat, settings: Settings) -> None:
    chat.create_group("team", ["ann", *READERS])
    with chat.gateway() as gateway:
        ann = Sender(gateway)
        sent = []
        for number, uid in enumerate(READERS[:6]):
            with start_worker(settings, "receipts", receipt_window_ms=20) as worker:
                worker.wait_for("working as")
                sent += say(chat, 3)
                read(chat, uid)
                digests = len(ann.digests)
                if number % 3:
                    ann.until(lambda digests=digests: len(ann.digests) > digests)
        run_bursts(settings, "receipts")
        ann.until(lambda: ann.tallies == live(chat))


@on_both
def test_two_workers_never_send_an_older_tally_last(
    chat: Chat, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that has seen the ack of bob, and is slow to publish it
    prompt = replace(settings, receipt_window_ms=0, block_ms=20)
    slow, quick = (ReceiptsWorker(chat.system.client, chat.system.database, prompt) for _ in range(2))
    chat.create_group("team", ["ann", "bob", "cyd", "dan"])
    with closing(slow), closing(quick), chat.gateway() as gateway:
        ann = Sender(gateway)
        say(chat, 1)
        drain(quick)
        read(chat, "bob")
        changes_of = slow._changes

        def slowly(*args: Any) -> Any:
            changes = changes_of(*args)
            monkeypatch.setattr(slow, "_changes", changes_of)
            read(chat, "cyd", "dan")
            wait_until(quick.step)  # which tells that all three have
            return changes

        # When
        monkeypatch.setattr(slow, "_changes", slowly)
        wait_until(slow.step)
        ann.settled()
    # Then
    assert len(ann.digests) == 2
    assert [[(each.read, each.unread) for each in digest] for digest in ann.digests][-1] == [(3, 0)]


@on_both
def test_two_workers_side_by_side_publish_all_receipts(chat: Chat, settings: Settings) -> None:
    gids = [f"g{number}" for number in range(16)]
    for gid in gids:
        chat.create_group(gid, ["ann", *READERS])
    with (
        chat.gateway() as gateway,
        start_worker(settings, "receipts") as one,
        start_worker(settings, "receipts") as two,
    ):
        ann = Sender(gateway)
        for worker in (one, two):
            worker.wait_for("working as")
        for uid in READERS:
            for gid in gids:
                say(chat, 1, gid=gid)
                read(chat, uid, gid=gid)
            ann.poll(0)
        everything = {msgid: tally for gid in gids for msgid, tally in live(chat, gid).items()}
        ann.until(lambda: kept(ann) == everything)


def test_no_other_worker_claims_entries_during_a_window_longer_than_the_lease(chat: Chat, settings: Settings) -> None:
    # Given a worker in its window
    short_lease = replace(settings, receipt_window_ms=2500, lease_ms=800, block_ms=20)
    chat.create_group("team", ["ann", "bob"])
    say(chat, 1)
    read(chat, "bob")
    worker = ReceiptsWorker(chat.system.client, chat.system.database, short_lease)
    with closing(RedisClient.connect(settings)) as client, closing(Journal(client, "receipts", short_lease)) as other:
        space, partition = client.space, client.space.partition_of("team")
        client.call(journal_calls.create_group(space, partition, "receipts"))
        step = Thread(target=worker.step)
        step.start()
        try:
            wait_until(lambda: client.call(journal_calls.consumers(space, partition, "receipts")))
            # When
            claimed = []
            while step.is_alive():
                claimed += other.read()
        finally:
            step.join()
        # Then
        assert claimed == []
        assert worker.drained()
    worker.close()


def test_an_idle_worker_keeps_its_lease_while_it_waits_for_entries(chat: Chat, settings: Settings) -> None:
    chat.create_group("team", ["ann"])
    client = chat.system.client
    with closing(Journal(client, "receipts", replace(settings, lease_ms=300, block_ms=1500))) as journal:
        for _ in range(5):
            journal.read()
            assert client.call(journal_calls.is_held("receipts", 1))


def kept(sender: Sender) -> dict[str, tuple[int, int]]:
    """What a client keeps: of two tallies of a message the one with more readers, whichever came later."""
    tallies: dict[str, tuple[int, int]] = {}
    for digest in sender.digests:
        for receipt in digest:
            tallies[receipt.msgid] = max(tallies.get(receipt.msgid, (0, 0)), (receipt.read, receipt.unread))
    return tallies


def test_without_a_window_digests_are_sent_at_once(chat: Chat, settings: Settings) -> None:
    worker = ReceiptsWorker(
        chat.system.client, chat.system.database, replace(settings, receipt_window_ms=0, block_ms=10)
    )
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        ann = Sender(gateway)
        [message] = say(chat, 1)
        read(chat, "bob")
        wait_until(lambda: worker.step() and chat.receipts("ann"))
        ann.until(lambda: ann.tallies == {message: (1, 0)})
    worker.close()
