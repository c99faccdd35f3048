"""A meta goes wherever its message goes: a JSON object that nothing here reads, and that a recall deletes."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from imcore import Chat, Draft, Message, NewMessage
from imcore import msgid as msgids
from imcore.errors import ImError, InvalidInput
from imcore.importer.importer import import_events
from imcore.model.meta import DEEPEST, check_meta, from_text, to_text
from imcore.repair.check import check
from imcore.streams.calls import message_calls
from tests.helpers.talk import leave_to_sql
from tests.helpers.workers import store

GID = "team"
META = {"kind": "image", "re\x1f": [1, None, True, {"群": "\x1e"}], "size": 1.5}


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group(GID, ["ann", "bob"])
    return chat


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "\\ud" not in json.dumps(value))


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values, max_size=3))
def test_any_json_object_comes_back_from_its_compact_text(meta: dict[str, Any]) -> None:
    checked = check_meta(meta, 1 << 20)

    assert checked is not None
    assert from_text(to_text(checked)) == checked == meta
    assert not {"\x1f", "\x1e", "\n", "\0"} & set(to_text(checked))


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ("text", "meta must be a JSON object; it is 'text'"),
        ([1], "meta must be a JSON object; it is [1]"),
        ({"a": math.nan}, "meta holds nan, which JSON cannot say"),
        ({"a": [math.inf]}, "meta holds inf, which JSON cannot say"),
        ({"a": b"bytes"}, "meta holds b'bytes', which JSON cannot say"),
        ({"a": {1: "one"}}, "meta has the key 1: keys must be texts"),
        ({"a": "\ud800"}, "meta is not valid UTF-8"),
        ({"\udfff": 1}, "meta is not valid UTF-8"),
        ({"a": "x" * 4089}, "meta has 4097 bytes as JSON: at most 4096 are allowed (IM_MAX_META_BYTES)"),
        ({"a": "群" * 1363}, "meta has 4097 bytes as JSON: at most 4096 are allowed (IM_MAX_META_BYTES)"),
    ],
)
def test_what_is_no_meta_is_refused_and_nothing_is_sent(chat: Chat, meta: Any, said: str) -> None:
    for send in (
        lambda: chat.send(GID, "hi", sender_uid="ann", meta=meta),
        lambda: chat.send_direct("cyd", "hi", sender_uid="ann", meta=meta),
        lambda: chat.send_many(GID, [Draft("ann", "hi"), Draft("ann", "hi", meta=meta)]),
    ):
        with pytest.raises(InvalidInput) as refusal:
            send()
        assert str(refusal.value) == said
    assert chat.group(GID).messages == 0
    assert chat.groups_of("cyd") == []


def test_a_meta_is_nested_so_deep_and_no_deeper() -> None:
    def nested(levels: int) -> dict[str, Any]:
        return {"a": nested(levels - 1)} if levels > 1 else {"a": 1}

    assert check_meta(nested(DEEPEST), 4096) == nested(DEEPEST)
    for levels in (DEEPEST + 1, 900):
        with pytest.raises(InvalidInput, match="nested deeper than 16 levels"):
            check_meta(nested(levels), 1 << 20)


@pytest.mark.parametrize(
    ("json_text", "said"),
    [
        ("", "meta is not JSON: Expecting value at character 1"),
        ('{"a": 1', "meta is not JSON: Expecting ',' delimiter at character 8"),
        ('"text"', "meta must be a JSON object; it is 'text'"),
        ("null", "meta must be a JSON object; it is None"),
        ('{"a": 1, "a": 2}', "meta has a key twice in one object: give each once"),
        ('{"b": {"a": 1, "a": 1}}', "meta has a key twice in one object: give each once"),
        ('{"a": NaN}', "meta holds nan, which JSON cannot say"),
        ('{"a": 1e999}', "meta holds inf, which JSON cannot say"),
        ('{"a": "\\ud800"}', "meta is not valid UTF-8"),
    ],
)
def test_a_text_that_is_no_meta_is_refused(json_text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        from_text(json_text)
    assert str(refusal.value) == said


@pytest.mark.parametrize("brackets", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 10_000 + "}"])
def test_a_text_that_python_cannot_read_is_refused(brackets: str) -> None:
    with pytest.raises(InvalidInput):
        from_text(brackets)


def everywhere(chat: Chat, msgid: str) -> list[Message]:
    """The message as each operation answers it."""
    return [
        *(message for message in chat.pull("bob", GID) if message.msgid == msgid),
        *(message for message in chat.history("bob", GID).messages if message.msgid == msgid),
        *(tally.message for tally in chat.status(GID) if tally.message.msgid == msgid),
        chat.message_status(GID, msgid).message,
    ]


def test_a_meta_is_answered_wherever_its_message_is_live_and_from_sql(chat: Chat) -> None:
    given_meta = {**META, "tuple": (1, 2)}
    kept = {**META, "tuple": [1, 2]}

    sent = chat.send(GID, "a picture", sender_uid="ann", meta=given_meta)
    chat.send(GID, "no meta", sender_uid="ann")

    assert sent.meta == kept
    assert everywhere(chat, sent.msgid) == [sent] * 4
    leave_to_sql(chat, sent.msgid)
    assert everywhere(chat, sent.msgid) == [sent] * 4
    assert chat.history("bob", GID).messages[1].meta is None
    assert list(check(chat.system)) == []


def test_a_repeated_send_answers_the_meta_that_is_stored(chat: Chat) -> None:
    first = chat.send(GID, "one", sender_uid="ann", client_msgid="c1", meta={"a": 1})

    again = chat.send(GID, "two", sender_uid="ann", client_msgid="c1", meta={"a": 2})
    [many] = chat.send_many(GID, [Draft("ann", "three", "c1")])

    assert again == many == first
    leave_to_sql(chat, first.msgid)
    assert chat.send(GID, "four", sender_uid="ann", client_msgid="c1") == first


def test_a_meta_is_pushed_to_live_sessions(chat: Chat) -> None:
    with chat.gateway() as gateway:
        gateway.open("bob")
        sent = chat.send(GID, "one\x1ftwo", sender_uid="ann", meta=META)
        plain = chat.send(GID, "\x1f", sender_uid="ann")
        events = gateway.poll(0.1) + gateway.poll(0.1)

    assert [event.message for event in events if isinstance(event, NewMessage)] == [sent, plain]


@pytest.mark.parametrize("is_stored_before", [True, False])
def test_a_recall_deletes_the_meta(chat: Chat, is_stored_before: bool) -> None:
    sent = chat.send(GID, "secret", sender_uid="ann", client_msgid="c1", meta=META)
    if is_stored_before:
        store(chat)

    chat.recall(GID, sent.msgid, by="ann")

    assert chat.recall(GID, sent.msgid, by="ann").meta is None
    assert [(message.content, message.meta) for message in everywhere(chat, sent.msgid)] == [("", None)] * 4
    leave_to_sql(chat, sent.msgid)
    assert [(message.content, message.meta) for message in everywhere(chat, sent.msgid)] == [("", None)] * 4
    assert chat.send(GID, "secret", sender_uid="ann", client_msgid="c1", meta=META).meta is None
    with chat.system.database.connection() as connection:
        assert connection.execute(text("SELECT content, meta FROM group_msgs ORDER BY msgid")).all()[0] == ("", None)


@pytest.mark.parametrize("stored", ["not json", "[1]", '{"a": NaN}', ""])
def test_what_is_no_meta_in_redis_or_sql_is_left_out(chat: Chat, stored: str) -> None:
    sent = chat.send(GID, "hi", sender_uid="ann", meta=META)
    k = chat.system.client.space.group(GID)
    driver: Any = chat.system.client.driver
    [(entry_id, fields)] = driver.xrange(k.stream)
    driver.xdel(k.stream, entry_id)
    driver.delete(k.stream)
    driver.xadd(k.stream, {**fields, b"meta": stored}, id=entry_id)

    assert [message.meta for message in everywhere(chat, sent.msgid)] == [None] * 4
    store(chat)
    with chat.system.database.writing() as connection:
        connection.execute(text("UPDATE group_msgs SET meta = :meta"), {"meta": stored})
    chat.system.client.call(message_calls.trim(chat.system.client.space, GID, msgids.pack(sent.msgid)))
    assert [message.meta for message in everywhere(chat, sent.msgid)] == [None] * 4


def test_a_check_finds_a_meta_that_differs_and_one_of_a_recalled_message(chat: Chat) -> None:
    sent = chat.send(GID, "one", sender_uid="ann", meta={"a": 1})
    recalled = chat.send(GID, "two", sender_uid="ann", meta={"a": 2})
    chat.recall(GID, recalled.msgid, by="ann")
    store(chat)
    with chat.system.database.writing() as connection:
        connection.execute(text("UPDATE group_msgs SET meta = :meta"), {"meta": '{"b":1}'})

    found = {difference.what: difference.sql for difference in check(chat.system)}

    assert found[f"meta of message {sent.msgid}"] == """'{"b":1}'"""
    assert found[f"text of recalled message {recalled.msgid}"] == "there"


def test_an_import_takes_the_meta_of_a_message_and_refuses_a_wrong_one(chat: Chat) -> None:
    event = {"type": "message", "gid": GID, "uid": "ann", "content": "hi", "client_msgid": "1"}
    lines = [
        {**event, "meta": META},
        {**event, "client_msgid": "2", "meta": None},
        {**event, "client_msgid": "3", "meta": [1]},
        {**event, "client_msgid": "4", "meta": {"a": "x" * 5000}},
    ]
    wrong: dict[int, str] = {}

    import_events(
        chat, [json.dumps(line).encode() for line in lines], on_error=lambda number, why: wrong.update({number: why})
    )

    assert [message.meta for message in chat.pull("bob", GID)] == [META, None]
    assert wrong == {
        3: "meta must be a JSON object; it is [1]",
        4: "meta has 5008 bytes as JSON: at most 4096 are allowed (IM_MAX_META_BYTES)",
    }


def test_a_message_with_a_meta_can_be_a_key_and_says_its_recipients_apart_from_what_it_is(chat: Chat) -> None:
    chat.add_members(GID, ["cyd", "dan"])
    chat.remove_members(GID, ["dan"])

    sent = chat.send(GID, "hi", sender_uid="ann", client_msgid="c1", meta=META)
    chat.add_members(GID, ["eve"])
    chat.remove_members(GID, ["bob"])
    later = chat.send(GID, "later", sender_uid="ann")
    again = chat.send(GID, "hi", sender_uid="ann", client_msgid="c1")

    assert {sent: 1}[again] == 1
    assert (sent.recipients, again.recipients, later.recipients) == (2, 2, 2)
    assert [message.recipients for message in chat.pull("cyd", GID)] == [None, None]
    assert [each.recipients for each in chat.send_many(GID, [Draft("ann", "1"), Draft("bob", "2"), Draft("cyd", "3")])
            if not isinstance(each, ImError)] == [2, 2]  # fmt: skip
    alone = chat.send_direct("zoe", "note", sender_uid="zoe")
    assert (alone.recipients, chat.send_direct("ann", "hi", sender_uid="zoe").recipients) == (0, 1)
