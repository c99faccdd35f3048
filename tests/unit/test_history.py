"""History on fakeredis and SQLite: pages equal those of plain lists, at every trim point."""

from collections.abc import Iterator

import pytest

from imcore import Chat, Message
from imcore import msgid as msgids
from tests.helpers.plain_history import page_of, plain_page, scroll_back, scroll_on
from tests.helpers.talk import leave_to_sql, say

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

    for limit in (1, 2, 3, 8, 9, 10, 500):
        assert page_of(chat, "dan", GID, limit) == plain_page(visible, limit)
        for place in places(everything):
            assert page_of(chat, "dan", GID, limit, before=place) == plain_page(visible, limit, before=place)
            assert page_of(chat, "dan", GID, limit, after=place) == plain_page(visible, limit, after=place)
            assert page_of(chat, "dan", GID, limit, around=place) == plain_page(visible, limit, around=place)
        assert scroll_back(chat, "dan", GID, limit) == scroll_on(chat, "dan", GID, limit) == visible
