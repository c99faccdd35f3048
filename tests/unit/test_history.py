"""History on fakeredis and SQLite: pages are those of plain lists, at every trim point, whatever happens meanwhile."""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import pytest

from imcore import Chat, Message
from imcore import msgid as msgids
from imcore.errors import DatabaseNotReady, InvalidInput, NotMember, UnknownGroup
from imcore.operations import queries
from imcore.operations.effects import Effect, RedisCalls, SqlQuery
from tests.helpers.plain_history import page_of, plain_page, scroll_back, scroll_on
from tests.helpers.talk import leave_to_sql, say
from tests.helpers.workers import store

GID = "team"


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group(GID, ["ann", "bob", "cyd"])
    return chat


@pytest.fixture
def visible(chat: Chat) -> list[Message]:
    """What dan may see: nine messages, one of which is recalled, after three that came before dan."""
    say(chat, "a", "b", "c")
    chat.add_members(GID, ["dan"])
    sent = say(chat, *"defghij")
    chat.recall(GID, sent[3].msgid, by="ann")
    say(chat, "k", sender="bob")
    return chat.pull("dan", GID)


def places(visible: list[Message]) -> Iterator[str]:
    """Every msgid of the group, before and after it, and the places between."""
    for packed in {msgids.pack(message.msgid) for message in visible}:
        for near in (packed - 1, packed, packed + 1):
            yield msgids.unpack(near)
    yield msgids.unpack(1)
    yield msgids.unpack(msgids.HIGHEST)


@pytest.mark.parametrize("trimmed", range(13))
def test_pages_equal_those_of_a_plain_list_at_every_trim_point(
    chat: Chat, visible: list[Message], trimmed: int
) -> None:
    everything = chat.pull("cyd", GID)
    if trimmed:
        leave_to_sql(chat, everything[trimmed - 1].msgid)

    for limit in (1, 2, 9, 500):
        assert page_of(chat, "dan", GID, limit) == plain_page(visible, limit)
        for place in places(everything):
            assert page_of(chat, "dan", GID, limit, before=place) == plain_page(visible, limit, before=place)
            assert page_of(chat, "dan", GID, limit, after=place) == plain_page(visible, limit, after=place)
            assert page_of(chat, "dan", GID, limit, around=place) == plain_page(visible, limit, around=place)
        assert scroll_back(chat, "dan", GID, limit) == scroll_on(chat, "dan", GID, limit) == visible


@pytest.mark.parametrize("limit", [0, -1, 501, 1.5, "5", None, True])
def test_a_limit_that_makes_no_sense_is_refused(chat: Chat, limit: Any) -> None:
    with pytest.raises(InvalidInput, match="limit"):
        chat.history("bob", GID, limit=limit)


@pytest.mark.parametrize("msgid", ["", "0-0", "5", 7, "1577836800000-0", "1767225600000-8192"])
@pytest.mark.parametrize("cursor", ["before", "after", "around"])
def test_what_can_be_no_msgid_is_refused(chat: Chat, cursor: str, msgid: Any) -> None:
    with pytest.raises(InvalidInput, match="is not a msgid"):
        chat.history("bob", GID, **{cursor: msgid})


def test_two_cursors_are_refused(chat: Chat) -> None:
    [sent] = say(chat, "hi")
    cursors: dict[str, Any] = {"before": sent.msgid, "after": sent.msgid, "around": sent.msgid, "first_unread": True}
    for one, other in combinations(cursors.items(), 2):
        with pytest.raises(InvalidInput, match="exclude each other"):
            chat.history("bob", GID, **dict([one, other]))


def test_only_a_member_sees_history_and_only_since_the_present_join(chat: Chat) -> None:
    say(chat, "before")
    chat.remove_members(GID, ["bob"])
    say(chat, "between")

    with pytest.raises(NotMember):
        chat.history("bob", GID)
    with pytest.raises(NotMember):
        chat.history("bob", GID, first_unread=True)
    with pytest.raises(UnknownGroup):
        chat.history("bob", "nowhere")
    chat.add_members(GID, ["bob"])
    assert page_of(chat, "bob", GID, 5) == ([], False, False)
    assert page_of(chat, "bob", GID, 5, first_unread=True) == ([], False, False)
    [after] = say(chat, "after")
    assert page_of(chat, "bob", GID, 5) == ([after], False, False)


# The first unread message.


@pytest.mark.parametrize("trimmed", [0, 3, 5, 7, 12, 15])
def test_the_page_is_around_the_first_message_of_others_that_is_not_recalled(chat: Chat, trimmed: int) -> None:
    """Past bob's offset come own messages, a recalled one, then the first unread one."""
    say(chat, *"0123")
    chat.ack("bob", GID)
    [hidden] = say(chat, "recalled")
    own = say(chat, *"abcdefg", sender="bob")
    [unread, *_] = say(chat, *"xyz")
    if trimmed:
        leave_to_sql(chat, chat.pull("cyd", GID)[trimmed - 1].msgid)
    chat.recall(GID, hidden.msgid, by="ann")
    visible = chat.pull("cyd", GID)

    for limit in (1, 2, 5, 6, 50):
        expected = plain_page(visible, limit, around=unread.msgid)
        assert page_of(chat, "bob", GID, limit, first_unread=True) == expected
    chat.ack("bob", GID, own[3].msgid)
    assert page_of(chat, "bob", GID, 4, first_unread=True) == plain_page(visible, 4, around=unread.msgid)
    chat.ack("bob", GID)
    assert page_of(chat, "bob", GID, 4, first_unread=True) == plain_page(visible, 4)


