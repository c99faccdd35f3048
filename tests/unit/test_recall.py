"""Recalls on fakeredis and SQLite: what members, senders and the database see of a message that was withdrawn."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imcore import msgid as msgids
from imcore.admin import retention
from imcore.chat import Chat
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.errors import InvalidInput, NotSender, UnknownGroup, UnknownMessage
from imcore.model.values import Message
from imcore.sql.database import Database
from imcore.streams.wire import message_of_row
from imcore.system import System
from imcore.workers.fetch import WorkItem, fetch
from tests.helpers.cli import im, let_commands_use
from tests.helpers.persist_runs import new_persist
from tests.helpers.rows import contents
from tests.helpers.workers import run_workers

GID = "team"
NOT_YET = "2600000000000-0"


@pytest.fixture
def chat(chat: Chat) -> Chat:
    """A group of ann, bob and cy."""
    chat.create_group(GID, ["ann", "bob", "cy"])
    return chat


def trim(chat: Chat) -> None:
    """Let SQL alone have all messages so far."""
    run_workers(chat)
    retention.trim(chat.system, keep_messages=0)


def unread(chat: Chat, uid: str) -> int:
    return chat.unread(uid)[0].unread


def counts(chat: Chat, msgid: str) -> tuple[int, int]:
    tally = chat.tally(GID, msgid)
    return tally.read, tally.unread


@pytest.fixture(params=["in redis", "trimmed"])
def settle(request: pytest.FixtureRequest, chat: Chat) -> Callable[[], None]:
    """Make what was said so far a thing of Redis, or of SQL alone."""
    return (lambda: trim(chat)) if request.param == "trimmed" else (lambda: None)


def test_a_recalled_message_loses_its_content_and_is_followed_by_a_tombstone(
    chat: Chat, settle: Callable[[], None]
) -> None:
    # Given two messages
    first = chat.send(GID, "regrettable", sender_uid="ann", client_msgid="c1")
    second = chat.send(GID, "fine", sender_uid="ann")
    settle()

    # When the first one is recalled
    tombstone = chat.recall(GID, first.msgid, by="ann")

    # Then members get all three, the first one without its content
    assert (tombstone.seq, tombstone.sender_uid, tombstone.content) == (3, "ann", "")
    assert tombstone.recalls == first.msgid
    assert chat.pull("bob", GID) == [replace(first, content="", recalled=True), second, tombstone]
    settle()
    assert chat.pull("bob", GID) == [replace(first, content="", recalled=True), second, tombstone]
    assert [each.message for each in chat.status(GID)] == chat.pull("bob", GID)
    assert chat.message_status(GID, first.msgid).message.recalled


def test_a_recalled_message_and_its_tombstone_are_not_unread(chat: Chat, settle: Callable[[], None]) -> None:
    # Given a message that bob has not read and one that he has
    messages = [chat.send(GID, text, sender_uid="ann") for text in ("read", "regrettable", "fine")]
    chat.ack("bob", GID, messages[0].msgid)
    settle()

    # When both are recalled
    for message in messages[:2]:
        chat.recall(GID, message.msgid, by="ann")

    # Then one is left, for those who have read some of it and for those who have not
    assert [unread(chat, uid) for uid in ("ann", "bob", "cy")] == [0, 1, 1]
    settle()
    assert [unread(chat, uid) for uid in ("ann", "bob", "cy")] == [0, 1, 1]
    chat.ack("bob", GID)
    assert unread(chat, "bob") == 0


def test_unread_leaves_out_own_recalled_messages_once(chat: Chat, settle: Callable[[], None]) -> None:
    # Given an own message past the sender's offset, which is not unread for them as it is
    chat.send(GID, "before", sender_uid="bob")
    own = chat.send(GID, "regrettable", sender_uid="ann")
    assert unread(chat, "ann") == 1
    settle()

    # When it is recalled, by a sender who had not caught up
    chat.recall(GID, own.msgid, by="ann")

    # Then nothing is left out twice
    assert [unread(chat, uid) for uid in ("ann", "bob", "cy")] == [1, 0, 1]
    chat.send(GID, "after", sender_uid="cy")
    assert [unread(chat, uid) for uid in ("ann", "bob", "cy")] == [2, 1, 1]


def test_a_recalled_message_keeps_its_tallies_and_readers(chat: Chat, settle: Callable[[], None]) -> None:
    # Given a message that bob has read
    message = chat.send(GID, "regrettable", sender_uid="ann")
    chat.ack("bob", GID)
    settle()

    # When it is recalled, and cy reads on
    chat.recall(GID, message.msgid, by="ann")
    assert counts(chat, message.msgid) == (1, 1)
    chat.ack("cy", GID)
    settle()

    # Then all who have passed it count, and are named
    assert counts(chat, message.msgid) == (2, 0)
    status = chat.message_status(GID, message.msgid)
    assert [reader.uid for reader in status.read_by] == ["bob", "cy"]


def test_receipts_name_the_message_and_never_the_tombstone(chat: Chat, settle: Callable[[], None]) -> None:
    # Given a recalled message and its tombstone, which ann and an administrator have sent
    message = chat.send(GID, "regrettable", sender_uid="ann")
    chat.recall(GID, message.msgid, by="cy", admin=True)
    settle()

    # When bob reads on
    chat.ack("bob", GID)
    run_workers(chat)

    # Then the sender gets the receipt of the message alone
    assert [(each.msgid, each.read, each.unread) for each in chat.receipts("ann")] == [(message.msgid, 1, 1)]
    assert chat.receipts("cy") == []


def test_a_second_recall_changes_nothing(chat: Chat, settle: Callable[[], None]) -> None:
    message = chat.send(GID, "regrettable", sender_uid="ann")
    tombstone = chat.recall(GID, message.msgid, by="ann")
    settle()

    for by in ("ann", "bob"):
        assert chat.recall(GID, message.msgid, by=by) == replace(message, content="", recalled=True)
    assert chat.group(GID).last_msgid == tombstone.msgid


def test_recall_is_refused_to_others(chat: Chat, settle: Callable[[], None]) -> None:
    message = chat.send(GID, "mine", sender_uid="ann")
    tombstone = chat.recall(GID, chat.send(GID, "regrettable", sender_uid="ann").msgid, by="ann")
    settle()

    with pytest.raises(NotSender, match="is not by 'bob'"):
        chat.recall(GID, message.msgid, by="bob")
    with pytest.raises(NotSender):
        chat.recall(GID, message.msgid, by="eve")
    with pytest.raises(InvalidInput, match="is itself the recall"):
        chat.recall(GID, tombstone.msgid, by="ann")
    with pytest.raises(InvalidInput, match="is itself the recall"):
        chat.recall(GID, tombstone.msgid, by="eve", admin=True)
    with pytest.raises(UnknownMessage):
        chat.recall(GID, NOT_YET, by="ann")
    with pytest.raises(UnknownGroup):
        chat.recall("nowhere", message.msgid, by="ann")
    with pytest.raises(InvalidInput):
        chat.recall(GID, "soon", by="ann")
    assert chat.group(GID).last_msgid == tombstone.msgid


def test_an_administrator_who_is_no_member_may_recall(chat: Chat, settle: Callable[[], None]) -> None:
    # Given messages of two members, and somebody from outside
    messages = [chat.send(GID, "regrettable", sender_uid=uid) for uid in ("ann", "bob")]
    settle()

    # When the outsider recalls the first one
    tombstone = chat.recall(GID, messages[0].msgid, by="root", admin=True)
    settle()

    # Then they are no member by it, and everybody else is a recipient of the tombstone
    assert tombstone.sender_uid == "root"
    assert chat.group(GID).members == 3
    assert chat.groups_of("root") == []
    assert counts(chat, tombstone.msgid) == (0, 3)
    assert [unread(chat, uid) for uid in ("ann", "bob", "cy")] == [1, 0, 1]
    chat.ack("cy", GID)
    assert counts(chat, tombstone.msgid) == (1, 2)
    assert [reader.uid for reader in chat.message_status(GID, tombstone.msgid).read_by] == ["cy"]


def test_a_sender_who_has_left_may_still_recall(chat: Chat, settle: Callable[[], None]) -> None:
    message = chat.send(GID, "regrettable", sender_uid="ann")
    chat.remove_members(GID, ["ann"])
    settle()

    chat.recall(GID, message.msgid, by="ann")

    assert chat.group(GID).members == 2
    assert unread(chat, "bob") == 0


def test_a_sender_who_was_caught_up_stays_caught_up_after_a_recall(chat: Chat) -> None:
    message = chat.send(GID, "regrettable", sender_uid="ann")

    tombstone = chat.recall(GID, message.msgid, by="ann")

    assert chat.pull("ann", GID) == []
    assert chat.unread("ann")[0].last_ack_msgid == tombstone.msgid


def test_a_repeated_send_of_a_recalled_message_is_answered_without_content(
    chat: Chat, settle: Callable[[], None]
) -> None:
    message = chat.send(GID, "regrettable", sender_uid="ann", client_msgid="c1")
    chat.recall(GID, message.msgid, by="ann")
    settle()

    again = chat.send(GID, "regrettable", sender_uid="ann", client_msgid="c1")

    assert again == replace(message, content="", recalled=True)
    assert chat.group(GID).messages == 2


def test_a_newcomer_sees_nothing_of_a_recalled_message(chat: Chat) -> None:
    message = chat.send(GID, "regrettable", sender_uid="ann")
    chat.add_members(GID, ["dan"])

    tombstone = chat.recall(GID, message.msgid, by="ann")

    assert chat.pull("dan", GID) == [tombstone]
    assert unread(chat, "dan") == 0


def test_recall_deletes_the_content_from_sql(chat: Chat) -> None:
    messages = [chat.send(GID, text, sender_uid="ann") for text in ("regrettable", "fine")]
    run_workers(chat)
    assert contents(chat.system.database) == ["regrettable", "fine"]

    chat.recall(GID, messages[0].msgid, by="ann")
    run_workers(chat)

    assert contents(chat.system.database) == ["", "fine", ""]


def test_a_tombstone_that_is_stored_before_its_message(chat: Chat) -> None:
    # Given a worker that has fetched a message, and is slow to store it
    chat.send(GID, "regrettable", sender_uid="ann", client_msgid="c1")
    slow, fast = (new_persist(chat.system.client, chat.system.database, chat.system.settings) for _ in range(2))
    entries = slow._journal.read()
    works = [WorkItem(entry) for entry in entries]
    fetch(chat.system.client, chat.system.database, works)

    # When another one stores the recall of that message, and then the first one continues
    before = chat.pull("bob", GID)[0]
    chat.recall(GID, before.msgid, by="ann")
    assert fast.step() == 1
    assert contents(chat.system.database) == ["", ""]
    slow._write(works, [])

    # Then the content is nowhere, and the message is there once, with all else
    assert contents(chat.system.database) == ["", ""]
    row = chat.system.database.message(GID, msgids.pack(before.msgid))
    assert row
    assert message_of_row(row) == replace(before, content="", recalled=True)


def test_a_tombstone_of_a_message_that_redis_has_no_more(chat: Chat) -> None:
    message = chat.send(GID, "regrettable", sender_uid="ann")
    trim(chat)

    chat.recall(GID, message.msgid, by="ann")
    run_workers(chat)

    assert contents(chat.system.database) == ["", ""]


class TestLocalDatabase:
    """What a member's own device keeps."""

    @pytest.fixture
    def local(self, tmp_path: Path) -> Iterator[LocalDatabase]:
        with LocalDatabase(path_of(tmp_path, "bob"), "bob") as local:
            yield local

    def log(self, local: LocalDatabase) -> list[tuple[str, bool]]:
        return [(line.content, line.recalled) for line in local.log()]

    def test_a_message_that_was_received_before_is_blanked(self, chat: Chat, local: LocalDatabase) -> None:
        messages = [chat.send(GID, text, sender_uid="ann") for text in ("regrettable", "fine")]
        Device(chat, "bob", local).sync()
        assert self.log(local) == [("regrettable", False), ("fine", False)]

        chat.recall(GID, messages[0].msgid, by="ann")
        Device(chat, "bob", local).sync()

        assert self.log(local) == [("", True), ("fine", False)]

    def test_a_message_that_comes_later_never_had_its_content(self, chat: Chat, local: LocalDatabase) -> None:
        message = chat.send(GID, "regrettable", sender_uid="ann")
        chat.recall(GID, message.msgid, by="ann")

        Device(chat, "bob", local).sync()

        assert self.log(local) == [("", True)]

    def test_an_own_message_keeps_its_ticks(self, chat: Chat, local: LocalDatabase) -> None:
        message = chat.send(GID, "regrettable", sender_uid="bob")
        local.keep([message])
        local.keep([chat.recall(GID, message.msgid, by="bob")])
        chat.ack("ann", GID)
        run_workers(chat)

        Device(chat, "bob", local).sync()

        assert [(line.recalled, line.state) for line in local.log()] == [(True, "read 1/2")]

    def test_an_own_message_kept_after_its_tombstone_is_blank(self, chat: Chat, local: LocalDatabase) -> None:
        # Given a client that receives the recall before it has kept what it sent
        message = chat.send(GID, "regrettable", sender_uid="bob")
        tombstone = chat.recall(GID, message.msgid, by="bob")
        local.keep([tombstone])

        local.keep([message])

        assert self.log(local) == [("", True)]

    def test_the_answer_to_a_second_recall_blanks_an_own_message(self, chat: Chat, local: LocalDatabase) -> None:
        message = chat.send(GID, "regrettable", sender_uid="bob")
        local.keep([message])
        chat.recall(GID, message.msgid, by="ann", admin=True)

        local.keep([chat.recall(GID, message.msgid, by="bob")])

        assert self.log(local) == [("", True)]


