"""Real chat is replayed by several senders while workers, sessions, senders and the server are killed at random.

Nothing may be lost or be there twice, no offset may go back, and every count has to be that of the brute-force model.

A short form runs with the other tests. The long form, on SQLite and on PostgreSQL, with so many kills on each:

    IM_SOAK_KILLS=200 pytest -s tests/acceptance/test_soak.py

`IM_SOAK_SEED` repeats the choices of a run, though not its moments; `-k sqlite` or `-k postgresql` takes one.
"""

import os
import random
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from imcore.admin import retention
from imcore.admin.stats import stats
from imcore.device.local_database import LocalDatabase, path_of
from imcore.errors import LocalDatabaseError, TryAgain
from imcore.repair.check import check
from tests.helpers.chat_data import chat_files
from tests.helpers.commands import Listening, events_in
from tests.helpers.deadline import wait_until
from tests.helpers.postgres import require_postgres, running_postgres
from tests.helpers.processes import PythonProcess
from tests.helpers.servers import require_server
from tests.helpers.soak.diary import read_diary
from tests.helpers.soak.observer import Observer
from tests.helpers.soak.script import scenes_of
from tests.helpers.soak.stack import KEEP_MESSAGES, Part, Soak
from tests.helpers.soak.talker import GOES_ON
from tests.helpers.soak.verdict import Local, Written, ack_once_more, compare_view, group_as_told, local_as_due
from tests.model.compare import compare_group, compare_names, compare_offsets
from tests.model.reference import Model, ModelGroup

KILLS = int(os.environ.get("IM_SOAK_KILLS", "12"))
SEED = int(os.environ.get("IM_SOAK_SEED", time.time_ns() % 1_000_000))
LONG = KILLS > 12
CHATS = (chat_files()[:-1] or chat_files()) if LONG else chat_files()[:1]
LISTENERS, TALKERS = (6, 4) if LONG else (2, 2)
SETTLE_S = 300 if LONG else 60
ODDS = {"server": 3, "persist": 3, "receipts": 3, "jobs": 1, "session": 5, "talker": 3}
MOST_AT_ONCE = 6
"""Two workers of a kind, and those killed whose lease has not ended, have names of their own."""

KEPT = {
    *("im:config", "groups", "groups_of", "meta", "stream", "acked", "joined", "left", "own_unacked", "recalled"),
    *(
        "idempotency_newer",
        "idempotency_older",
        "journal",
        "dirty",
        "version",
        "online",
        "online_ms",
        "last_seen",
        "watermarks",
        "coalescing",
    ),
}
"""The keys that may be there when nobody does anything."""


