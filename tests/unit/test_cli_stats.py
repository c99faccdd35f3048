"""`im stats` against a real Chat on fakeredis."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore.chat import Chat
from tests.helpers.cli import connected_chat, im, lines


@pytest.fixture(autouse=True)
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chat]:
    yield from connected_chat(monkeypatch, tmp_path)


def test_stats_count_everything_and_how_far_the_workers_are_behind(chat: Chat) -> None:
    lines("group", "create", "team", "ann", "bob")
    lines("send", "team", "hi", "--from", "ann")
    space = chat.system.client.space
    journal = space.journal(space.partition_of("team"))
    written = chat.system.client.query("XLEN", journal)
    chat.system.client.driver.xgroup_create(journal, "persist", "0")
    chat.system.client.driver.xreadgroup("persist", "persist-1", {journal: ">"}, count=1)
    chat.begin_session("ann")

    [counts] = lines("stats")

    [worker] = counts.pop("workers")  # type: ignore[misc]
    assert worker.pop("lag_ms") >= 0
    assert worker == {"worker": "persist", "backlog": written, "pending": 1}
    assert counts.pop("storm") == {
        "acks": 0,
        "receipts": 0,
        "digests": 0,
        "receipts_per_digest": None,
        "messages_per_s": 0.0,
        "acks_per_s": 0.0,
    }
    assert counts.pop("streams") == [
        {"kind": "groups", "streams": 1, "entries": 1, "bytes": None},
        {"kind": "journals", "streams": 8, "entries": written, "bytes": None},
    ]
    [server] = counts.pop("servers")  # type: ignore[misc]
    assert (server["holds"], server["maxmemory_policy"], server["warnings"]) == ("chat", None, [])
    assert (counts.pop("silent"), counts.pop("rebuild"), counts.pop("unseen")) == ([], None, [])
    assert counts == {
        "groups": 1,
        "members": 2,
        "messages": 1,
        "online": 1,
        "journal": written,
        "dead_letters": 0,
        "jobs": None,
    }
    assert im("stats").stdout.splitlines()[3] == "worker\tbacklog\tpending\tlag_ms"
    assert "ann" not in im("stats").stdout


def test_stats_name_online_users_with_the_option(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imcore.admin.stats.CHUNK", 2)
    uids = [f"user{number}" for number in range(30)]
    lines("group", "create", "team", *uids)
    for uid in uids[:20]:
        chat.begin_session(uid)

    [counts] = lines("stats", "--online")

    assert sorted(counts["online_uids"]) == sorted(uids[:20])  # type: ignore[arg-type, type-var]
    assert set(uids) & set(im("stats", "--online").stdout.splitlines()) == set(uids[:20])


def test_stats_with_the_option_have_a_table_if_nobody_is_online() -> None:
    assert im("stats", "--online").stdout.endswith("\n\nonline\n")
    assert not im("stats").stdout.endswith("online\n")


def test_stats_count_the_backlog_where_redis_has_lost_count(chat: Chat) -> None:
    client, journal = chat.system.client.driver, chat.system.client.space.journal(0)
    ids = [client.xadd(journal, {"kind": "test"}) for _ in range(5)]
    client.xgroup_create(journal, "persist", ids[0])
    client.xdel(journal, ids[2])

    [worker] = lines("stats")[0]["workers"]  # type: ignore[misc]

    assert worker["backlog"] == 3
