"""Pulls and tallies on fakeredis and SQLite: bounded, and as few questions to SQL as can be."""

from typing import Any

import pytest
from sqlalchemy import event

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import DatabaseUnavailable, NotMember, UnknownGroup
from imcore.operations.effects import Effect, SqlQuery
from imcore.operations.queries import PAGE, SQL_PAGE
from imcore.streams.calls import message_calls
from imcore.streams.calls.message_calls import PullResult
from tests.helpers.talk import leave_to_sql, publish_receipts, say, say_many


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("team", ["ann", "bob", "cyd"])
    return chat


def pull(chat: Chat, *uids: str, after: int | None = 0, count: int = PAGE, most_bytes: int = 1 << 20) -> PullResult:
    return chat.system.client.call(
        message_calls.pull(chat.system.client.space, "team", uids, after=after, count=count, most_bytes=most_bytes)
    )


@pytest.fixture
def statements(chat: Chat) -> list[str]:
    """The SELECTs that go to SQL, but for the first question of all: whose data it has."""
    selects: list[str] = []
    engine = chat.system.database._backend.engine

    @event.listens_for(engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "FROM imcore_meta" not in statement:
            selects.append(statement)

    return selects


# Pulls.


@pytest.mark.parametrize(("most_bytes", "expected"), [(1, 1), (10, 1), (19, 1), (20, 2), (299, 29), (10**6, 40)])
def test_a_pull_brings_at_most_its_bytes_but_at_least_one_message(chat: Chat, most_bytes: int, expected: int) -> None:
    sent = say(chat, *(f"{number:010}" for number in range(40)))

    pulled = pull(chat, "bob", most_bytes=most_bytes)

    assert pulled.messages == sent[:expected]
    assert pulled.more == (expected < 40)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 39, 40, 41])
def test_a_pull_says_whether_there_is_more(chat: Chat, count: int) -> None:
    sent = say(chat, *map(str, range(40)))

    pulled = pull(chat, "bob", count=count)

    assert pulled.messages == sent[:count]
    assert pulled.more == (count < 40)


def test_a_pull_brings_texts_of_many_sizes_in_order(chat: Chat) -> None:
    sizes = [5, 1, 3000, 2, 1, 1, 9000, 4, 60_000, 1, 1] * 5
    sent = say(chat, *("x" * size for size in sizes))
    after, messages = 0, []
    while True:
        pulled = pull(chat, "bob", after=after, most_bytes=10_000)
        assert sum(len(message.content) for message in pulled.messages) <= 10_000 or len(pulled.messages) == 1
        messages += pulled.messages
        if not pulled.more:
            break
        after = msgids.pack(messages[-1].msgid)
    assert messages == sent


def test_members_at_one_offset_share_a_pull_and_strangers_are_left_out(chat: Chat) -> None:
    # Given one who joined later, and one who is no member
    sent = say(chat, "1", "2")
    chat.add_members("team", ["dan"])
    sent += say(chat, "3")
    # When
    pulled = pull(chat, "bob", "dan", "eve", "cyd")
    # Then
    assert pulled.messages == sent
    assert pulled.apart.keys() == {"dan", "eve"}
    assert pulled.apart["dan"] == msgids.pack(sent[1].msgid)
    assert isinstance(pulled.apart["eve"], NotMember)
    assert pull(chat, "dan", "eve").messages == []  # nobody there may have them


def test_more_members_than_lua_takes_at_once_share_a_pull(chat: Chat) -> None:
    uids = [f"u{number}" for number in range(2500)]
    for at in range(0, 2500, 500):
        chat.add_members("team", uids[at : at + 500])
    sent = say(chat, "hi")
    chat.remove_members("team", [uids[0], uids[1000], uids[2499]])

    pulled = pull(chat, *uids, after=0)

    assert pulled.messages == sent
    assert {uid for uid, why in pulled.apart.items() if isinstance(why, NotMember)} == {"u0", "u1000", "u2499"}


def test_trimmed_messages_come_in_pages_of_their_own(chat: Chat, statements: list[str]) -> None:
    sent = say_many(chat, 3 * SQL_PAGE + 50)
    leave_to_sql(chat, sent[2 * SQL_PAGE - 1])
    statements.clear()

    assert [message.msgid for message in chat.pull("bob", "team")] == sent
    assert len(statements) == 2


