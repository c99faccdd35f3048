"""Receipt policies: who is told who has read a message; and users who read in private."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from imcore import Chat, GroupPolicy, Message, UserPolicy
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.errors import InvalidInput, NotAllowed, NotMember, UnknownGroup, UnknownMessage
from imcore.streams.calls import policy_calls
from tests.helpers.talk import leave_to_sql, offset, publish_receipts, say
from tests.helpers.workers import deliver_receipts, persist, store

GID = "team"


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group(GID, ["ann", "bob", "cyd"])
    return chat


@pytest.fixture
def sent(chat: Chat) -> Message:
    """A message of ann's that bob has read."""
    [sent] = say(chat, "hi")
    chat.ack("bob", GID)
    return sent


def asked(chat: Chat, msgid: str, by: str | None) -> tuple[object, ...]:
    """What a user is told about a message: numbers, readers, and who has not read it."""
    status = chat.message_status(GID, msgid, by=by)
    names = ([reader.uid for reader in status.read_by], list(status.unread_by)) if status.has_names else None
    return (status.read, status.unread, status.delivered), names


NUMBERS, NAMES = (1, 1, 1), (["bob"], ["cyd"])


class TestGroups:
    def test_a_policy_is_set_in_parts_and_kept(self, chat: Chat) -> None:
        assert chat.group_policy(GID) == GroupPolicy(GID, "names", "sender")
        assert chat.set_group(GID, receipts="counts") == GroupPolicy(GID, "counts", "sender")
        assert chat.set_group(GID, asked_by="members") == GroupPolicy(GID, "counts", "members")
        assert chat.set_group(GID) == chat.group_policy(GID) == GroupPolicy(GID, "counts", "members")
        assert chat.set_group(GID, receipts="names", asked_by="sender") == GroupPolicy(GID, "names", "sender")

    def test_the_same_policy_again_is_no_change(self, chat: Chat) -> None:
        chat.set_group(GID, receipts="off")
        before = journal_length(chat)
        chat.set_group(GID, receipts="off", asked_by="sender")
        assert journal_length(chat) == before

    @pytest.mark.parametrize("how", [{"receipts": "none"}, {"receipts": ""}, {"asked_by": "all"}, {"receipts": 1}])
    def test_a_policy_that_does_not_exist(self, chat: Chat, how: Any) -> None:
        with pytest.raises(InvalidInput, match="must be one of"):
            chat.set_group(GID, **how)
        assert chat.group_policy(GID) == GroupPolicy(GID, "names", "sender")

    def test_an_unknown_group(self, chat: Chat) -> None:
        for call in (lambda: chat.set_group("no", receipts="off"), lambda: chat.group_policy("no")):
            with pytest.raises(UnknownGroup):
                call()

    def test_what_somebody_has_written_by_hand_counts_as_the_default(self, chat: Chat) -> None:
        meta = chat.system.client.space.group(GID).meta
        chat.system.client.driver.hset(meta, mapping={"receipts": b"\xff", "asked_by": "x"})
        assert chat.group_policy(GID) == GroupPolicy(GID, "names", "sender")


