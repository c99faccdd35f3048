"""A Redis that comes back older than SQL, and continues before anybody notices.

Two lines of history follow one snapshot of Redis: what was lost, of which a worker has stored a part, and what happened
since. `IM_RECONCILE_SEEDS=500 pytest tests/integration/test_reconcile.py` plays that many more of them.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import RedisUnavailable
from imcore.repair.check import check
from imcore.repair.watermarks import reconcile
from imcore.settings import Settings
from imcore.sql import queries
from imcore.sql.database import Database
from imcore.streams import keys
from tests.helpers.dying import Dying, DyingDatabase, KilledError, bury_the_dead
from tests.helpers.dying import KilledError as KilledWorkerError
from tests.helpers.persist_runs import new_persist
from tests.helpers.random_story import GIDS, Story
from tests.helpers.snapshot import Snapshot
from tests.helpers.workers import persist

SEEDS = range(int(os.environ.get("IM_RECONCILE_SEEDS", "12")))
HOUR = 3_600_000


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=0, retry_ms=0, partitions=2, batch_size=5)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.system.database.upgrade()
    return chat


@dataclass(frozen=True)
class Rows:
    """What SQL has."""

    messages: dict[tuple[str, str], tuple[int, str]]
    offsets: dict[tuple[str, str, int], int]
    delivered: dict[tuple[str, str, int], int]
    private: dict[tuple[str, str, int], int]
    members: set[tuple[str, str, int]]


def rows(chat: Chat) -> Rows:
    with chat.system.database.connection() as connection:
        messages = connection.execute(text("SELECT gid, msgid, seq, content FROM group_msgs")).all()
        spans = connection.execute(
            text("SELECT gid, uid, joined_msgid, left_msgid, acked_msgid, delivered_msgid FROM group_spans")
        ).all()
        bookmarks = connection.execute(text("SELECT gid, uid, joined_msgid, private_msgid FROM bookmarks")).all()
    return Rows(
        {(gid, msgids.unpack(msgid)): (seq, content) for gid, msgid, seq, content in messages},
        {(gid, uid, joined): acked for gid, uid, joined, _, acked, _ in spans},
        {(gid, uid, joined): delivered or acked for gid, uid, joined, _, acked, delivered in spans},
        {(gid, uid, joined): private for gid, uid, joined, private in bookmarks},
        {(gid, uid, joined) for gid, uid, joined, left, _, _ in spans if left is None},
    )


def take_and_die(chat: Chat) -> None:
    """Let a worker take a batch and die: others handle later entries, and SQL has holes."""
    with suppress(KilledWorkerError):
        new_persist(
            chat.system.client, DyingDatabase(chat.system.database, committed=False), chat.system.settings
        ).step()


def shift_clock(chat: Chat, gid: str, ms: int) -> None:
    """Put the newest id of a group's stream ahead, as a clock that was ahead would have."""
    stream = chat.system.client.space.group(gid).stream
    last = chat.system.client.driver.xinfo_stream(stream)["last-generated-id"].decode()
    moment, _, _ = last.partition("-")
    chat.system.client.driver.execute_command("XSETID", stream, f"{int(moment) + ms}-0")


@dataclass(frozen=True)
class Lost:
    """What SQL had when Redis came back older, and which messages Redis had not any more."""

    before: Rows
    messages: set[tuple[str, str]]


def lose(chat: Chat, story: Story, clock: str) -> Lost:
    """Play a history, of whose end a part is stored; then Redis loses it."""
    story.begin()
    persist(chat, story.random.randrange(5))
    if clock == "the same id twice":
        shift_clock(chat, GIDS[0], HOUR)
    snapshot = Snapshot.of(chat.system.client.driver)
    if clock == "behind":
        shift_clock(chat, GIDS[0], HOUR)
    story.play(story.random.randrange(25))
    if story.random.random() < 0.5:
        take_and_die(chat)
    persist(chat, story.random.randrange(8))
    before = rows(chat)
    snapshot.restore(chat.system.client.driver)
    left = {(gid, tally.message.msgid) for gid in GIDS for tally in chat.status(gid, limit=0)}
    return Lost(before, before.messages.keys() - left)


def assert_reconciled(chat: Chat, lost: Lost, since: Story) -> None:
    """Check that all stored and all later messages are there, and that members get those they have missed."""
    before, after = lost.before, rows(chat)
    # What was stored is there, just so
    for place, (_, content) in before.messages.items():
        assert after.messages[place][1] == content
    # And what was said since, too; under another msgid only if that was taken
    contents = {content for _, content in after.messages.values()}
    for place, content in since.said.items():
        assert content in contents
        assert after.messages[place][1] == content or place in before.messages
    # And each has a msgid and a seq for itself, in one order, in Redis as in SQL
    assert list(check(chat.system)) == []
    for gid in GIDS:
        of_group = sorted((msgids.pack(msgid), seq) for (g, msgid), (seq, _) in after.messages.items() if g == gid)
        assert [seq for _, seq in of_group] == list(range(1, len(of_group) + 1))
    # And no position is behind what SQL knew
    assert all(after.offsets[span] >= acked for span, acked in before.offsets.items() if span in after.members)
    assert all(after.delivered[span] >= to for span, to in before.delivered.items() if span in after.members)
    # And each member pulls what was lost, unless SQL knows that they had it
    for gid, uid, joined in after.members & before.members:
        passed = max(before.offsets[gid, uid, joined], before.private.get((gid, uid, joined), 0), joined)
        missed = {msgid for g, msgid in lost.messages if g == gid and msgids.pack(msgid) > passed}
        had = {msgid for g, u, msgid in since.pulled if (g, u) == (gid, uid)}
        assert missed <= had | {message.msgid for message in chat.pull(uid, gid)}, (gid, uid)


