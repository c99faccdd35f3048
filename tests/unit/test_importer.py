"""Imports of events: what each type does, what is counted, and what becomes of lines that are not valid."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import fakeredis
import pytest

from imcore import Chat
from imcore import msgid as msgids
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase
from imcore.errors import DatabaseUnavailable, RedisUnavailable
from imcore.importer.formats import Unreadable
from imcore.importer.importer import import_events
from imcore.model.rows import Batch, MessageRow
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.system import System
from tests.helpers.chat_data import made_up_lines
from tests.helpers.deadline import wait_until
from tests.helpers.import_events import BY_BOB, HELLO, INVALID, event, lines, run, run_with_errors
from tests.model.compare import compare_all
from tests.model.reference import Model
from tests.model.replay import replay


@pytest.fixture
def new_chat(tmp_path: Path) -> Iterator[Callable[[], Chat]]:
    """Makes a system of its own, each time."""
    with ExitStack() as chats:
        number = count()

        def new() -> Chat:
            database = Database.connect(f"sqlite:///{tmp_path / f'{next(number)}.db'}")
            client = fakeredis.FakeRedis(server=fakeredis.FakeServer())
            return chats.enter_context(Chat(System(RedisClient(client), database, Settings.from_env({}))))

        yield new


@pytest.fixture
def chat(new_chat: Callable[[], Chat]) -> Chat:
    return new_chat()


def members(chat: Chat, gid: str = "#g") -> list[str]:
    return [member.uid for member in chat.members(gid)]


def contents(chat: Chat, gid: str = "#g") -> list[str]:
    return [tally.message.content for tally in chat.status(gid, limit=0)]


def test_message_of_a_stranger_creates_the_group_and_joins_them(chat: Chat) -> None:
    assert run(chat, HELLO) == {"messages": 1, "joins": 1}

    message = chat.status("#g")[0].message
    assert (message.sender_uid, message.content, message.client_msgid) == ("ann", "hi", "1")
    assert message.sent_at == datetime(2004, 12, 25, 9, 14, tzinfo=UTC)
    assert message.time.year > 2020, "the server's own time"
    assert members(chat) == ["ann"]


@pytest.mark.parametrize("type_", ["join", "leave"])
def test_first_event_of_any_type_creates_the_group(chat: Chat, type_: str) -> None:
    run(chat, event(type_, "ann"))

    assert chat.group("#g").members == (type_ == "join")


def test_join_of_a_member_and_leave_of_a_stranger_do_nothing(chat: Chat) -> None:
    assert run(chat, event("join", "ann"), event("join", "ann"), event("leave", "bob")) == {"joins": 1}
    assert members(chat) == ["ann"]


def test_rename_is_a_leave_and_a_join(chat: Chat) -> None:
    chat.create_group("#g", ["ann", "bob"])

    assert run(chat, event("rename", "ann", new_uid="anna")) == {"joins": 1, "leaves": 1}
    assert run(chat, event("rename", "nobody", new_uid="bob")) == {}
    assert run(chat, event("rename", "anna", new_uid="bob")) == {"leaves": 1}
    assert members(chat) == ["bob"]


def test_ack_confirms_up_to_the_message_that_it_names(chat: Chat) -> None:
    run(chat, event("join", "bob"), HELLO, HELLO | {"client_msgid": "2"}, HELLO | {"client_msgid": "3"})

    assert run(chat, event("ack", "bob", client_msgid="2")) == {"acks": 1}
    assert run(chat, event("ack", "bob", client_msgid="1")) == {}
    assert [unread.unread for unread in chat.unread("bob")] == [1]


def test_ack_of_a_stranger_joins_them_first(chat: Chat) -> None:
    run(chat, HELLO)

    assert run(chat, event("ack", "bob", client_msgid="1")) == {"joins": 1}
    status = chat.message_status("#g", chat.status("#g")[0].message.msgid)
    assert (status.read_by, status.unread_by) == ((), ())


def test_same_file_again_adds_no_message_and_joins_no_leaver(chat: Chat) -> None:
    events = [HELLO, event("leave", "ann")]
    run(chat, *events)

    assert run(chat, *events) == {}
    assert members(chat) == []
    assert contents(chat) == ["hi"]


def test_same_file_again_does_not_move_members_who_left_and_came_back(chat: Chat) -> None:
    # Given
    third = HELLO | {"client_msgid": "3"}
    coming_back = [event("leave", "bob"), event("join", "bob")]
    events = [event("join", "bob"), HELLO, *coming_back, third]
    run(chat, *events)
    # When, then
    assert run(chat, *events) == {}
    assert [unread.unread for unread in chat.unread("bob")] == [1]
    # And a join at the end, with nothing behind it that shows whether it was done, is done once
    run(chat, *coming_back)
    run(chat, HELLO | {"client_msgid": "4"})
    assert run(chat, *events, *coming_back) == {}
    assert [unread.unread for unread in chat.unread("bob")] == [1]


def test_same_file_again_undoes_changes_of_others_to_its_members(chat: Chat) -> None:
    # Given
    acks = [event("ack", uid, client_msgid="1") for uid in ("cy", "dan")]
    comings = [event("join", "bob"), HELLO, *acks, event("leave", "dan"), event("join", "eve"), event("leave", "eve")]
    events = [*comings, HELLO | {"uid": "eve", "client_msgid": "2"}, event("rename", "cy", new_uid="cyd")]
    run(chat, *events, HELLO | {"client_msgid": "3"})
    # When
    chat.remove_members("#g", ["bob", "cyd", "eve"])
    chat.add_members("#g", ["cy", "dan", "fay"])
    # Then, but for whom the file does not speak of, or only by what is stored
    assert run(chat, *events) == {"joins": 2, "leaves": 2}
    assert members(chat) == ["ann", "bob", "cyd", "fay"]
    # And where it continues
    chat.remove_members("#g", ["bob"])
    assert run(chat, *events, HELLO | {"client_msgid": "4"}) == {"messages": 1, "joins": 1}
    assert members(chat) == ["ann", "bob", "cyd", "fay"]


def test_line_that_is_not_valid_is_not_valid_again(chat: Chat) -> None:
    events = lines([HELLO, event("ack", "ann", client_msgid="nope"), event("join", "ann"), HELLO | BY_BOB])
    first, errors = run_with_errors(chat, events)
    assert [number for number, _ in errors] == [2]
    second, again = run_with_errors(chat, events)
    assert (again, second) == (errors, {"errors": first["errors"]})


# The promises that a checkpoint beside the data would break: see the docstring of `imcore.importer.importer`.


def test_corrected_file_joins_whom_it_names_now_and_moves_nobody_else(chat: Chat) -> None:
    # Given a file with a line that is not valid
    before = lines([event("join", "bob"), HELLO])
    after = lines(
        [HELLO | {"client_msgid": "2"}, event("leave", "bob"), event("join", "bob"), HELLO | {"client_msgid": "3"}]
    )
    assert run_with_errors(chat, [*before, b"oh\n", *after])[0] == {"messages": 3, "joins": 3, "leaves": 1, "errors": 1}
    # When the line is corrected, then bob, who left and came back after it, does not leave again
    assert run(chat, *before, event("join", "cy"), *after) == {"joins": 1}
    assert [(unread.unread, unread.gid) for unread in chat.unread("bob")] == [(1, "#g")]
    assert members(chat) == ["ann", "bob", "cy"]


def test_same_messages_in_another_file_move_nobody(chat: Chat) -> None:
    events = [event("join", "bob"), HELLO, event("leave", "bob"), event("join", "bob"), BY_BOB | {"uid": "ann"}]
    run(chat, *events)
    # When another program has written the same events, with a key that nobody knows
    assert run(chat, *(each | {"exported": "2026-11-30"} for each in events)) == {}
    assert [unread.unread for unread in chat.unread("bob")] == [1]


def test_messages_that_redis_lost_are_imported_again(chat: Chat, new_chat: Callable[[], Chat]) -> None:
    # Given a complete import, and a system that a power cut has taken back to the first of its messages
    events = [HELLO, event("join", "bob"), BY_BOB, event("leave", "ann")]
    run(chat, *events)
    lossy = new_chat()
    run(lossy, HELLO)
    in_sql(lossy)
    # When, then
    assert run(lossy, *events) == {"messages": 1, "joins": 1, "leaves": 1}
    assert seen(lossy) == seen(chat)


def test_ack_before_its_message_is_not_valid_again(chat: Chat) -> None:
    early = event("ack", "bob", client_msgid="2")
    events = lines([HELLO, early, HELLO | {"client_msgid": "2"}, HELLO | {"client_msgid": "3"}])
    why = [(2, "no message of '#g' has the client_msgid '2'")]
    assert run_with_errors(chat, events) == ({"messages": 3, "joins": 1, "errors": 1}, why)
    assert run_with_errors(chat, events) == ({"errors": 1}, why)
    assert members(chat) == ["ann"]
    # And in a file with the lines in another order, it is valid
    reordered = [HELLO | {"client_msgid": "2"}, early, HELLO, HELLO | {"client_msgid": "3"}]
    assert run(chat, *reordered) == {"joins": 1}


def test_member_whose_ack_follows_their_leave_does_not_leave_again(chat: Chat) -> None:
    events = [event("join", "bob"), HELLO, event("leave", "bob"), event("ack", "bob", client_msgid="1")]
    run(chat, *events)
    chat.send("#g", "by others", sender_uid="ann")
    assert run(chat, *events) == {}
    assert [unread.unread for unread in chat.unread("bob")] == [1]


@pytest.mark.parametrize("until", range(1, 9))
def test_interrupted_import_continues_where_it_ended(chat: Chat, until: int) -> None:
    # Given
    third = HELLO | {"client_msgid": "3"}
    events = [
        *(event("join", "bob"), HELLO, event("leave", "bob"), event("ack", "cy", client_msgid="1"), HELLO),
        *(event("rename", "cy", new_uid="bob"), third, event("ack", "bob", client_msgid="3")),
    ]
    run(chat, *events[:until])
    # When
    run(chat, *events)
    # Then
    assert contents(chat) == ["hi", "hi"]
    assert members(chat) == ["ann", "bob"]
    tallies = [(tally.read, tally.unread) for tally in chat.status("#g", limit=0)]
    assert tallies == [(0, 1), (1, 0)]


@pytest.mark.parametrize("seed", range(25))
def test_random_file_has_the_same_result_wherever_it_was_interrupted(
    chat: Chat, new_chat: Callable[[], Chat], seed: int
) -> None:
    # Given
    chance = random.Random(seed)
    events = random_events(chance)
    run_with_errors(chat, lines(events))
    imported = seen(chat)
    # When, then
    run_with_errors(chat, lines(events))
    assert seen(chat) == imported
    broken_off = new_chat()
    run_with_errors(broken_off, lines(events[: chance.randint(0, len(events))]))
    run_with_errors(broken_off, lines(events))
    assert seen(broken_off) == imported


def random_events(chance: random.Random) -> list[dict[str, Any]]:
    """People who come, go, are renamed, say something, say it again, and ack."""
    events: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    for number in range(chance.randint(3, 25)):
        uid = chance.choice("abcd")
        kind = chance.choice(["message", "message", "join", "leave", "rename", "again", "ack", "ack"])
        if kind == "message":
            said.append(HELLO | {"uid": uid, "content": str(number), "client_msgid": str(number)})
            events.append(said[-1])
        elif kind == "again" and said:
            events.append(chance.choice(said))
        elif kind == "ack" and said:
            events.append(event("ack", uid, client_msgid=chance.choice(said)["client_msgid"]))
        elif kind in {"join", "leave"}:
            events.append(event(kind, uid))
        elif kind == "rename":
            events.append(event("rename", uid, new_uid=chance.choice("abcd")))
    return events


def seen(chat: Chat) -> object:
    """What the group shows, without msgids, which no two imports share."""
    if not list(chat.groups()):
        return None
    said = [tally.message for tally in chat.status("#g", limit=0)]
    text = {message.msgid: message.content for message in said}
    statuses = [chat.message_status("#g", message.msgid) for message in said]
    return (
        [(text[s.message.msgid], [reader.uid for reader in s.read_by], s.unread_by) for s in statuses],
        [(m.uid, text.get(m.last_ack_msgid or ""), m.unread) for m in chat.members("#g")],
    )


def test_one_client_msgid_of_two_senders_is_two_messages(chat: Chat) -> None:
    assert run(chat, HELLO, HELLO | {"uid": "bob"}, HELLO | {"gid": "#h"})["messages"] == 3
    assert run(chat, HELLO, HELLO | {"uid": "bob"}, HELLO | {"gid": "#h"}) == {}


def test_message_that_only_sql_has_is_not_stored_again(chat: Chat) -> None:
    # Given two messages whose client_msgid Redis has forgotten: they are more than a day old
    run(chat, HELLO, HELLO | {"uid": "bob"}, event("leave", "ann"))
    in_sql(chat)
    forget_client_msgids(chat)

    # When the same comes again, and something new
    assert run(chat, HELLO, HELLO | {"uid": "bob"}, BY_BOB) == {"messages": 1}
    assert members(chat) == ["bob"]


def test_run_of_more_than_a_day_knows_its_own_messages(chat: Chat) -> None:
    def come() -> Iterator[bytes]:
        yield from lines([HELLO])
        in_sql(chat)
        forget_client_msgids(chat)
        yield from lines([HELLO])

    assert run_with_errors(chat, come()) == ({"messages": 1, "joins": 1}, [])


def test_ack_may_name_a_message_that_only_sql_has(chat: Chat) -> None:
    run(chat, event("join", "bob"), HELLO, BY_BOB | {"uid": "ann"})
    in_sql(chat)
    first, second = (tally.message.msgid for tally in chat.status("#g"))
    chat.system.client.driver.xdel(chat.system.client.space.group("#g").stream, second)

    assert run(chat, event("ack", "bob", client_msgid="1")) == {"acks": 1}
    assert chat.unread("bob")[0].last_ack_msgid == first


def test_ack_may_name_a_message_that_sql_does_not_have_yet(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imcore.repair.window.PAGE", 2)
    chat.create_group("#g", ["ann", "bob"])
    stored = [chat.send("#g", "hi", sender_uid="ann", client_msgid=f"c{n}") for n in range(6)]

    assert run(chat, event("ack", "bob", client_msgid="c4")) == {"acks": 1}
    assert chat.unread("bob")[0].last_ack_msgid == stored[4].msgid


def test_ack_may_name_a_message_that_another_process_sent_meanwhile(chat: Chat) -> None:
    chat.create_group("#g", ["ann", "bob"])

    def come() -> Iterator[bytes]:
        chat.send("#g", "hi", sender_uid="ann", client_msgid="c1")
        yield from lines([event("ack", "bob", client_msgid="c2"), BY_BOB])
        chat.send("#g", "hi", sender_uid="ann", client_msgid="c2")
        yield from lines([event("ack", "bob", client_msgid="c2")])

    summary, errors = run_with_errors(chat, come())

    assert summary == {"messages": 1, "acks": 1, "errors": 1}
    assert errors == [(1, "no message of '#g' has the client_msgid 'c2'")]


@pytest.mark.parametrize("line", INVALID, ids=INVALID.values())
def test_line_that_is_not_valid_is_reported_and_changes_nothing(chat: Chat, line: bytes) -> None:
    summary, errors = run_with_errors(chat, [line])

    assert summary == {"errors": 1}
    assert [(number, reason[: len(INVALID[line])]) for number, reason in errors] == [(1, INVALID[line])]
    assert len(errors[0][1]) < 300
    assert list(chat.groups()) == []


def test_import_continues_after_a_line_that_is_not_valid(chat: Chat) -> None:
    summary, errors = run_with_errors(chat, lines([HELLO, b"oh\n", b"\n", b"  \r\n", BY_BOB, b"no"]))

    assert summary == {"messages": 2, "joins": 2, "errors": 2}
    assert [number for number, _ in errors] == [2, 6]


def test_unknown_keys_are_ignored_and_a_time_is_optional(chat: Chat) -> None:
    without_time = {name: value for name, value in HELLO.items() if name != "time"}

    run(chat, without_time | {"lang": "en"}, event("leave", "ann", time="whenever", content=""))

    assert chat.status("#g")[0].message.sent_at is None


@pytest.mark.parametrize("time", ["2004-12-25T09:14:00.5", "2004-12-25T09:14:00.500Z", "2004-12-25t11:14:00.500+02:00"])
def test_a_time_without_a_zone_is_utc(chat: Chat, time: str) -> None:
    run(chat, HELLO | {"time": time})

    assert chat.status("#g")[0].message.sent_at == datetime(2004, 12, 25, 9, 14, 0, 500_000, tzinfo=UTC)


@pytest.mark.parametrize(
    "time",
    [
        *("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z", "0001-01-01T14:00:00+14:00", "0001-01-01"),
        *("9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999-00:00", "9999-12-31"),
    ],
)
def test_every_time_of_the_years_1_to_9999_is_accepted_everywhere(
    chat: Chat, time: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # When
    run(chat, event("join", "bob"), HELLO | {"time": time}, BY_BOB)
    # Then
    [message, _] = chat.pull("bob")
    assert (message.sent_at or datetime.now(UTC)).isoformat()[:10] == time[:10]
    assert [tally.message.sent_at for tally in chat.status("#g")] == [
        message.sent_at,
        datetime(2004, 12, 25, 9, 14, tzinfo=UTC),
    ]
    with LocalDatabase(tmp_path / "bob.db", "bob") as local:
        client = Device(chat, "bob", local)
        client.keep(chat.pull("bob"))
        client.sync()
        assert [line.content for line in local.log()] == ["hi", "hi"]
    with chat.listen("bob") as listener:
        heard: list[Any] = []
        wait_until(lambda: heard.extend(listener.poll(0.01)) or message in heard)
    assert caplog.messages == []


def test_stored_message_does_nothing_though_it_is_longer_than_is_allowed_now(chat: Chat) -> None:
    # Given
    long = HELLO | {"content": "x" * 1000}
    run(chat, long)
    # When
    chat.system.settings = replace(chat.system.settings, max_content_bytes=999)
    # Then
    assert run(chat, long) == {}
    assert run_with_errors(chat, lines([long | {"uid": "bob"}])) == (
        {"errors": 1},
        [(1, "content has 1000 bytes: at most 999 are allowed (IM_MAX_CONTENT_BYTES)")],
    )
    assert members(chat) == ["ann"]


def test_unreadable_line_is_reported_with_its_reason(chat: Chat) -> None:
    given = [*lines([HELLO]), Unreadable("it is too long"), *lines([BY_BOB]), Unreadable("the rest cannot be read")]
    assert run_with_errors(chat, given) == (
        {"messages": 2, "joins": 2, "errors": 2},
        [(2, "it is too long"), (4, "the rest cannot be read")],
    )


def test_byte_order_mark_and_windows_line_ends_do_no_harm(chat: Chat) -> None:
    assert run(chat, b"\xef\xbb\xbf" + json.dumps(HELLO).encode() + b"\r\n") == {"messages": 1, "joins": 1}


def test_progress_counts_the_bytes_of_every_line(chat: Chat) -> None:
    given = [*lines([HELLO, event("join", "bob")]), b"\n", b"no"]
    seen: list[int] = []

    import_events(chat, given, on_error=lambda number, reason: None, on_progress=seen.append)

    assert seen == [len(line) for line in given]


def test_unreachable_database_ends_the_import_and_is_not_an_error_of_a_line(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(chat.system.database, "messages_after", fail)

    with pytest.raises(DatabaseUnavailable):
        run_with_errors(chat, lines([HELLO]))


def test_made_up_history_equals_the_model(chat: Chat) -> None:
    given = made_up_lines()
    run(chat, *given)
    msgids = {group.gid: [tally.message.msgid for tally in chat.status(group.gid, limit=0)] for group in chat.groups()}

    model = Model()
    replay(model, map(json.loads, given), msgids)
    compare_all(chat, model)

    # And again, after which nothing has changed
    assert run(chat, *given) == {}
    compare_all(chat, model)


def in_sql(chat: Chat) -> None:
    """Store all messages in SQL, as the worker `persist` does."""
    messages = [tally.message for group in chat.groups() for tally in chat.status(group.gid, limit=0)]
    rows = [
        MessageRow(m.gid, msgids.pack(m.msgid), m.seq, m.sender_uid, 0, m.content, m.client_msgid, None)
        for m in messages
    ]
    chat.system.database.write(Batch(messages=rows))


def forget_client_msgids(chat: Chat) -> None:
    """Let more than a day go by for Redis."""
    chat.system.client.driver.delete(chat.system.client.space.group("#g").idempotency_newer)


@pytest.mark.parametrize("events", [[], [b""], [b"no event"]])
def test_import_without_redis_fails_even_if_it_has_no_events(tmp_path: Path, events: list[bytes]) -> None:
    with (
        Chat.connect(f"unix://{tmp_path / 'none.sock'}", f"sqlite:///{tmp_path / 'im.db'}") as chat,
        pytest.raises(RedisUnavailable),
    ):
        run_with_errors(chat, events)
    assert not (tmp_path / "im.db").exists()