class TestQuestions:
    def test_by_default_the_sender_is_told_names_and_others_nothing(self, chat: Chat, sent: Message) -> None:
        assert asked(chat, sent.msgid, None) == asked(chat, sent.msgid, "ann") == (NUMBERS, NAMES)
        for call in by_bob(chat, sent):
            with pytest.raises(NotAllowed, match="only the sender"):
                call()
        assert chat.tallies(GID, [sent.msgid], by="bob") == []
        assert chat.status(GID, by="bob") == []
        assert len(chat.status(GID, by="ann")) == len(chat.tallies(GID, [sent.msgid], by="ann")) == 1

    def test_members_may_ask_about_what_they_may_see(self, chat: Chat, sent: Message) -> None:
        chat.set_group(GID, asked_by="members")
        chat.add_members(GID, ["dan"])
        [later] = say(chat, "later", sender="cyd")

        assert asked(chat, sent.msgid, "bob") == (NUMBERS, NAMES)
        with pytest.raises(UnknownMessage, match="before 'dan' joined"):
            chat.message_status(GID, sent.msgid, by="dan")
        assert [tally.message.msgid for tally in chat.status(GID, by="dan")] == [later.msgid]
        assert [each.msgid for each in chat.tallies(GID, [sent.msgid, later.msgid], by="dan")] == [later.msgid]

    def test_counts_are_numbers_without_names(self, chat: Chat, sent: Message) -> None:
        chat.set_group(GID, receipts="counts")
        assert asked(chat, sent.msgid, "ann") == (NUMBERS, None)
        assert asked(chat, sent.msgid, None) == (NUMBERS, NAMES)
        assert chat.tally(GID, sent.msgid, by="ann").read == 1
        with pytest.raises(NotAllowed):
            chat.why(GID, sent.msgid, "bob", by="ann")

    def test_off_is_nothing(self, chat: Chat, sent: Message) -> None:
        chat.set_group(GID, receipts="off", asked_by="members")
        questions: list[Callable[[], object]] = [
            lambda: chat.message_status(GID, sent.msgid, by="ann"),
            lambda: chat.tally(GID, sent.msgid, by="ann"),
            lambda: chat.tallies(GID, [sent.msgid], by="ann"),
            lambda: chat.status(GID, by="ann"),
            lambda: chat.why(GID, sent.msgid, "bob", by="ann"),
        ]
        for question in questions:
            with pytest.raises(NotAllowed, match="are off"):
                question()
        assert asked(chat, sent.msgid, None) == (NUMBERS, NAMES)

    def test_who_reads_in_private_is_told_numbers_only(self, chat: Chat, sent: Message) -> None:
        chat.set_user("ann", receipts=False)
        assert asked(chat, sent.msgid, "ann") == (NUMBERS, None)
        with pytest.raises(NotAllowed, match="no names"):
            chat.why(GID, sent.msgid, "bob", by="ann")
        chat.set_user("ann", receipts="on")
        assert asked(chat, sent.msgid, "ann") == (NUMBERS, NAMES)
        assert chat.why(GID, sent.msgid, "bob", by="ann").why == "read"

    def test_strangers_are_told_nothing(self, chat: Chat, sent: Message) -> None:
        chat.set_group(GID, asked_by="members")
        chat.remove_members(GID, ["bob"])
        for uid in ("bob", "eve"):
            with pytest.raises(NotMember):
                chat.message_status(GID, sent.msgid, by=uid)
            with pytest.raises(NotMember):
                chat.status(GID, by=uid)
            for msgids in ([], [sent.msgid]):
                with pytest.raises(NotMember):
                    chat.tallies(GID, msgids, by=uid)

    def test_who_has_left_may_ask_about_own_messages(self, chat: Chat, sent: Message) -> None:
        [other] = say(chat, "other", sender="bob")
        chat.remove_members(GID, ["ann"])
        assert asked(chat, sent.msgid, "ann") == (NUMBERS, NAMES)
        assert [each.msgid for each in chat.tallies(GID, [other.msgid, sent.msgid], by="ann")] == [sent.msgid]
        with pytest.raises(NotMember):
            chat.tally(GID, other.msgid, by="ann")
        chat.set_group(GID, receipts="off")
        with pytest.raises(NotAllowed):
            chat.tally(GID, sent.msgid, by="ann")

    def test_unknown_messages(self, chat: Chat, sent: Message) -> None:
        for msgid in ("1767225600000-0", "2600000000000-0"):
            with pytest.raises(UnknownMessage):
                chat.tally(GID, msgid, by="ann")
            assert chat.tallies(GID, [msgid, sent.msgid], by="ann") == [chat.tally(GID, sent.msgid)]

    def test_trimmed_messages(self, chat: Chat, sent: Message) -> None:
        [other] = say(chat, "other", sender="cyd")
        leave_to_sql(chat, other.msgid)
        assert asked(chat, sent.msgid, "ann")[1] == NAMES
        with pytest.raises(NotAllowed, match="only the sender"):
            chat.tally(GID, sent.msgid, by="bob")
        chat.set_group(GID, receipts="counts")
        assert asked(chat, sent.msgid, "ann") == (NUMBERS, None)
        assert [each.msgid for each in chat.tallies(GID, [sent.msgid, other.msgid], by="ann")] == [sent.msgid]
        assert [each.message.msgid for each in chat.status(GID, by="cyd")] == [other.msgid]
        with pytest.raises(UnknownMessage):
            chat.tally(GID, "1767225600000-0", by="ann")

    def test_a_sender_may_ask_about_messages_of_an_earlier_span(self, chat: Chat, sent: Message) -> None:
        chat.remove_members(GID, ["ann"])
        chat.add_members(GID, ["ann"])
        assert asked(chat, sent.msgid, "ann") == (NUMBERS, NAMES)


def by_bob(chat: Chat, sent: Message) -> list[Callable[[], object]]:
    return [
        lambda: chat.message_status(GID, sent.msgid, by="bob"),
        lambda: chat.tally(GID, sent.msgid, by="bob"),
        lambda: chat.why(GID, sent.msgid, "cyd", by="bob"),
    ]


class TestReceipts:
    def test_those_of_a_group_whose_receipts_are_off_wait(self, chat: Chat, sent: Message) -> None:
        chat.create_group("other", ["ann", "bob"])
        say(chat, "there", gid="other")
        chat.ack("bob", "other")
        deliver_receipts(chat)
        session = chat.begin_session("ann")
        assert {receipt.gid for receipt in chat.receipts("ann")} == {GID, "other"}

        chat.set_group(GID, receipts="off")

        assert {receipt.gid for receipt in chat.receipts("ann")} == {"other"}
        assert {receipt.gid for receipt in chat.heartbeat("ann", session)} == {"other"}
        with chat.listen("ann", start="live") as listener:
            assert {event.gid for event in listener.poll(0.2) if hasattr(event, "read")} == {"other"}  # and confirmed
        chat.set_group(GID, receipts="names")
        assert {receipt.gid for receipt in chat.receipts("ann")} == {GID}

    def test_nothing_is_published_while_they_are_off(self, chat: Chat, sent: Message) -> None:
        chat.set_group(GID, receipts="off")
        publish_receipts(chat, [sent.msgid])
        assert chat.system.client.driver.zcard(chat.system.client.space.group(GID).dirty("ann")) == 0


