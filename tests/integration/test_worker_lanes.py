"""Workers on a cluster: a silent node stops nothing of the partitions that others have."""

import os
import signal
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import pytest

from imcore import Chat
from imcore.model.values import Draft
from imcore.repair.check import check
from imcore.settings import Settings
from imcore.streams import consumers
from imcore.streams.calls import policy_calls
from imcore.streams.calls.message_calls import AckTarget, ack, send
from imcore.streams.cluster import server_of
from imcore.streams.keys import CONFIG
from tests.helpers.deadline import wait_until
from tests.helpers.servers import RunningCluster, RunningServer
from tests.helpers.worker_runs import count
from tests.helpers.workers import start_worker

# The driver forgets sockets of a cluster's nodes when one of them has failed.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

PARTITIONS = 6
EACH = 20
"""The messages that are sent to a group at once."""
SOON_S = 8.0
"""Less than the time after which a call to the silent node fails, so nothing has waited for that."""


@pytest.fixture
def redis_url(cluster: str) -> str:
    return cluster


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, partitions=PARTITIONS, lease_ms=1500, block_ms=500)


@pytest.fixture
def gids(chat: Chat) -> list[str]:
    """A group of ann and bob in each partition, in order."""
    space = chat.system.client.space
    found: dict[int, str] = {}
    number = 0
    while len(found) < PARTITIONS:
        found.setdefault(space.partition_of(f"g{number}"), f"g{number}")
        number += 1
    chat.system.database.upgrade()
    for gid in found.values():
        chat.create_group(gid, ["ann", "bob"])
    return [found[partition] for partition in range(PARTITIONS)]


class _Talk:
    """Ann sends to some groups, and bob reads that; each call concerns the nodes of these groups only."""

    def __init__(self, chat: Chat) -> None:
        self._client = chat.system.client
        self._database = chat.system.database
        self.sent = 0

    def send(self, gids: Sequence[str], text: str) -> None:
        for gid in gids:
            self._client.call(send(self._client.space, gid, [Draft("ann", f"{text}: {n}") for n in range(EACH)], 1000))
            self._client.call(ack(self._client.space, gid, [AckTarget(None, ["bob"])]))
        self.sent += EACH * len(gids)

    def is_stored(self, gids: Sequence[str], text: str) -> bool:
        """Whether SQL has all messages with a text of these groups."""
        rows = (row for gid in gids for row in self._database.messages_after(gid, 0))
        return sum(row.content.startswith(f"{text}:") for row in rows) == EACH * len(gids)

    def is_told(self, gids: Sequence[str], messages: int) -> bool:
        return all(self.told(gid) == messages for gid in gids)

    def told(self, gid: str) -> int:
        """How many messages of a group have tallies that ann was told of."""
        told: int = self._client.query("ZCARD", self._client.space.group(gid).dirty("ann"))
        return told


def pending(chat: Chat, partitions: Collection[int]) -> set[int]:
    """The partitions among these where `persist` has entries in hand."""
    space, driver = chat.system.client.space, chat.system.client.driver
    return {p for p in partitions if driver.xpending(space.journal(p), "persist")["pending"]}


def partitions_of(chat: Chat, node: RunningServer) -> set[int]:
    port, space = node.port, chat.system.client.space
    return {p for p in range(PARTITIONS) if port_of_key(chat, space.journal(p)) == port}


def port_of_key(chat: Chat, key: str) -> int:
    return int(server_of(chat.system.client.driver, key).connection_pool.connection_kwargs["port"])


@pytest.mark.parametrize("number", range(3))
def test_a_silent_node_stops_nothing_of_the_others(
    chat: Chat, settings: Settings, gids: list[str], cluster_servers: RunningCluster, number: int
) -> None:
    node, talk = cluster_servers.nodes[number], _Talk(chat)
    silent = partitions_of(chat, node)
    sound = [gid for partition, gid in enumerate(gids) if partition not in silent]
    assert 0 < len(sound) < PARTITIONS, "each node has some partition"
    with start_worker(settings) as persist, start_worker(settings, "receipts") as receipts:
        # Given workers that have done some of everything
        talk.send(gids, "before")
        wait_until(lambda: count(chat.system.database) == talk.sent)
        wait_until(lambda: all(talk.told(gid) == EACH for gid in gids))

        # When a node falls silent with work in it
        talk.send(gids, "last")
        with node.halted():
            # Then the others' messages are stored and their receipts come, also while the workers look at everything
            begun, turn = time.monotonic(), 0
            while turn < 3 or time.monotonic() < begun + 2 * settings.lease_ms / 1000:
                turn += 1
                talk.send(sound, f"turn {turn}")
                wait_until(partial(talk.is_stored, sound, f"turn {turn}"), SOON_S)
                wait_until(partial(talk.is_told, sound, EACH * (turn + 2)), SOON_S)

        # And the rest comes when it is back, and nothing twice
        wait_until(lambda: count(chat.system.database) == talk.sent)
        wait_until(lambda: all(talk.told(gid) == EACH * 2 for gid in gids if gid not in sound))
        assert (persist.end(), receipts.end()) == (0, 0)
    for name in ("persist", "receipts"):
        with start_worker(settings, name, "--burst") as burst:
            assert burst.wait() == 0
    assert count(chat.system.database) == talk.sent
    assert list(check(chat.system)) == []