# Tallies.


def read_by(chat: Chat, *uids: str, msgid: str | None = None) -> None:
    for uid in uids:
        chat.ack(uid, "team", msgid)


def test_tallies_of_many_messages_take_few_queries(chat: Chat, statements: list[str]) -> None:
    # Given more than a page, most of it trimmed
    sent = say_many(chat, PAGE + 100)
    read_by(chat, "bob", msgid=sent[300])
    leave_to_sql(chat, sent[PAGE])
    statements.clear()
    # When
    tallies = chat.tallies("team", sent)
    # Then
    assert [(each.msgid, each.read, each.unread) for each in tallies] == [
        (msgid, int(at <= 300), 2 - int(at <= 300)) for at, msgid in enumerate(sent)
    ]
    assert len(statements) == 1


def test_tallies_leave_out_unknown_msgids(chat: Chat) -> None:
    first, second = say(chat, "1", "2")
    leave_to_sql(chat, first.msgid)
    unknown = ["1577836900000-0", msgids.unpack(msgids.pack(second.msgid) + 1)]

    assert [each.msgid for each in chat.tallies("team", [*unknown, second.msgid, first.msgid])] == [
        second.msgid,
        first.msgid,
    ]
    assert chat.tallies("team", []) == []
    with pytest.raises(UnknownGroup):
        chat.tallies("nowhere", [first.msgid])


# What waits for senders.


def test_receipts_of_trimmed_messages_take_one_query_a_group(chat: Chat, statements: list[str]) -> None:
    gids = ["a", "b", "c"]
    for gid in gids:
        chat.create_group(gid, ["ann", "bob"])
        sent = say_many(chat, 200, gid=gid)
        publish_receipts(chat, sent, gid=gid)
        leave_to_sql(chat, sent[-1], gid)
    statements.clear()

    assert len(chat.receipts("ann")) == 600
    assert len(statements) == 3


def test_a_dirty_receipt_of_a_missing_message_holds_back_no_other(chat: Chat) -> None:
    # Given marks of a message that nobody has, and of a group that is gone
    [message] = say(chat, "1")
    chat.create_group("gone", ["ann", "bob"])
    publish_receipts(chat, say_many(chat, 1, gid="gone"), gid="gone")
    publish_receipts(chat, ["1577836900000-0", message.msgid])
    gone = chat.system.client.space.group("gone")
    chat.system.client.driver.delete(gone.meta, gone.stream)

    assert [each.msgid for each in chat.receipts("ann")] == [message.msgid]


def test_sql_is_asked_only_where_it_is_needed(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given SQL that is away
    sent = say(chat, "1", "2")
    publish_receipts(chat, [each.msgid for each in sent])
    answer = chat.performer.perform_one

    def away(question: Effect[Any]) -> Any:
        if isinstance(question, SqlQuery):
            raise DatabaseUnavailable
        return answer(question)

    # Then what is in Redis is answered, and what is not raises
    monkeypatch.setattr(chat.performer, "perform_one", away)
    assert len(chat.receipts("ann")) == len(chat.tallies("team", [sent[0].msgid, sent[1].msgid])) == 2
    monkeypatch.undo()
    leave_to_sql(chat, sent[0].msgid)
    monkeypatch.setattr(chat.performer, "perform_one", away)
    with pytest.raises(DatabaseUnavailable):
        chat.receipts("ann")
    with pytest.raises(DatabaseUnavailable):
        chat.tallies("team", [sent[0].msgid])


# Acks.


@pytest.mark.parametrize("is_away", [False, True])
def test_a_stranger_is_refused_as_one_whatever_they_ack(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, is_away: bool
) -> None:
    sent = say(chat, "one", "two", "three")
    leave_to_sql(chat, sent[1].msgid)
    if is_away:
        monkeypatch.setattr(chat.system.database, "messages", _raise_away)

    trimmed, unknown = sent[0].msgid, msgids.unpack(msgids.pack(sent[0].msgid) - 1)
    for msgid in (trimmed, unknown, sent[2].msgid, None):
        with pytest.raises(NotMember):
            chat.ack("eve", "team", msgid)
        [answer] = chat.ack_many("team", [("eve", msgid)])
        assert isinstance(answer, NotMember)


def _raise_away(*_: object) -> None:
    raise DatabaseUnavailable("away")