class TestUsers:
    def test_while_it_is_off_each_ack_is_private_in_every_group(self, chat: Chat) -> None:
        chat.create_group("other", ["ann", "bob"])  # in another partition
        assert chat.user_policy("bob") == UserPolicy("bob", "on")
        assert chat.set_user("bob", receipts=False) == UserPolicy("bob", "off") == chat.user_policy("bob")
        for gid in (GID, "other"):
            [sent] = say(chat, "hi", gid=gid)
            assert chat.ack("bob", gid).advanced
            assert (chat.tally(gid, sent.msgid).read, offset(chat, "bob", gid)) == (0, None)
            assert chat.ack_many(gid, [("bob", None)])[0] == chat.ack("bob", gid)
        assert [each.unread for each in chat.unread("bob")] == [0, 0]

        chat.set_user("bob", receipts="on")
        [sent] = say(chat, "again")
        chat.ack("bob", GID)
        assert chat.tally(GID, sent.msgid).read == 1

    def test_what_was_read_before_stays_read(self, chat: Chat, sent: Message) -> None:
        chat.set_user("bob", receipts="off")
        assert chat.tally(GID, sent.msgid).read == 1

    @pytest.mark.parametrize("receipts", ["names", "", None, 1, "ON"])
    def test_what_cannot_be_chosen(self, chat: Chat, receipts: Any) -> None:
        with pytest.raises(InvalidInput, match="receipts must be one of on, off"):
            chat.set_user("bob", receipts=receipts)

    def test_a_process_that_died_over_it_is_made_good_by_a_worker(self, chat: Chat) -> None:
        space, client = chat.system.client.space, chat.system.client
        own = space.partition_of("bob")
        client.call(policy_calls.set_receipts(space, own, "bob", is_off=True))
        others = [partition for partition in range(space.partitions) if partition != own]
        assert others
        assert not any(client.call(policy_calls.reads_in_private(space, each, "bob")) for each in others)

        persist(chat)

        assert all(client.call(policy_calls.reads_in_private(space, each, "bob")) for each in others)

    def test_a_choice_that_changes_meanwhile_is_copied_again(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        space, client = chat.system.client.space, chat.system.client
        call_each, changes = client.call_each, [False]

        def change_meanwhile(calls: Any, **how: Any) -> Any:
            answers = call_each(calls, **how)
            if calls[0].function == "im_set_receipts" and len(calls[0].keys) == 2 and changes:
                client.call(policy_calls.set_receipts(space, space.partition_of("bob"), "bob", is_off=changes.pop()))
            return answers

        monkeypatch.setattr(client, "call_each", change_meanwhile)
        chat.set_user("bob", receipts="off")
        kept = [client.call(policy_calls.reads_in_private(space, p, "bob")) for p in range(space.partitions)]
        assert kept == [False] * space.partitions


class TestSql:
    def rows(self, chat: Chat, table: str) -> list[tuple[Any, ...]]:
        with chat.system.database.connection() as connection:
            return [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}"))]

    def test_the_newest_policy_is_stored(self, chat: Chat) -> None:
        store(chat)
        [(gid, created, *policy)] = self.rows(chat, "chat_groups")
        assert (gid, policy) == (GID, ["names", "sender", 0])
        chat.set_group(GID, receipts="off", asked_by="members")
        chat.set_group(GID, receipts="counts")
        store(chat)
        [(_, created_then, receipts, asked_by, changed)] = self.rows(chat, "chat_groups")
        assert (created_then, receipts, asked_by, changed > 0) == (created, "counts", "members", True)

    def test_the_newest_choice_of_a_user_is_stored(self, chat: Chat) -> None:
        chat.set_user("bob", receipts="off")
        chat.set_user("ann", receipts="off")
        chat.set_user("bob", receipts="on")
        store(chat)
        assert [row[:2] for row in self.rows(chat, "user_settings")] == [("ann", "off"), ("bob", "on")]


def journal_length(chat: Chat) -> int:
    return sum(chat.system.client.driver.xlen(key) for key in chat.system.client.space.journals())


def test_a_device_keeps_no_tallies_of_a_group_whose_receipts_are_off(chat: Chat, sent: Message, tmp_path: Path) -> None:
    chat.set_group(GID, receipts="off")
    with LocalDatabase(path_of(tmp_path, "ann"), "ann") as local:
        device = Device(chat, "ann", local)
        device.keep([sent])
        device.sync()
        assert [line.state for line in local.log()] == ["stored"]
        chat.set_group(GID, receipts="counts")
        device.sync()
        assert [line.state for line in local.log()] == ["read 1/2"]