@pytest.mark.parametrize("before", [0, 1, 2, 63, 64, 200])
def test_the_first_unread_message_is_found_behind_any_number_of_own_ones(chat: Chat, before: int) -> None:
    say(chat, "unread, so that bob is not caught up")
    for number in range(before):
        chat.send(GID, str(number), sender_uid="bob")
    chat.ack("bob", GID, chat.pull("cyd", GID)[0].msgid)
    [unread] = say(chat, "unread")

    page = chat.history("bob", GID, first_unread=True, limit=1)

    assert page.messages == (unread,)


def test_where_only_own_messages_are_past_the_offset_the_page_is_the_newest(chat: Chat) -> None:
    first, *_ = say(chat, "one")
    say(chat, *"abc", sender="bob")
    chat.ack("bob", GID, first.msgid)
    visible = chat.pull("cyd", GID)

    assert page_of(chat, "bob", GID, 2, first_unread=True) == plain_page(visible, 2)
    leave_to_sql(chat, visible[-1].msgid)
    assert page_of(chat, "bob", GID, 2, first_unread=True) == plain_page(visible, 2)


# What happens meanwhile.


class Meanwhile:
    """Performs the effects of a Chat, and does something before or after each."""

    def __init__(self, chat: Chat, happen: Callable[[], object], *, kind: type[Effect[Any]]) -> None:
        self.happen = happen
        self._kind = kind
        self._is_busy = False
        self._perform_one = chat.performer.perform_one
        chat.performer.perform_one = self._perform  # type: ignore[method-assign]

    def _perform(self, effect: Effect[Any]) -> Any:
        answer = self._perform_one(effect)
        if isinstance(effect, self._kind) and not self._is_busy:
            self._is_busy = True
            self.happen()
            self._is_busy = False
        return answer


@pytest.mark.parametrize("where", ["before", "after", "around", "newest"])
@pytest.mark.parametrize("start", range(0, 12, 3))
def test_no_hole_and_no_double_while_redis_is_trimmed_between_any_two_calls(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, where: str, start: int
) -> None:
    monkeypatch.setattr(queries, "PAGE_BYTES", 30)  # a page takes many calls
    visible = say(chat, *(str(number) * 10 for number in range(12)))
    store(chat)
    trims = iter(visible[start:])

    def trim_one() -> None:
        if message := next(trims, None):
            leave_to_sql(chat, message.msgid)

    Meanwhile(chat, trim_one, kind=RedisCalls)
    cursor: dict[str, Any] = {} if where == "newest" else {where: visible[5].msgid}

    assert page_of(chat, "bob", GID, 8, **cursor) == plain_page(visible, 8, **cursor)


@pytest.mark.parametrize("trimmed", [0, 4])
def test_messages_that_come_meanwhile_follow_without_a_hole(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, trimmed: int
) -> None:
    monkeypatch.setattr(queries, "PAGE_BYTES", 30)
    before = say(chat, *("x" * 10 for _ in range(8)))
    if trimmed:
        leave_to_sql(chat, before[trimmed - 1].msgid)
    later: list[Message] = []
    Meanwhile(chat, lambda: later.extend(say(chat, "y" * 10)), kind=RedisCalls)

    page = chat.history("bob", GID, after=before[1].msgid, limit=20)

    assert list(page.messages) == [*before, *later][2 : 2 + len(page.messages)]
    assert len(page.messages) > 6
    assert (page.older, page.newer) == (True, False)  # as of the last call, which has brought the newest


def test_a_recall_that_comes_between_redis_and_sql_is_seen_or_not_but_never_with_its_text_later(chat: Chat) -> None:
    sent = say(chat, *"abcdef")
    leave_to_sql(chat, sent[3].msgid)
    Meanwhile(chat, lambda: chat.recall(GID, sent[1].msgid, by="ann"), kind=SqlQuery)

    page = chat.history("bob", GID, limit=6)

    assert [message.content for message in page.messages] == ["a", "", "c", "d", "e", "f"]


def test_a_page_of_long_texts_is_read_in_bounded_calls(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "PAGE_BYTES", 1000)
    visible = say(chat, *("x" * (100 * number) for number in range(1, 30)))
    calls: list[RedisCalls[Any]] = []
    perform_one = chat.performer.perform_one

    def note(effect: Effect[Any]) -> Any:
        answer = perform_one(effect)
        if isinstance(effect, RedisCalls):
            calls.append(effect)
            [part] = answer
            for side in (part.older, part.newer):
                assert len(side) < 2 or sum(len(message.content) for message in side) <= 1000
        return answer

    monkeypatch.setattr(chat.performer, "perform_one", note)

    assert page_of(chat, "bob", GID, 20, around=visible[15].msgid) == plain_page(visible, 20, around=visible[15].msgid)
    assert 10 < len(calls) < 30


# One member, and the database.


def test_a_member_is_as_the_list_of_members_has_them(chat: Chat) -> None:
    say(chat, "one", "two")
    chat.ack("bob", GID, chat.pull("bob", GID)[0].msgid)
    session = chat.begin_session("bob")

    assert [chat.member(GID, uid) for uid in ("ann", "bob", "cyd")] == list(chat.members(GID))
    assert chat.member(GID, "bob").online
    chat.end_session("bob", session)
    for gid, uid, error in ((GID, "zoe", NotMember), ("nowhere", "bob", UnknownGroup), (GID, "", InvalidInput)):
        with pytest.raises(error):
            chat.member(gid, uid)


def test_the_database_is_opened_on_demand_or_says_why_not(chat: Chat) -> None:
    with pytest.raises(DatabaseNotReady):
        chat.open_database()
    say(chat, "hi")
    store(chat)
    chat.open_database()
    chat.open_database()
