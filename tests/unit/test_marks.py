"""Marks and reading in private: what is unread for the user alone."""

from imcore import Chat


def test_an_own_message_after_a_mark_is_not_unread(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    first = chat.send("team", "one", sender_uid="bob")
    chat.ack("ann", "team")
    assert chat.mark_unread("ann", "team", first.msgid).unread == 1

    chat.send("team", "mine", sender_uid="ann")

    assert chat.unread("ann")[0].unread == 1
