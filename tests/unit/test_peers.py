"""Scenarios of other chat systems, as their documentation tells them. Where we differ on purpose, it says why."""

import pytest
from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import InvalidInput, UnknownMessage
from imcore.model.values import Message
from tests.helpers.workers import run_workers

LATER = "2600000000000-0"
"""A msgid of the year 2052."""


@pytest.fixture
def chat(chat: Chat) -> Chat:
    """A group of three."""
    chat.create_group("team", ["ann", "bob", "cleo"])
    return chat


def say(chat: Chat, count: int, sender: str = "ann") -> list[str]:
    return [chat.send("team", f"{number}", sender_uid=sender).msgid for number in range(count)]


def counts(chat: Chat, msgid: str) -> tuple[int, int]:
    tally = chat.tally("team", msgid)
    return tally.read, tally.delivered


def unread(chat: Chat, uid: str) -> int:
    return chat.unread(uid)[0].unread


class TestTinode:
    """`{note what="recv"}` and `{note what="read"}`: each has a position of its own, and read takes recv along."""

    def test_recv_and_read_are_apart_and_read_implies_recv(self, chat: Chat) -> None:
        sent = say(chat, 3)
        for msgid in sent[:2]:
            chat.delivered("bob", "team", msgid)
        assert [counts(chat, msgid) for msgid in sent] == [(0, 1), (0, 1), (0, 0)]
        chat.ack("bob", "team", sent[2])
        assert [counts(chat, msgid) for msgid in sent] == [(1, 1), (1, 1), (1, 1)]

    def test_a_lower_note_changes_nothing(self, chat: Chat) -> None:
        sent = say(chat, 2)
        chat.ack("bob", "team", sent[1])
        assert not chat.ack("bob", "team", sent[0]).advanced
        delivery = chat.delivered("bob", "team", sent[0])
        assert (delivery.last_delivered_msgid, delivery.advanced) == (sent[1], False)

    def test_a_note_past_the_newest_is_refused(self, chat: Chat) -> None:
        """Tinode ignores it in silence; whoever sends it has a fault, and should hear of it."""
        say(chat, 1)
        for confirm in (chat.ack, chat.delivered):
            with pytest.raises(UnknownMessage):
                confirm("bob", "team", LATER)

    def test_recv_does_not_pass_a_hole(self, chat: Chat) -> None:
        """Tinode's recv is cumulative over messages that never came; ours stays before the first that is missing."""
        sent = say(chat, 3)
        assert not chat.delivered("bob", "team", sent[2]).advanced
        assert [counts(chat, msgid)[1] for msgid in sent] == [0, 0, 0]
        chat.delivered("bob", "team", sent[0])
        assert [counts(chat, msgid)[1] for msgid in sent] == [1, 0, 0]

    def test_what_one_has_sent_is_no_hole(self, chat: Chat) -> None:
        [first] = say(chat, 1)
        say(chat, 2, "bob")
        [last] = say(chat, 1)
        chat.delivered("bob", "team", first)
        assert chat.delivered("bob", "team", last).advanced


class TestStream:
    """`markUnread`: from a message on, of the last 100; the read state of others stays as it was for them."""

    def test_marked_messages_are_unread_without_own_ones(self, chat: Chat) -> None:
        sent = say(chat, 4)
        say(chat, 2, "bob")
        chat.ack("bob", "team")
        marked = chat.mark_unread("bob", "team", sent[1])
        assert (marked.unread, marked.marked) == (3, True)
        assert unread(chat, "bob") == 3

    def test_receipts_do_not_go_back(self, chat: Chat) -> None:
        """Stream's last_read goes back for everybody: senders see a message unread again. Ours were read, and stay."""
        sent = say(chat, 2)
        chat.ack("bob", "team")
        chat.mark_unread("bob", "team", sent[0])
        assert [counts(chat, msgid) for msgid in sent] == [(1, 1), (1, 1)]
        assert chat.unread("bob")[0].last_ack_msgid == sent[1]

    def test_only_the_last_100_can_be_marked(self, chat: Chat) -> None:
        sent = say(chat, 101)
        with pytest.raises(InvalidInput, match="newest 100"):
            chat.mark_unread("bob", "team", sent[0])
        assert chat.mark_unread("bob", "team", sent[1]).unread == 100

    def test_reading_again_removes_the_mark(self, chat: Chat) -> None:
        sent = say(chat, 3)
        chat.ack("bob", "team")
        chat.mark_unread("bob", "team", sent[0])
        chat.ack("bob", "team", sent[2])
        assert (unread(chat, "bob"), chat.unread("bob")[0].marked) == (0, False)

    def test_new_messages_add_to_what_is_marked(self, chat: Chat) -> None:
        sent = say(chat, 2)
        chat.ack("bob", "team")
        chat.mark_unread("bob", "team", sent[1])
        say(chat, 2)
        assert unread(chat, "bob") == 3
        say(chat, 1, "bob")  # speaking is not reading
        assert unread(chat, "bob") == 3