def assert_no_lost_message_has_arrived(chat: Chat, lost: Lost) -> None:
    """Check that what Redis had lost has arrived at nobody, unless SQL knew that it had."""
    after = rows(chat)
    for gid, uid, joined in after.members & lost.before.members:
        known = max(lost.before.delivered[gid, uid, joined], joined)
        missing = [msgids.pack(msgid) for g, msgid in lost.messages if g == gid and msgids.pack(msgid) > known]
        assert after.delivered[gid, uid, joined] < min(missing, default=msgids.HIGHEST), (gid, uid)


@pytest.mark.parametrize("clock", ["right", "behind", "the same id twice"])
@pytest.mark.parametrize("seed", SEEDS)
def test_reconciliation_loses_no_stored_message(chat: Chat, seed: int, clock: str) -> None:
    # Given
    story, since = Story(chat, seed), Story(chat, seed + 1000)
    lost = lose(chat, story, clock)
    # When people continue, and then a worker comes
    since.number = 1000
    since.play(story.random.randrange(25))
    persist(chat)
    # Then
    assert_reconciled(chat, lost, since)
    assert_no_lost_message_has_arrived(chat, lost)
    # And all continues
    story.play(20)
    persist(chat)
    assert list(check(chat.system)) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_reconciliation_continues_after_its_worker_died(chat: Chat, seed: int) -> None:
    # Given
    story, since = Story(chat, seed), Story(chat, seed + 1000)
    lost = lose(chat, story, "right")
    since.number = 1000
    since.play(story.random.randrange(25))
    # When workers die over it, each one a little later, while people continue
    redis_client = chat.system.client
    for calls_left in range(3, 60, story.random.randrange(4, 12)):
        dying = Dying(redis_client.driver, partitions=2)
        dying.left = calls_left
        with suppress(KilledError):
            new_persist(dying, chat.system.database, chat.system.settings).step()
        bury_the_dead(chat)
        since.play(1)
    persist(chat)
    # Then
    assert_reconciled(chat, lost, since)


def test_no_worker_stores_new_entries_before_the_reconciliation(chat: Chat) -> None:
    # Given a worker that runs, while Redis comes back older and continues
    chat.create_group("g", ["ann", "bob"])
    worker = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    worker.step()
    snapshot = Snapshot.of(chat.system.client.driver)
    first = chat.send("g", "lost and stored", sender_uid="ann")
    worker.step()
    snapshot.restore(chat.system.client.driver)
    second = chat.send("g", "said since", sender_uid="bob")
    # When it takes the next entries, without having noticed anything
    with pytest.raises(RedisUnavailable, match="older than SQL"):
        worker.step()
    # Then it has stored nothing of them
    assert [row.content for row in chat.system.database.messages_after("g", 0)] == ["lost and stored"]
    # And the next step reconciles the two, and stores the rest
    while worker.step():
        pass
    assert [(row.content, row.seq) for row in chat.system.database.messages_after("g", 0)] == [
        ("lost and stored", 1),
        ("said since", 2),
    ]
    # And who was caught up with what Redis knew, and not with that, is not any more
    assert [message.msgid for message in chat.pull("ann", "g")] == [second.msgid]
    assert [message.msgid for message in chat.pull("bob", "g")] == [first.msgid, second.msgid]


def test_reconciliation_ignores_an_impossible_offset_in_sql(chat: Chat) -> None:
    # Given members, one with an offset in SQL that no message can have, and a Redis that has lost their joins
    chat.create_group("g", ["ann"])
    persist(chat)
    snapshot = Snapshot.of(chat.system.client.driver)
    chat.add_members("g", ["bob"])
    said = [chat.send("g", content, sender_uid="ann").msgid for content in ("one", "two")]
    persist(chat)
    with chat.system.database.connection() as connection:
        connection.execute(text("UPDATE group_spans SET acked_msgid = 9000000000000000000 WHERE uid = 'bob'"))
    snapshot.restore(chat.system.client.driver)
    # When
    persist(chat)
    # Then
    assert {member.uid: member.last_ack_msgid for member in chat.members("g")}["bob"] == said[-1]
    assert list(check(chat.system)) == []


