"""The model itself, on histories small enough to check by hand."""

import pytest

from imcore.errors import GroupExists, InvalidInput, NotMember, NotSender, UnknownGroup, UnknownMessage
from tests.model.reference import Model
from tests.model.replay import replay


def said(model: Model, uid: str, msgid: str, client_msgid: str | None = None) -> None:
    model.send("g", uid, f"text of {msgid}", client_msgid, msgid)


def receipts(model: Model, msgid: str) -> dict[str, bool]:
    group = model.groups["g"]
    return group.receipts(group.with_msgid(msgid))


@pytest.fixture
def model() -> Model:
    """A group of ann, bob and cy, in which ann has said m1 and m2."""
    model = Model()
    model.create_group("g", ["ann", "bob", "cy"])
    said(model, "ann", "m1")
    said(model, "ann", "m2")
    return model


def test_every_member_but_the_sender_is_a_recipient_and_has_not_read_it(model: Model) -> None:
    assert receipts(model, "m1") == {"bob": False, "cy": False}


def test_one_ack_covers_all_before_it_and_no_ack_goes_back(model: Model) -> None:
    assert model.ack("g", "bob", "m2") == ("m2", True)
    assert model.ack("g", "bob", "m1") == ("m2", False)
    assert receipts(model, "m1") == receipts(model, "m2") == {"bob": True, "cy": False}


def test_a_message_is_read_by_the_first_ack_that_covers_it(model: Model) -> None:
    model.ack("g", "bob", "m1")
    model.ack("g", "cy", "m2")
    model.ack("g", "bob", "m1")
    model.ack("g", "bob", "m2")
    group = model.groups["g"]
    assert [group.read_by_ack(message) for message in group.messages] == [{"bob": 1, "cy": 2}, {"bob": 3, "cy": 2}]


def test_an_ack_without_a_msgid_goes_to_the_newest(model: Model) -> None:
    assert model.ack("g", "cy") == ("m2", True)
    assert model.unread("cy", "g") == 0


def test_an_ack_in_an_empty_group_leaves_the_offset_before_the_first_message() -> None:
    model = Model()
    model.create_group("g", ["ann"])
    assert model.ack("g", "ann") == (None, False)


def test_a_sender_who_was_caught_up_stays_caught_up(model: Model) -> None:
    assert model.pull("ann", "g") == []
    assert model.groups["g"].current("ann").acked == 2


def test_a_send_does_not_ack_what_the_sender_has_not_pulled(model: Model) -> None:
    said(model, "bob", "m3")
    assert [message.msgid for message in model.pull("bob", "g")] == ["m1", "m2", "m3"]
    assert model.unread("bob", "g") == 2


def test_own_messages_are_pulled_and_never_unread(model: Model) -> None:
    said(model, "bob", "m3")
    model.ack("g", "bob", "m2")
    assert [message.msgid for message in model.pull("bob", "g", 5)] == ["m3"]
    assert model.unread("bob", "g") == 0


def test_a_recalled_message_and_its_tombstone_are_pulled_and_unread_for_nobody(model: Model) -> None:
    assert model.check_recall("g", "m1", "ann", admin=False)
    tombstone = model.recall("g", "m1", "ann", "m3")
    assert model.pull("bob", "g")[0].recalled
    assert model.pull("bob", "g")[2] is tombstone
    assert model.unread("bob", "g") == 1
    assert receipts(model, "m1") == receipts(model, "m3") == {"bob": False, "cy": False}
    assert model.pull("ann", "g") == []


def test_only_the_sender_and_an_administrator_may_recall_and_only_once(model: Model) -> None:
    with pytest.raises(NotSender):
        model.check_recall("g", "m1", "bob", admin=False)
    assert model.check_recall("g", "m1", "bob", admin=True)
    model.recall("g", "m1", "eve", "m3")
    assert not model.check_recall("g", "m1", "bob", admin=False)
    assert receipts(model, "m3") == {"ann": False, "bob": False, "cy": False}
    with pytest.raises(InvalidInput):
        model.check_recall("g", "m3", "eve", admin=True)


def test_a_newcomer_is_no_recipient_of_what_was_said_before(model: Model) -> None:
    model.add_members("g", ["dan"])
    assert "dan" not in receipts(model, "m2")
    assert model.unread("dan", "g") == 0
    assert model.ack("g", "dan", "m1") == ("m2", False)


def test_a_leaver_keeps_what_they_had_read_and_stays_unread_for_the_rest(model: Model) -> None:
    model.ack("g", "bob", "m1")
    model.remove_members("g", ["bob"])
    said(model, "cy", "m3")
    assert receipts(model, "m1") == {"bob": True, "cy": False}
    assert receipts(model, "m2") == {"bob": False, "cy": False}
    assert receipts(model, "m3") == {"ann": False}


def test_members_who_come_back_have_not_read_messages_they_missed_or_left_unread(model: Model) -> None:
    model.remove_members("g", ["bob"])
    said(model, "ann", "m3")
    model.add_members("g", ["bob"])
    said(model, "ann", "m4")
    model.ack("g", "bob", "m4")
    assert receipts(model, "m2") == {"bob": False, "cy": False}
    assert receipts(model, "m3") == {"cy": False}
    assert receipts(model, "m4") == {"bob": True, "cy": False}


def test_a_sender_who_left_and_came_back_is_never_a_recipient_of_their_own(model: Model) -> None:
    model.remove_members("g", ["ann"])
    model.add_members("g", ["ann"])
    said(model, "bob", "m3")
    assert receipts(model, "m1") == {"bob": False, "cy": False}
    assert receipts(model, "m3") == {"ann": False, "cy": False}


def test_only_the_same_sender_in_the_same_group_repeats_a_message(model: Model) -> None:
    said(model, "bob", "m3", "c1")
    model.create_group("h", ["bob"])
    assert model.stored("g", "bob", "c1") is not None
    assert model.stored("g", "cy", "c1") is None
    assert model.stored("h", "bob", "c1") is None
    assert model.stored("g", "ann", None) is None


def test_the_same_group_again_changes_nothing_and_other_members_are_refused(model: Model) -> None:
    model.create_group("g", ["cy", "bob", "ann", "ann"])
    with pytest.raises(GroupExists):
        model.create_group("g", ["ann"])


def test_strangers_and_foreign_messages_are_refused(model: Model) -> None:
    with pytest.raises(UnknownGroup):
        model.ack("h", "ann")
    with pytest.raises(NotMember):
        said(model, "eve", "m3")
    with pytest.raises(NotMember):
        model.ack("g", "eve", "m1")
    with pytest.raises(UnknownMessage):
        model.ack("g", "bob", "m3")


def test_a_replay_does_what_the_contract_says_of_an_import() -> None:
    # Given events of every kind, by strangers too
    first = {"type": "message", "gid": "g", "uid": "ann", "content": "one", "client_msgid": "1"}
    events = [
        first,
        {"type": "ack", "gid": "g", "uid": "bob", "client_msgid": "1"},
        {"type": "message", "gid": "g", "uid": "ann", "content": "two", "client_msgid": "2"},
        {"type": "rename", "gid": "g", "uid": "ann", "new_uid": "anna"},
        first,
        {"type": "leave", "gid": "g", "uid": "nobody"},
        {"type": "ack", "gid": "g", "uid": "bob", "client_msgid": "2"},
    ]
    # When
    model = Model()
    replay(model, events, {"g": ["m1", "m2"]})
    # Then the repeated message did not even bring ann back
    assert model.groups["g"].members() == ["anna", "bob"]
    assert receipts(model, "m1") == {}
    assert receipts(model, "m2") == {"bob": True}