class TestCommand:
    @pytest.fixture(autouse=True)
    def _invocation(self, chat: Chat, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        let_commands_use(chat.system, monkeypatch)
        monkeypatch.setattr(Chat, "close", lambda _: None)
        monkeypatch.setenv("IM_DATA_DIR", str(tmp_path))

    def lines(self, *args: str) -> list[dict[str, object]]:
        result = im("--json", *args)
        assert (result.exit_code, result.stderr) == (0, "")
        return [json.loads(line) for line in result.stdout.splitlines()]

    @pytest.fixture
    def message(self, chat: Chat) -> Message:
        return chat.send(GID, "regrettable", sender_uid="ann")

    def test_im_recall_prints_the_tombstone(self, message: Message) -> None:
        [tombstone] = self.lines("recall", GID, message.msgid, "--by", "ann", "--yes")

        assert tombstone.pop("time")
        assert tombstone.pop("msgid")
        assert tombstone == {
            "gid": GID,
            "seq": 2,
            "sender_uid": "ann",
            "content": "",
            "client_msgid": None,
            "recalls": message.msgid,
        }

    def test_a_second_im_recall_prints_the_recalled_message(self, message: Message) -> None:
        self.lines("recall", GID, message.msgid, "--by", "ann", "--yes")

        [again] = self.lines("recall", GID, message.msgid, "--by", "ann", "--yes")

        assert (again["msgid"], again["content"], again["recalled"]) == (message.msgid, "", True)
        assert "recalls" not in again

    def test_im_recall_blanks_the_local_database_of_the_caller(self, chat: Chat) -> None:
        [sent] = self.lines("send", GID, "regrettable", "--from", "ann")
        assert [line["content"] for line in self.lines("log", "ann")] == ["regrettable"]

        self.lines("recall", GID, str(sent["msgid"]), "--by", "ann", "--yes")

        assert [(line["content"], line["recalled"]) for line in self.lines("log", "ann")] == [("", True)]

    def test_im_recall_without_a_terminal_needs_yes(self, chat: Chat, message: Message) -> None:
        result = im("recall", GID, message.msgid, "--by", "ann")

        assert (result.exit_code, result.stdout) == (1, "")
        assert "--yes" in result.stderr
        assert chat.group(GID).messages == 1

    def test_im_recall_as_an_administrator(self, message: Message) -> None:
        refused = im("recall", GID, message.msgid, "--by", "bob", "--yes")
        assert refused.exit_code == 1
        assert refused.stderr == f"im: {message.msgid} of 'team' is not by 'bob'\n"

        assert self.lines("recall", GID, message.msgid, "--by", "bob", "--admin", "--yes")[0]["sender_uid"] == "bob"

    def test_json_marks_recalled_messages_and_tombstones_only(self, chat: Chat, message: Message) -> None:
        tombstone = chat.recall(GID, message.msgid, by="ann")
        chat.send(GID, "fine", sender_uid="ann")

        for command in (["pull", "bob"], ["status", GID]):
            first, second, third = self.lines(*command)
            assert (first["recalled"], first["content"]) == (True, "")
            assert "recalls" not in first
            assert (second["msgid"], second["recalls"]) == (tombstone.msgid, message.msgid)
            assert "recalled" not in second
            assert {"recalled", "recalls"}.isdisjoint(third)
        assert self.lines("status", GID, message.msgid)[0]["recalled"] is True
        first, second = self.lines("log", "bob")
        assert (first["recalled"], "recalled" in second) == (True, False)

    def test_tables_mark_recalled_messages_in_place_of_the_content(self, chat: Chat, message: Message) -> None:
        chat.recall(GID, message.msgid, by="ann")
        chat.send(GID, "fine", sender_uid="ann")
        said = ["(recalled)", f"(recalls {message.msgid})", "fine"]

        for command in (["pull", "bob"], ["status", GID]):
            assert [row.split("\t")[-1] for row in im(*command).stdout.splitlines()[1:]] == said
        assert [row.split("\t")[3] for row in im("log", "bob").stdout.splitlines()[1:]] == ["(recalled)", "fine"]


def test_an_unknown_message_is_unknown_before_any_worker_has_run(chat: Chat, tmp_path: Path) -> None:
    with Chat(
        System(chat.system.client, Database.connect(f"sqlite:///{tmp_path / 'none.db'}"), chat.system.settings)
    ) as early:
        with pytest.raises(UnknownGroup):
            early.recall("no such group", "1767225600000-0", by="ann")
        with pytest.raises(UnknownMessage):
            early.recall(GID, "1767225600000-0", by="ann")
