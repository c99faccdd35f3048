"""A local database keeps messages once, tallies that never go down, resume points and an outbox."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from imcore.device.local_database import PAGE, LocalDatabase
from imcore.device.local_file import LocalFile
from imcore.errors import LocalDatabaseError
from imcore.model.direct import gid_of
from imcore.model.values import Message, Receipt, Tally
from imcore.util.backoff import ThrottledLog
from tests.helpers.devices import message


def test_a_message_is_kept_once(local: LocalDatabase) -> None:
    local.keep([message(1), message(2)])
    local.keep([message(2), message(3)])
    assert [line.content for line in local.log()] == ["words 1", "words 2", "words 3"]


def test_resume_points_move_forward_only_and_only_on_request(local: LocalDatabase) -> None:
    # Given
    local.keep([message(1), message(2)], {"g": message(2).msgid})
    # When
    local.keep([message(9, sender="bob")])
    local.keep([], {"g": message(1).msgid})
    # Then
    assert local.resume_points() == {"g": message(2).msgid}


def test_resume_points_begin_once(local: LocalDatabase) -> None:
    assert not local.begun
    local.begin({"g": message(4).msgid})
    local.begin({"g": message(9).msgid, "h": message(9).msgid})
    assert (local.begun, local.resume_points()) == (True, {"g": message(4).msgid})


def test_own_messages_show_their_state(local: LocalDatabase) -> None:
    # Given
    for seq in range(1, 4):
        local.keep([message(seq, sender="bob")])
    local.queue("g", "still here")
    # When
    local.keep([Receipt("g", message(1).msgid, 3, 4, 3, 1), Receipt("g", message(2).msgid, 7, 0, 7, 2)])
    # Then
    assert [line.state for line in local.log("g")] == ["read 3/7", "read by all", "stored", "waiting"]


def test_the_log_is_by_time_across_groups_followed_by_waiting_messages(local: LocalDatabase) -> None:
    # Given
    local.queue("a", "first to wait")
    local.keep([message(4, gid="a"), message(2, gid="z"), message(3, gid="m", sender="bob")])
    local.queue("z", "second to wait")
    # When what is older comes later, and two messages of one moment
    local.keep([message(1, gid="z"), message(3, gid="b")])
    # Then
    assert [(line.gid, line.content) for line in local.log()] == [
        ("z", "words 1"),
        ("z", "words 2"),
        ("b", "words 3"),
        ("m", "words 3"),
        ("a", "words 4"),
        ("a", "first to wait"),
        ("z", "second to wait"),
    ]
    assert [line.content for line in local.log("z")] == ["words 1", "words 2", "second to wait"]
    assert [line.content for line in local.unsent("a")] == ["first to wait"]


@pytest.mark.parametrize("gid", [None, "g"])
def test_sqlite_sorts_nothing_for_a_log(local: LocalDatabase, monkeypatch: pytest.MonkeyPatch, gid: str | None) -> None:
    """However many messages there are, the first lines are there at once, and few are in memory."""
    statements: list[tuple[str, object]] = []
    rows = LocalFile.rows
    monkeypatch.setattr(
        LocalFile,
        "rows",
        lambda self, sql, types, values=(): statements.append((sql, values)) or rows(self, sql, types, values),
    )

    assert list(local.log(gid)) == []

    with closing(sqlite3.connect(local.path)) as connection:
        plans = [
            row[3] for sql, values in statements for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)
        ]
    assert not any("TEMP B-TREE" in step for step in plans)
    assert any("INDEX chat" in step if gid is None else "PRIMARY KEY (gid=?)" in step for step in plans)


def test_an_older_receipt_removes_no_reader(local: LocalDatabase) -> None:
    local.keep([message(1, sender="bob")])
    local.keep([Receipt("g", message(1).msgid, 3, 1, 3, 2)])
    local.keep([Receipt("g", message(1).msgid, 2, 2, 2, 1)])
    assert [line.state for line in local.log()] == ["read 3/4"]


def test_a_receipt_may_come_before_its_message(local: LocalDatabase) -> None:
    local.keep([Receipt("g", message(1).msgid, 1, 0, 1, 1)])
    local.keep([message(1, sender="bob")])
    assert [line.state for line in local.log()] == ["read by all"]


def test_the_outbox_keeps_its_order_until_the_server_has_it(local: LocalDatabase) -> None:
    # Given
    first, second, third = (local.queue("g", text) for text in ("one", "two", "three"))
    # When
    local.keep([replace(message(1, sender="bob"), client_msgid=first.client_msgid)])
    local.refuse(second, "not a member")
    # Then
    assert local.waiting() == [third]
    assert [line.state for line in local.log()] == ["stored", "refused: not a member", "waiting"]


def test_a_tried_message_may_have_been_sent_from_then_on(local: LocalDatabase) -> None:
    refused = local.queue("r", "one")
    local.queue("g", "two")
    assert local.mark_tried() == set()
    local.refuse(refused, "no member")
    local.queue("h", "three")
    assert local.mark_tried() == {"g"}
    assert local.mark_tried() == {"g", "h"}


def test_an_own_message_that_comes_back_leaves_the_outbox(local: LocalDatabase) -> None:
    # Given two in the outbox, one of them refused: an earlier attempt was stored, and its answer got lost
    sent, refused = local.queue("g", "sent"), local.queue("g", "refused")
    local.refuse(refused, "not a member")
    others = local.queue("h", "another group")
    # When another device brings them
    local.keep(
        replace(message(seq, sender="bob"), content=each.content, client_msgid=each.client_msgid)
        for seq, each in enumerate((sent, refused), 1)
    )
    local.keep([replace(message(3), client_msgid=others.client_msgid)])
    # Then
    assert [(line.content, line.state) for line in local.log("g")][:2] == [("sent", "stored"), ("refused", "stored")]
    assert local.waiting() == [others]


def test_own_messages_that_all_have_not_read_are_listed_newest_first_by_the_page(local: LocalDatabase) -> None:
    # Given
    for seq in range(1, PAGE + 4):
        local.keep([message(seq, sender="bob", gid=f"g{seq % 2}")])
    local.keep([message(1, gid="theirs")])
    local.keep([replace(message(PAGE + 4, sender="bob"), content="", recalls=message(1).msgid)])
    # When
    local.keep([Tally("g0", message(PAGE + 2).msgid, 3, 0, 3), Tally("g1", message(PAGE + 3).msgid, 2, 1, 2)])
    first = local.unread_own_messages()
    second = local.unread_own_messages(list(first)[-1])
    # Then
    assert list(first.items())[:2] == [
        (("g1", message(PAGE + 3).msgid), (2, 1)),
        (("g1", message(PAGE + 1).msgid), (0, None)),
    ]
    assert [msgid for _, msgid in second] == [message(2).msgid, message(1).msgid]
    assert local.unread_own_messages(list(second)[-1]) == {}


def test_a_database_is_for_the_data_of_one_server(local: LocalDatabase) -> None:
    local.bind(None, "there")
    local.bind("one", "there")
    local.bind("one", "there")
    for other in ("another", None):
        with pytest.raises(LocalDatabaseError, match="other data than there has") as error:
            local.bind(other, "there")
        assert "IM_REDIS_URL" in str(error.value)
        assert "IM_DATA_DIR" in str(error.value)


def test_the_peer_is_kept_where_the_gid_does_not_name_it(local: LocalDatabase) -> None:
    # Given
    ann, cy, eve = "a" * 128, "c" * 128, "e" * 128
    silent, addressed, written = (gid_of("bob", uid) for uid in (ann, cy, eve))
    # When
    local.note_peer(silent, ann)
    local.queue(addressed, "hi", to_uid=cy)
    local.keep([message(1, gid=written, sender=eve), message(2, gid=written, sender="an administrator")])
    local.note_peer(gid_of("bob", "dan"), "dan")
    local.note_peer("g", "dan")
    # Then
    assert local.peers() == {silent: ann, addressed: cy, written: eve}


# What the server hands over.


@pytest.mark.parametrize(
    "moment",
    [
        datetime.min.replace(tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
    ],
)
def test_a_message_of_any_time_is_kept(local: LocalDatabase, moment: datetime) -> None:
    local.keep([replace(message(1), sent_at=moment)])
    assert [line.content for line in local.log()] == ["words 1"]


UNKEEPABLE: list[Message | Receipt] = [
    replace(message(2), msgid="5-1"),
    replace(message(2), msgid="18446744073709551615-1"),
    replace(message(2), seq=2**70),
    replace(message(2), content="\ud800"),
    replace(message(2), sender_uid=None),  # type: ignore[arg-type]
    replace(message(2), recalls="0-0"),
    replace(message(2), sent_at=datetime(2026, 1, 1)),  # noqa: DTZ001 (that is the fault)
    Receipt("g", "0-0", 1, 1, 1, 1),
    Receipt("g", message(1).msgid, 2**70, 1, 2**70, 1),
]


@pytest.mark.parametrize("odd", UNKEEPABLE, ids=str)
def test_an_item_that_cannot_be_stored_stops_no_other(
    local: LocalDatabase, caplog: pytest.LogCaptureFixture, odd: Message | Receipt
) -> None:
    # When
    own = message(1, sender="bob")
    local.keep([own, odd, message(3), Receipt("g", own.msgid, 1, 0, 1, 1)], {"g": message(3).msgid, "h": "none"})
    # Then
    assert [(line.content, line.state) for line in local.log()] == [("words 1", "read by all"), ("words 3", None)]
    assert local.resume_points() == {"g": message(3).msgid}
    [of_point, of_item] = caplog.messages
    assert of_point.startswith("the resume point of 'h' is not kept in the local database: 'none' is not a msgid")
    assert of_item.startswith(f"{odd.msgid} of 'g' is not kept in the local database: ")


def test_a_text_that_is_too_long_for_sqlite_is_passed_over(
    local: LocalDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    local._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 50_000)
    local.keep([replace(message(1), content="x" * 60_000), message(2)])
    assert [line.content for line in local.log()] == ["words 2"]
    assert len(caplog.messages) == 1


def test_a_bad_resume_point_does_not_stop_the_others(local: LocalDatabase, caplog: pytest.LogCaptureFixture) -> None:
    local.begin({"g": message(4).msgid, "h": "5-1", "x" * 1000: message(5).msgid})
    assert local.resume_points() == {"g": message(4).msgid, "x" * 1000: message(5).msgid}
    assert len(caplog.messages) == 1


def test_a_warning_of_very_many_unstorable_items_names_a_few(
    local: LocalDatabase, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    now = 1000.0
    monkeypatch.setattr(local, "warnings", ThrottledLog(lambda: now))
    many = [replace(message(seq), msgid=f"{seq}-1") for seq in range(100)]
    # When, then
    local.keep([*many, message(1)])
    assert len(caplog.messages) == 10
    assert caplog.messages[-1].endswith("more of these are not logged for a minute")
    assert [line.content for line in local.log()] == ["words 1"]
    now += 60
    local.keep(many)
    assert len(caplog.messages) == 20
