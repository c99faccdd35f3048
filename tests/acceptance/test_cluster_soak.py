"""Storms on a cluster of three shards with replicas, on PostgreSQL, while all is killed, stopped, replaced and moved.

Eight groups, 40 live sessions, two workers of each kind. Nothing that was confirmed may be lost or be there twice,
each session gets each message once, in order and without holes, every tally is that of the brute-force model, and
`im check` finds nothing.

Counted apart are, by what the documents say of failovers of asynchronous replication:

- ghosts: messages that sessions were pushed, and no server has, since a replica took over that had not received them.
  They are taken back (`Rewound`); only sessions that a kill ended before that keep them;
- only where a replica that lagged took over: acks of which the same is true; a send that was repeated before a worker
  noticed that the server was older than SQL, and is stored twice (imcore/repair/README.md); sessions that returned to
  their offset, since lost messages came back before where they were, and such messages that were left out, since
  an ack or a send had passed them before (there, too).

A short form, with some kinds of faults, runs with the other tests. It leaves out a replica that lagged: once, seqs in
SQL had a hole after that, which is not explained yet. The long form has so many faults, of all kinds:

    IM_CLUSTER_FAULTS=200 pytest -s tests/acceptance/test_cluster_soak.py

`IM_CLUSTER_SEED` repeats the choices of a run, though not its moments; `IM_CLUSTER_ONLY` takes the faults whose names
have these words.
"""

import os
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from imcore import msgid as msgids
from imcore.admin.stats import stats
from imcore.errors import TryAgain
from imcore.repair.check import check
from tests.helpers.cluster_soak.audience import ALL_OPEN
from tests.helpers.cluster_soak.faults import BEHIND, Faults
from tests.helpers.cluster_soak.stack import ClusterSoak, Sizes
from tests.helpers.cluster_soak.storm import GOES_ON
from tests.helpers.cluster_soak.verdict import (
    Sessions,
    Told,
    deliveries_of,
    doubles_of,
    faults_of_messages,
    group_of,
    stored_messages,
)
from tests.helpers.deadline import wait_until
from tests.helpers.postgres import require_postgres, running_postgres
from tests.helpers.servers import require_server
from tests.helpers.soak.verdict import compare_view, tally
from tests.model.compare import compare_group, compare_names, compare_offsets
from tests.model.reference import Model, ModelGroup

COUNT = int(os.environ.get("IM_CLUSTER_FAULTS", "9"))
SEED = int(os.environ.get("IM_CLUSTER_SEED", time.time_ns() % 1_000_000))
ONLY = os.environ.get("IM_CLUSTER_ONLY", "")
WITHOUT = () if "IM_CLUSTER_FAULTS" in os.environ else (BEHIND,)
SETTLE_S = 240.0
NAMES_OF = 20
"""So many messages of a group have the names of their readers compared."""


@pytest.fixture
def soak(tmp_path: Path) -> Iterator[ClusterSoak]:
    require_server()
    require_postgres()
    with running_postgres() as postgres:
        soak = ClusterSoak(tmp_path, postgres.new_database(), Sizes(), SEED)
        yield soak
        soak.close()


def test_whatever_befalls_a_cluster_nothing_confirmed_is_lost_and_every_count_is_right(soak: ClusterSoak) -> None:
    # Given
    print(f"\nIM_CLUSTER_SEED={SEED} {soak.folder}")
    chance, began = random.Random(SEED), time.monotonic()
    soak.begin()
    wait_until(lambda: all(ALL_OPEN in each.process.log for each in soak.of_kind("gateway")), timeout_s=SETTLE_S)
    soak.storm()

    # When
    faults = Faults(soak, chance)
    faults.strike(COUNT, only=ONLY, without=WITHOUT)
    settle(soak)

    # Then
    told, sessions = Told.of(soak.records("storm")), Sessions.of(soak.records("audience"))
    messages = {gid: stored_messages(soak.chat, gid) for gid in soak.gids}
    wrong = [fault for gid in soak.gids for fault in faults_of_messages(gid, messages[gid], told)]
    came_back = {gid for line in mended(soak) for gid in soak.gids if f"group '{gid}': " in line}
    heard = {gid: deliveries_of(gid, messages[gid], sessions.heard, came_back=gid in came_back) for gid in soak.gids}
    wrong += [fault for each in heard.values() for fault in each.faults]
    lost_acks = acks_lost(soak, told)
    doubles = sum(len(doubles_of(messages[gid])) for gid in soak.gids)
    ghosts = sum(len(each.ghosts) for each in heard.values())
    print(
        f"{sum(soak.struck.values())} faults {dict(soak.struck)}, {sum(map(len, messages.values()))} messages,"
        f" {len(told.confirmed)} answers, {told.acks} acks by hand, {sum(each.handed for each in heard.values())}"
        f" handed to {len(sessions.heard)} sessions, {ghosts} ghosts, {doubles} doubles,"
        f" {len(mended(soak))} groups mended, {sum(each.returns for each in heard.values())} returns,"
        f" {sum(each.unheard for each in heard.values())} unheard, {len(lost_acks)} acks lost,"
        f" {time.monotonic() - began:.0f} s"
    )
    assert not wrong, "\n".join([f"{len(wrong)} faults", *wrong[:40]])
    if not soak.struck[BEHIND]:
        assert (lost_acks, doubles, mended(soak)) == ([], 0, [])
    if not soak.struck["gateway killed"]:
        assert ghosts == 0
    assert told.holes == []
    groups = {gid: group_of(messages[gid], ack_once_more(soak, gid, chance)) for gid in soak.gids}
    all_is_told(soak, groups)
    soak.end("gateway", "persist", "receipts")
    compare(soak, groups)
    no_leftovers(soak)