@pytest.mark.parametrize("number", range(3))
def test_a_worker_that_begins_while_a_node_is_silent_serves_the_others(
    chat: Chat, settings: Settings, gids: list[str], cluster_servers: RunningCluster, number: int
) -> None:
    node, talk = cluster_servers.nodes[number], _Talk(chat)
    silent = partitions_of(chat, node)
    sound = [gid for partition, gid in enumerate(gids) if partition not in silent]
    settings = replace(settings, redis_url=cluster_servers.url_of_all)
    has_configuration = node.port == port_of_key(chat, CONFIG)
    with start_worker(settings) as former:
        talk.send(gids, "before")
        wait_until(lambda: count(chat.system.database) == talk.sent)
        assert former.end() == 0
    talk.send(sound, "now")
    with node.halted(), start_worker(settings) as persist, start_worker(settings, "receipts") as receipts:
        wait_until(partial(talk.is_told, sound, 2 * EACH), 60)
        if not has_configuration:  # else it may be that somebody rebuilds Redis
            wait_until(partial(talk.is_stored, sound, "now"), 60)
        os.kill(node.pid, signal.SIGCONT)
        # The rest comes when the node is back
        talk.send(gids, "then")
        wait_until(lambda: count(chat.system.database) == talk.sent)
        wait_until(lambda: all(talk.told(gid) for gid in gids))
        assert (persist.end(), receipts.end()) == (0, 0)
    assert list(check(chat.system)) == []


def test_a_choice_for_all_partitions_waits_for_the_silent_one_alone(
    chat: Chat, settings: Settings, gids: list[str], cluster_servers: RunningCluster
) -> None:
    client, talk, node = chat.system.client, _Talk(chat), cluster_servers.nodes[0]
    silent = partitions_of(chat, node)
    uid = next(f"u{n}" for n in range(100) if client.space.partition_of(f"u{n}") not in silent)
    own = client.space.partition_of(uid)
    with start_worker(settings) as persist:
        talk.send(gids, "before")
        wait_until(lambda: count(chat.system.database) == talk.sent)

        # When a user chooses to read in private while a node is silent
        with node.halted():
            client.call(policy_calls.set_receipts(client.space, own, uid, is_off=True))
            for turn in range(3):
                # Then the user's partition goes on
                talk.send([gids[own]], f"turn {turn}")
                wait_until(partial(talk.is_stored, [gids[own]], f"turn {turn}"), SOON_S)
            assert own in pending(chat, set(range(PARTITIONS)) - silent)

        # And the choice is everywhere once the node is back
        wait_until(lambda: pending(chat, range(PARTITIONS)) == set())
        off = [client.query("SISMEMBER", client.space.receipts_off(p), uid) for p in range(PARTITIONS)]
        assert off == [1] * PARTITIONS
        assert persist.end() == 0
    assert list(check(chat.system)) == []


def test_a_signal_ends_all_lanes_while_one_hangs(
    chat: Chat, settings: Settings, gids: list[str], cluster_servers: RunningCluster
) -> None:
    node, client = cluster_servers.nodes[1], chat.system.client
    sound = sorted(set(range(PARTITIONS)) - partitions_of(chat, node))
    _Talk(chat).send(gids, "before")
    with start_worker(settings, lease_ms=60_000) as persist:
        wait_until(lambda: count(chat.system.database) == EACH * PARTITIONS)
        with node.halted():
            assert persist.end() == 0
            # The names are free where somebody answers: the next process need not wait for the leases to end
            assert [consumers.count_alive(client.query_many, "persist", p) for p in sound] == [0] * len(sound)


def test_who_serves_a_cluster(chat: Chat, settings: Settings, gids: list[str]) -> None:
    talk, client = _Talk(chat), chat.system.client
    talk.send(gids, "before")
    assert consumers.missing_kinds(client) == ["persist", "receipts"]
    with start_worker(settings) as first, start_worker(settings) as second:
        wait_until(lambda: consumers.alive_in(client, "persist") == dict.fromkeys(range(PARTITIONS), 2))
        assert consumers.missing_kinds(client) == ["receipts"]

        # A process that ends gives all its names back at once; what a killed one had is taken over
        assert first.end() == 0
        assert consumers.alive_in(client, "persist") == dict.fromkeys(range(PARTITIONS), 1)
        second.kill()
    with start_worker(settings) as third:
        talk.send(gids, "after")
        wait_until(lambda: count(chat.system.database) == talk.sent)
        wait_until(lambda: consumers.silent_holders(client, settings) == ())
        assert third.log.count("working as persist-") >= PARTITIONS
        assert third.end() == 0
