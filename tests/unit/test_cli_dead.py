"""`im dead` against a real Chat on fakeredis: dead letters are shown, requeued and dropped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore.chat import Chat
from tests.helpers.cli import connected_chat, im, lines, refused


@pytest.fixture(autouse=True)
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chat]:
    yield from connected_chat(monkeypatch, tmp_path)


@pytest.fixture
def dead_id(chat: Chat) -> str:
    """The id of a dead letter, whose entry says something hostile."""
    space = chat.system.client.space
    partition = space.partition_of("team")
    dead = {"dead_worker": "persist", "dead_reason": "no \x1b[31mway", "dead_entry": "1-1", "dead_deliveries": "5"}
    entry_id = chat.system.client.driver.xadd(
        space.dead_letters(partition), dead | {"kind": "msg", "gid": "[red]\x1b[2J"}
    )
    return f"{partition}:{entry_id.decode()}"


def test_dead_letters_are_listed_and_shown(dead_id: str) -> None:
    expected = {
        "id": dead_id,
        "worker": "persist",
        "reason": "no \x1b[31mway",
        "entry": "1-1",
        "deliveries": 5,
        "fields": {"kind": "msg", "gid": "[red]\x1b[2J"},
    }

    [listed] = lines("dead", "list")

    assert str(listed.pop("time")).endswith("Z")
    assert listed == expected
    assert lines("dead", "show", dead_id)[0]["fields"] == expected["fields"]
    assert im("dead", "show", dead_id).stdout.endswith("field\tvalue\nkind\tmsg\ngid\t[red]␛[2J\n")


def test_a_dead_letter_goes_back_into_the_journal(chat: Chat, dead_id: str) -> None:
    assert lines("dead", "requeue", dead_id) == [{"id": dead_id, "requeued": True}]

    assert lines("dead", "list") == []
    journal = chat.system.client.space.journal(int(dead_id.partition(":")[0]))
    assert chat.system.client.query("XLEN", journal) == 1
    assert "there is no dead letter" in refused("dead", "requeue", dead_id)


def test_a_dead_letter_is_dropped_only_after_a_yes(dead_id: str) -> None:
    assert "--yes" in refused("dead", "drop", dead_id)
    assert len(lines("dead", "list")) == 1

    assert lines("dead", "drop", dead_id, "--yes") == [{"id": dead_id, "dropped": True}]

    assert lines("dead", "list") == []
    assert "there is no dead letter" in refused("dead", "drop", dead_id, "--yes")
    assert "is not the id of a dead letter" in refused("dead", "show", "soon\x1b[2J")


@pytest.mark.parametrize(
    ("dead_id", "why"),
    [
        ("soon", "'soon' is not the id of a dead letter: it looks like 3:1767225600000-0"),
        ("3", "'3' is not the id of a dead letter: it looks like 3:1767225600000-0"),
        ("1767225600000-0", "'1767225600000-0' is not the id of a dead letter: it looks like 3:1767225600000-0"),
        ("8:1767225600000-0", "there is no dead letter 8:1767225600000-0: the first number, the partition, is 0 to 7"),
        ("9" * 60 + ":1-1", "there is no dead letter 999999999999...999999999:1-1: the first number"),
        (f"3:{2**64}-0", f"there is no dead letter 3:{2**64}-0: no entry has a number over {2**64 - 1}"),
        (f"3:1-{2**64}", f"there is no dead letter 3:1-{2**64}: no entry has a number over {2**64 - 1}"),
        ("3:1-" + "9" * 5000, "there is no dead letter 3:1-99999999...9999999999999: no entry has a number over"),
        (f"3:{2**64 - 1}-{2**64 - 1}", f"there is no dead letter 3:{2**64 - 1}-{2**64 - 1}: `im dead list` shows"),
        ("3:0-0", "there is no dead letter 3:0-0: `im dead list` shows them all"),
    ],
)
def test_a_wrong_id_of_a_dead_letter_is_explained(dead_id: str, why: str) -> None:
    for words in (["show", dead_id], ["requeue", dead_id], ["drop", dead_id, "--yes"]):
        assert refused("dead", *words).startswith(why)


def test_a_foreign_dead_letter_hides_no_other(chat: Chat, dead_id: str) -> None:
    # Given
    letters = chat.system.client.space.dead_letters(0)
    chat.system.client.driver.xadd(letters, {"dead_deliveries": "many", b"\xff": b"\xff"}, id="5-1")
    chat.system.client.driver.xadd(letters, {"kind": "msg"}, id="99999999999999999-0")
    # When, then
    listed = {line["id"]: line for line in lines("dead", "list")}
    assert {"0:5-1", "0:99999999999999999-0", dead_id} == set(listed)
    assert listed["0:5-1"]["deliveries"] == 0
    assert listed["0:99999999999999999-0"]["time"] == "9999-12-31T23:59:59.999Z"
    assert lines("dead", "drop", "0:05-01", "--yes") == [{"id": "0:05-01", "dropped": True}]
    assert "0:5-1" not in im("dead", "list").stdout


def test_the_handled_ones_of_many_dead_letters_are_shown(chat: Chat, dead_id: str) -> None:
    partition, _, first = dead_id.partition(":")
    letters = chat.system.client.space.dead_letters(int(partition))
    [(_, fields)] = chat.system.client.driver.xrange(letters)
    second = f"{partition}:{chat.system.client.driver.xadd(letters, fields).decode()}"
    result = im("dead", "drop", dead_id, second, "0:1-1", "--yes")
    assert result.exit_code == 1
    assert result.stdout == f"id\tdropped\n{partition}:{first}\tyes\n{second}\tyes\n"
    assert "there is no dead letter" in result.stderr