def test_worker_leaves_a_redis_with_other_data_alone(chat: Chat) -> None:
    # Given data that SQL has, and then a server that somebody has emptied, or another one
    chat.create_group("g", ["ann", "bob"])
    persist(chat)
    chat.system.client.driver.flushall()
    # When, then
    with pytest.raises(RedisUnavailable, match=r"set IM_DATABASE_URL or IM_REDIS_URL if .* run im rebuild"):
        persist(chat)
    assert chat.system.client.driver.dbsize() == 0
    # Given that somebody has begun anew on it
    chat.system.client.driver.hset(keys.CONFIG, mapping={"partitions": 2, "dataset": "another"})
    with pytest.raises(RedisUnavailable, match=r"set IM_DATABASE_URL or IM_REDIS_URL if .* run im rebuild"):
        persist(chat)


def test_check_reports_an_older_redis_and_repairs_it(chat: Chat) -> None:
    # Given
    chat.create_group("g", ["ann", "bob"])
    persist(chat)
    snapshot = Snapshot.of(chat.system.client.driver)
    chat.send("g", "lost and stored", sender_uid="ann")
    persist(chat)
    snapshot.restore(chat.system.client.driver)
    # When, then
    assert any("stored by persist-1." in difference.what for difference in check(chat.system))
    assert all(difference.repaired for difference in check(chat.system, repair=True))
    assert list(check(chat.system)) == []
    assert [message.content for message in chat.pull("bob", "g")] == ["lost and stored"]


@pytest.fixture
def heir(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Once a sender is in the list: the next read of the watermarks is just before a worker takes over some of them."""
    read_watermarks = queries.watermarks
    senders: list[str] = []

    def read_before_an_heir(database: Database) -> dict[tuple[int, str], int]:
        watermarks = read_watermarks(database)
        if senders:
            chat.send("g", "meanwhile", sender_uid=senders.pop())
            persist(chat)
        return watermarks

    monkeypatch.setattr(queries, "watermarks", read_before_an_heir)
    return senders


def test_check_ignores_watermarks_that_a_worker_inherits_meanwhile(chat: Chat, heir: list[str]) -> None:
    chat.create_group("g", ["ann", "bob"])
    persist(chat)
    heir.append("ann")
    assert list(check(chat.system)) == []
    assert not heir


def test_inherited_watermarks_keep_no_other_worker_from_storing(chat: Chat, heir: list[str]) -> None:
    # Given a worker, and one that has ended
    chat.create_group("g", ["ann", "bob"])
    worker = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    worker.step()
    chat.send("g", "hi", sender_uid="ann")
    persist(chat)
    # When it is about to store
    chat.send("g", "there", sender_uid="ann")
    heir.append("ann")
    # Then
    assert worker.step() == 1
    assert not heir
    assert list(check(chat.system)) == []


def test_watermark_of_another_worker_stops_storing(chat: Chat) -> None:
    # Given two workers: the first one stores messages that Redis then loses
    chat.create_group("g", ["ann", "bob"])
    first, second = (new_persist(chat.system.client, chat.system.database, chat.system.settings) for _ in range(2))
    assert (first.step(), second.step()) == (1, 0)
    snapshot = Snapshot.of(chat.system.client.driver)
    chat.send("g", "lost and stored", sender_uid="ann")
    assert first.step() == 1
    snapshot.restore(chat.system.client.driver)
    # When the second one takes what came since
    chat.send("g", "since", sender_uid="bob")
    chat.ack("bob", "g")
    with pytest.raises(RedisUnavailable, match="older than SQL"):
        second.step()
    # Then it reconciles the two before it stores anything, and the first one continues, too
    assert second.step() == 1  # the ack is taken back: it would pass over what was lost
    assert first.step() == 0
    assert list(check(chat.system)) == []
    assert [message.content for message in chat.pull("bob", "g")] == ["lost and stored", "since"]


def test_entries_that_redis_loses_meanwhile_are_not_stored(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a worker that has taken an ack, which Redis loses before it is stored
    chat.create_group("g", ["ann", "bob"])
    chat.send("g", "hi", sender_uid="ann")
    worker = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    worker.step()
    snapshot = Snapshot.of(chat.system.client.driver)
    chat.ack("bob", "g")
    with monkeypatch.context() as patch:
        patch.setattr("imcore.workers.hand.fetch", lambda *_: snapshot.restore(chat.system.client.driver))
        # When, then
        with pytest.raises(RedisUnavailable, match="lost what was about to be stored"):
            worker.step()
    worker.step()
    assert list(check(chat.system)) == []
    assert [message.content for message in chat.pull("bob", "g")] == ["hi"]


def test_entries_read_before_a_reconciliation_are_not_stored_after_it(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker with entries in hand while another one reconciles
    chat.create_group("g", ["ann", "bob"])
    slow, fast = (new_persist(chat.system.client, chat.system.database, chat.system.settings) for _ in range(2))
    slow.step()
    fast.step()
    chat.send("g", "hi", sender_uid="ann")
    with monkeypatch.context() as patch:
        patch.setattr(
            "imcore.workers.hand.fetch",
            lambda *_: reconcile(chat.system, chat.system.client.space.partition_of("g")),
        )
        # When, then
        with pytest.raises(RedisUnavailable, match="have been reconciled"):
            slow.step()
    assert slow.step() == 1
    assert list(check(chat.system)) == []