class TestMatrix:
    """`m.read.private`: of the two receipts the one of the most recent event counts for the user's own unread count."""

    def test_a_private_receipt_lowers_the_own_count_and_nothing_else(self, chat: Chat) -> None:
        sent = say(chat, 3)
        assert chat.ack("bob", "team", sent[1], private=True).advanced
        assert unread(chat, "bob") == 1
        assert [counts(chat, msgid) for msgid in sent] == [(0, 0), (0, 0), (0, 0)]
        assert chat.member("team", "bob").unread == 3

    def test_the_most_recent_of_both_counts(self, chat: Chat) -> None:
        sent = say(chat, 4)
        chat.ack("bob", "team", sent[2], private=True)
        chat.ack("bob", "team", sent[0])
        assert unread(chat, "bob") == 1
        assert counts(chat, sent[0]) == (1, 1)
        chat.ack("bob", "team", sent[3])
        assert unread(chat, "bob") == 0
        assert [counts(chat, msgid) for msgid in sent] == [(1, 1)] * 4

    def test_a_private_receipt_behind_the_public_one_changes_nothing(self, chat: Chat) -> None:
        sent = say(chat, 3)
        chat.ack("bob", "team", sent[2])
        assert not chat.ack("bob", "team", sent[0], private=True).advanced
        assert unread(chat, "bob") == 0

    def test_marking_a_room_unread_moves_no_receipt_back(self, chat: Chat) -> None:
        """MSC2867's flag, which newer proposals let move the receipt back: here it is the user's own alone."""
        sent = say(chat, 2)
        chat.ack("bob", "team", private=True)
        chat.mark_unread("bob", "team", sent[1])
        assert unread(chat, "bob") == 1
        assert chat.unmark("bob", "team").unread == 0


class TestNextcloud:
    """Talk's history around a message, and its read marker."""

    def test_the_context_of_a_message_has_both_sides(self, chat: Chat) -> None:
        sent = say(chat, 7)
        page = chat.history("bob", "team", around=sent[3], limit=3)
        assert [message.msgid for message in page.messages] == sent[2:5]
        assert (page.older, page.newer) == (True, True)

    def test_the_context_of_a_deleted_message_is_there(self, chat: Chat) -> None:
        sent = say(chat, 3)
        chat.recall("team", sent[1], by="ann")
        page = chat.history("bob", "team", around=sent[1], limit=3)
        assert [(message.msgid, message.content) for message in page.messages] == [
            *((sent[0], "0"), (sent[1], ""), (sent[2], "2"))
        ]

    def test_marked_as_unread_the_last_message_is(self, chat: Chat) -> None:
        sent = say(chat, 3)
        chat.ack("bob", "team")
        assert chat.mark_unread("bob", "team", sent[-1]).unread == 1

    def test_the_last_common_read_message_is_the_newest_that_all_have_read(self, chat: Chat) -> None:
        sent = say(chat, 3)
        chat.ack("bob", "team", sent[1])
        chat.ack("cleo", "team", sent[2])
        assert [tally.message.msgid for tally in chat.status("team") if not tally.unread] == sent[:2]


class TestZulip:
    """`anchor=first_unread`, with messages on both sides and whether there are more."""

    def texts(self, messages: tuple[Message, ...]) -> list[str]:
        return [message.content for message in messages]

    def test_the_first_unread_message_is_in_the_middle(self, chat: Chat) -> None:
        sent = say(chat, 9)
        chat.ack("bob", "team", sent[3])
        page = chat.history("bob", "team", first_unread=True, limit=5)
        assert self.texts(page.messages) == ["2", "3", "4", "5", "6"]
        assert (page.older, page.newer) == (True, True)

    def test_marked_unread_from_here_the_anchor_is_there(self, chat: Chat) -> None:
        sent = say(chat, 9)
        chat.ack("bob", "team")
        chat.mark_unread("bob", "team", sent[2])
        page = chat.history("bob", "team", first_unread=True, limit=3)
        assert self.texts(page.messages) == ["1", "2", "3"]

    def test_without_unread_messages_the_newest_come(self, chat: Chat) -> None:
        say(chat, 4)
        chat.ack("bob", "team", private=True)
        page = chat.history("bob", "team", first_unread=True, limit=2)
        assert self.texts(page.messages) == ["2", "3"]
        assert (page.older, page.newer) == (True, False)

    def test_an_anchor_need_be_no_message(self, chat: Chat) -> None:
        say(chat, 3)
        page = chat.history("bob", "team", around=LATER, limit=2)
        assert self.texts(page.messages) == ["2"]


def test_all_of_it_is_the_same_in_sql(chat: Chat) -> None:
    """Once the workers have stored it: whoever reads the tables sees the same positions."""
    sent = say(chat, 3)
    chat.delivered("bob", "team", sent[0])
    chat.ack("cleo", "team", sent[1])
    run_workers(chat)
    rows = chat.system.database.fetch(
        text("SELECT uid, last_ack_msgid, last_delivered_msgid FROM group_users ORDER BY uid")
    )
    first, second, third = map(msgids.pack, sent)
    assert [tuple(row) for row in rows] == [("ann", third, third), ("bob", None, first), ("cleo", second, second)]