# The end.


def settle(soak: ClusterSoak) -> None:
    """Let all that was struck come back; end the storms; wait until all is stored, and all sessions have acked."""
    wait_until(soak.all_run, timeout_s=SETTLE_S)
    soak.shards.wait_until_whole()
    for member in soak.of_kind("storm"):
        wait_until(lambda member=member: GOES_ON in member.process.log, timeout_s=SETTLE_S)  # type: ignore[misc]
    soak.end("storm")
    for member in soak.of_kind("gateway"):
        wait_until(lambda member=member: ALL_OPEN in member.process.log, timeout_s=SETTLE_S)  # type: ignore[misc]
    wait_until(partial(is_settled, soak), timeout_s=SETTLE_S)


def is_settled(soak: ClusterSoak) -> bool:
    soak.look_after()
    try:
        if any(worker.backlog for worker in stats(soak.chat.system).workers):
            return False
        newest = {gid: soak.chat.group(gid).last_msgid for gid in soak.gids}
        live = [member for gid in soak.gids for member in soak.chat.members(gid) if member.uid in soak.users]
    except TryAgain:
        return False
    return all(member.last_ack_msgid == newest[member.gid] for member in live)


def mended(soak: ClusterSoak) -> list[str]:
    """What workers have logged of groups in which a server was older than SQL."""
    logs = (path.read_text() for path in (soak.folder / "workers").glob("*.log"))
    return [line for log in logs for line in log.splitlines() if "lost messages are back" in line]


def acks_lost(soak: ClusterSoak, told: Told) -> list[tuple[str, str, str]]:
    """Return confirmed acks of readers that are lost, with the gid and the uid."""
    now = {(gid, member.uid): member.last_ack_msgid for gid in soak.gids for member in soak.chat.members(gid)}
    return [
        (gid, uid, msgid)
        for (gid, uid), msgid in told.acked.items()
        if msgids.pack(now[gid, uid] or msgid) < msgids.pack(msgid) or now[gid, uid] is None
    ]


def ack_once_more(soak: ClusterSoak, gid: str, chance: random.Random) -> dict[str, str | None]:
    """Let each reader ack some message for the last time; return all offsets that there must be."""
    messages = stored_messages(soak.chat, gid)
    offsets: dict[str, str | None] = {member.uid: member.last_ack_msgid for member in soak.chat.members(gid)}
    assert set(offsets) == {*soak.users, *soak.readers}
    seqs = {None: 0, **{message.msgid: message.seq for message in messages}}
    for uid in soak.readers:
        target = messages[chance.randint(max(0, seqs[offsets[uid]] - 1), len(messages) - 1)]
        offsets[uid] = soak.chat.ack(uid, gid, target.msgid).last_ack_msgid
        assert offsets[uid] == target.msgid
    return offsets


def all_is_told(soak: ClusterSoak, groups: dict[str, ModelGroup]) -> None:
    """Wait until the sessions of the senders were told the tallies of the model."""
    due = {
        (gid, message.msgid): tally(group, message)
        for gid, group in groups.items()
        for message in group.messages
        if tally(group, message)[0]
    }

    def left() -> dict[tuple[str, str], object]:
        tallies = Sessions.of(soak.records("audience")).tallies
        return {key: (counts, tallies.get(key)) for key, counts in due.items() if tallies.get(key) != counts}

    try:
        wait_until(lambda: not left(), timeout_s=SETTLE_S)
    except AssertionError:
        assert left() == {}
        raise


def compare(soak: ClusterSoak, groups: dict[str, ModelGroup]) -> None:
    """Live from Redis and from SQL, every tally is the model's; `im check` finds nothing."""
    model = Model(groups)
    wait_until(lambda: not soak.chat.online(soak.users), timeout_s=SETTLE_S)
    for gid, group in groups.items():
        compare_group(soak.chat, model, gid)
        compare_offsets(soak.chat, model, gid)
        compare_names(soak.chat, model, gid, group.messages[:: max(1, group.newest // NAMES_OF)])
        compare_view(soak.chat, gid, group)
    differences = [each for each in check(soak.chat.system) if "worker persist runs" not in each.what]
    assert differences == []


def no_leftovers(soak: ClusterSoak) -> None:
    """There is no dead letter, and no worker has failed in a way that nobody expects."""
    assert stats(soak.chat.system).dead_letters == 0
    for path in soak.folder.glob("*/*.log"):
        assert "Traceback" not in path.read_text(), path.read_text()