@pytest.fixture(params=["sqlite", "postgresql"] if LONG else ["sqlite"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """None is the SQLite file of the data directory."""
    if request.param == "sqlite":
        yield None
        return
    require_postgres()
    with running_postgres() as server:
        yield server.new_database()


@pytest.fixture
def soak(tmp_path: Path, database_url: str | None) -> Iterator[Soak]:
    require_server()
    soak = Soak(tmp_path, database_url, scenes_of(CHATS), LISTENERS, TALKERS, SEED)
    yield soak
    soak.close()


def test_whatever_is_killed_nothing_is_lost_or_there_twice_and_every_count_is_right(soak: Soak) -> None:
    # Given
    print(f"\nIM_SOAK_SEED={SEED}")
    chance, began = random.Random(SEED), time.monotonic()
    gids = [scene.gid for scene in soak.scenes]
    soak.begin()
    wait_until(lambda: all(has_begun(soak, uid) for uid in soak.listeners), timeout_s=SETTLE_S)
    soak.talk()
    with closing(Observer(soak.settings, gids, random.Random(SEED))) as observer:
        # When
        written = kill_at_random(soak, observer, chance)
        bring_all_back(soak)
        end_talkers(soak)
        wait_until(lambda: is_stored(soak), timeout_s=SETTLE_S)

        # Then the state agrees with the answers
        diaries = [read_diary(path) for path in soak.diaries]
        groups = {scene.gid: group_as_told(soak.chat, scene, soak.listeners, diaries, written) for scene in soak.scenes}
        for gid, group in groups.items():
            ack_once_more(soak.chat, gid, group, soak.listeners, chance)
        settle(soak, groups)
        retention.trim(
            soak.chat.system, keep_messages=10
        )  # so little may have been said that there was nothing to trim yet
        observer.raise_faults()
    all_agrees(soak)
    end_all(soak)
    all_was_shown(soak, groups)
    all_agrees(soak)
    assert any(is_trimmed(soak, gid) for gid in gids)
    compare(soak, groups)
    no_leftovers(soak)
    print(
        f"{sum(soak.killed.values())} kills {dict(soak.killed)}, {sum(group.newest for group in groups.values())}"
        f" messages in {len(gids)} groups, {sum(len(diary.acked) for diary in diaries)} acks,"
        f" {sum(len(diary.turns) for diary in diaries)} came or went, {observer.looks} looks,"
        f" {time.monotonic() - began:.0f} s"
    )


# While people talk.


def kill_at_random(soak: Soak, observer: Observer, chance: random.Random) -> list[Written]:
    """Kill random processes, each kind at least once; meanwhile write messages offline and trim streams."""
    kinds = chance.sample(list(ODDS), len(ODDS))
    kinds += chance.choices(list(ODDS), list(ODDS.values()), k=max(0, KILLS - len(kinds)))
    written: list[Written] = []
    for number, kind in enumerate(kinds):
        pass_time(soak, chance.uniform(0.1, 1.2))
        observer.raise_faults()
        written.append(write_offline(soak, chance, number))
        part = wait_until(partial(pick, soak, chance, kind), timeout_s=SETTLE_S)
        soak.kill(part, chance.uniform(0, 1.5))
        if chance.random() < 0.3:
            trim(soak)
        if number % 20 == 10:
            look_for_differences(soak)
    return written


def pick(soak: Soak, chance: random.Random, kind: str) -> Part | None:
    """Some process of a kind that runs, if there is one."""
    soak.look_after()
    return soak.pick(chance, kind)


def pass_time(soak: Soak, seconds: float) -> None:
    """Let these seconds pass; what was killed comes back meanwhile."""
    until = time.monotonic() + seconds

    def is_over() -> bool:
        soak.look_after()
        return time.monotonic() >= until

    wait_until(is_over, timeout_s=seconds + 60)


def write_offline(soak: Soak, chance: random.Random, number: int) -> Written:
    """Put a message into the outbox of a listener, whose session sends it, now or once it lives again."""
    uid, gid, content = chance.choice(soak.listeners), chance.choice(soak.scenes).gid, f"written offline {number}"
    with LocalDatabase(path_of(soak.folder, uid), uid) as local:
        return Written(gid, uid, local.queue(gid, content).client_msgid, content)


def trim(soak: Soak) -> None:
    """Trim, as the worker `jobs` does less often."""
    with suppress(TryAgain):  # the server is away
        retention.trim(soak.chat.system, keep_messages=KEEP_MESSAGES // 2)


def look_for_differences(soak: Soak) -> None:
    """While people talk, `check` sees no difference, but that perhaps no worker lives at this moment."""
    try:
        differences = [each for each in check(soak.chat.system) if each.what != "journal: no worker persist runs"]
    except TryAgain:
        return
    assert differences == []


# The end.


def bring_all_back(soak: Soak) -> None:
    def all_run() -> bool:
        soak.look_after()
        return all(part.back_at is None and part.process.runs for part in soak.parts)

    wait_until(all_run, timeout_s=SETTLE_S)


def end_talkers(soak: Soak) -> None:
    for part in soak.of_kind("talker"):
        assert isinstance(part.process, PythonProcess)
        part.process.wait_for(GOES_ON)
        assert part.process.end() == 0, part.process.log
        soak.parts.remove(part)


def is_stored(soak: Soak) -> bool:
    """Whether the outboxes are empty and the workers have handled everything."""
    soak.look_after()
    sent = all(state != "waiting" for uid in soak.listeners for *_, state in local_of(soak, uid))
    return sent and all(worker.backlog == 0 for worker in stats(soak.chat.system).workers)


def settle(soak: Soak, groups: dict[str, ModelGroup]) -> None:
    """Wait until the listeners have everything, with the tallies of the model, and have acked all."""
    due = {uid: local_as_due(groups, uid) for uid in soak.listeners}

    def is_so() -> bool:
        soak.look_after()
        unread = [each.unread for uid in soak.listeners for each in soak.chat.unread(uid)]
        return not any(unread) and all(local_of(soak, uid) == lines for uid, lines in due.items())

    try:
        wait_until(is_so, timeout_s=SETTLE_S)
    except AssertionError:
        for uid, lines in due.items():
            assert local_of(soak, uid) == lines
        raise
    wait_until(lambda: is_stored(soak), timeout_s=SETTLE_S)


def all_agrees(soak: Soak) -> None:
    """`im check` finds nothing; it only warns of a setting that the servers of the tests have."""
    result = soak.im.run("--json", "check")
    assert (result.returncode, result.stdout) == (0, ""), result
    [warning] = result.stderr.splitlines()
    assert "appendfsync is no" in warning


def end_all(soak: Soak) -> None:
    """End sessions and workers in order; no log, also of a killed one, has an unexpected line."""
    for part in soak.of_kind("session", "persist", "receipts", "jobs"):
        assert isinstance(part.process, Listening | PythonProcess)
        assert part.process.end() == 0, part.name
        soak.parts.remove(part)
    for path in [*soak.folder.glob("*/*.log"), *soak.folder.glob("sessions/*/*.err")]:
        assert "Traceback" not in path.read_text(), path.read_text()


def all_was_shown(soak: Soak, groups: dict[str, ModelGroup]) -> None:
    """Each session has shown messages once and in order, and all sessions of a listener together all there are."""
    for number in range(len(soak.listeners)):
        shown: dict[str, set[int]] = {gid: set() for gid in groups}
        for path in (soak.folder / "sessions" / str(number)).glob("*.out"):
            events = [event for event in events_in(path) if event["event"] == "message"]
            for gid in groups:
                seqs = [event["seq"] for event in events if event["gid"] == gid]
                assert seqs == sorted(set(seqs)), "a session has shown a message twice, or out of order"
                shown[gid].update(seqs)
        assert shown == {gid: set(range(1, group.newest + 1)) for gid, group in groups.items()}


def compare(soak: Soak, groups: dict[str, ModelGroup]) -> None:
    """Live from Redis and from SQL, every tally is the model's; so are the names, of some messages."""
    model = Model(groups)
    for gid, group in groups.items():
        compare_group(soak.chat, model, gid)
        compare_offsets(soak.chat, model, gid)
        compare_names(soak.chat, model, gid, group.messages[:: max(1, group.newest // 50)])
        compare_view(soak.chat, gid, group)


def no_leftovers(soak: Soak) -> None:
    """No session, lease, dead letter or key of something unfinished is left, and consumers are few."""
    client = soak.chat.system.client.driver
    wait_until(lambda: not list(client.scan_iter("im:{*}:sessions:*")), timeout_s=SETTLE_S)
    assert soak.chat.online(soak.listeners) == set()
    ours = [key.decode() for key in client.scan_iter("im:*")]
    assert {key.split(":")[2] if key.startswith("im:{") else key for key in ours} <= KEPT
    for_ever = -1
    assert for_ever not in {client.ttl(key) for key in client.scan_iter("rq:worker:*")}, (
        "rq knows a dead worker for ever"
    )
    assert stats(soak.chat.system).dead_letters == 0
    for journal in soak.chat.system.client.space.journals():
        for kind in ("persist", "receipts") if client.exists(journal) else ():
            consumers = client.xinfo_consumers(journal, kind)
            assert sum(each["pending"] for each in consumers) == 0
            assert len(consumers) <= MOST_AT_ONCE


def is_trimmed(soak: Soak, gid: str) -> bool:
    """Whether Redis has dropped messages that the test asks for."""
    return soak.chat.system.client.driver.hexists(soak.chat.system.client.space.group(gid).meta, "trimmed")


def has_begun(soak: Soak, uid: str) -> bool:
    try:
        with LocalDatabase(path_of(soak.folder, uid), uid, read_only=True) as local:
            return local.begun
    except LocalDatabaseError:
        return False


def local_of(soak: Soak, uid: str) -> Local:
    with LocalDatabase(path_of(soak.folder, uid), uid, read_only=True) as local:
        return [(line.gid, line.msgid, line.content, line.state) for line in local.log()]
