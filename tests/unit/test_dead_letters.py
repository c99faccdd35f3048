"""Dead letters: listed, shown, requeued, dropped."""

from dataclasses import replace

import pytest

from imcore import Chat
from imcore.errors import InvalidInput, UnknownDeadLetter
from imcore.streams import dead_letters
from imcore.streams.events import Created, Entry
from imcore.streams.journal import Journal
from imcore.workers.persist import KIND
from tests.helpers.journals import journal, write
from tests.helpers.persist_runs import SETTINGS


class TestDeadLetters:
    @pytest.fixture
    def dead_id(self, chat: Chat) -> str:
        chat.create_group("g")
        worker = journal(chat.system.client, max_deliveries=1)
        [entry] = worker.read()
        assert worker.fail(entry, "no room")
        return next(dead_letters.list_dead(chat.system.client)).id

    def test_requeued_letter_is_read_as_the_same_event(self, chat: Chat, dead_id: str) -> None:
        # When it is requeued
        letter = dead_letters.show(chat.system.client, dead_id)
        dead_letters.requeue(chat.system.client, dead_id)

        # Then it is a new entry, that happened when it happened
        worker = journal(chat.system.client, max_deliveries=1)
        [entry] = worker.read()
        assert entry == Entry(entry.partition, entry.id, Created("g"), of=letter.entry, kind=KIND)
        assert entry.id != letter.entry
        assert list(dead_letters.list_dead(chat.system.client)) == []

        # And so it is when it has failed again
        worker.fail(entry, "still no room")
        dead_letters.requeue(chat.system.client, next(dead_letters.list_dead(chat.system.client)).id)
        [third] = worker.read()
        assert third.of == letter.entry

    @pytest.mark.parametrize("kind", ["feast", "group"])
    def test_requeued_letter_is_for_the_kind_that_failed(self, chat: Chat, kind: str) -> None:
        # Given an entry that no kind of worker can handle
        write(chat.system.client, 0, kind=kind)
        kinds = ["persist", "receipts"]
        workers = {kind: Journal(chat.system.client, kind, replace(SETTINGS, max_deliveries=1)) for kind in kinds}
        for worker in workers.values():
            for entry in worker.read():
                worker.fail(entry, "bad")
        letters = {letter.worker: letter.id for letter in dead_letters.list_dead(chat.system.client)}
        assert list(letters) == kinds

        # When one letter is requeued, again and again
        for _ in range(3):
            dead_letters.requeue(chat.system.client, letters["receipts"])
            assert workers["persist"].read() == []
            assert workers["persist"].drained()
            [entry] = workers["receipts"].read()
            assert workers["receipts"].fail(entry, "still bad")
            letters = {letter.worker: letter.id for letter in dead_letters.list_dead(chat.system.client)}

        # Then there are as many letters as before, and they say the same
        assert list(letters) == kinds
        assert dead_letters.show(chat.system.client, letters["receipts"]).fields["kind"] == kind
        assert len(list(dead_letters.list_dead(chat.system.client))) == 2

    def test_dropped_letter_is_gone(self, chat: Chat, dead_id: str) -> None:
        dead_letters.drop(chat.system.client, dead_id)
        assert list(dead_letters.list_dead(chat.system.client)) == []
        assert journal(chat.system.client).read() == []

    @pytest.mark.parametrize("act", [dead_letters.show, dead_letters.requeue, dead_letters.drop])
    @pytest.mark.parametrize("unknown", ["0:1767225600000-0", "99:1767225600000-0"])
    def test_unknown_letter_is_refused(self, chat: Chat, act: object, unknown: str) -> None:
        assert callable(act)
        with pytest.raises(UnknownDeadLetter, match=unknown):
            act(chat.system.client, unknown)

    @pytest.mark.parametrize("wrong", ["", "x", "1767225600000-0", "0:", "-1:1-1", "0:1-0\n", "\u0660:1-1", "0:-"])
    def test_invalid_letter_id_is_refused(self, chat: Chat, wrong: str) -> None:
        with pytest.raises(InvalidInput):
            dead_letters.show(chat.system.client, wrong)

    def test_letter_without_an_entry_can_only_be_dropped(self, chat: Chat) -> None:
        # Given an entry that was deleted while a worker had it in hand
        entry_id = write(chat.system.client, 0, kind="group", gid="g")
        worker = journal(chat.system.client, max_deliveries=1)
        worker.read()
        chat.system.client.driver.xdel(chat.system.client.space.journal(0), entry_id)
        worker.reread_open()
        [entry] = worker.read()
        assert worker.fail(entry, "gone")
        [letter] = dead_letters.list_dead(chat.system.client)
        assert (letter.entry, letter.fields) == (entry_id, {})

        # Then it cannot go back, and is not lost over it
        with pytest.raises(InvalidInput, match="nothing is left"):
            dead_letters.requeue(chat.system.client, letter.id)
        dead_letters.drop(chat.system.client, letter.id)
        assert list(dead_letters.list_dead(chat.system.client)) == []

    def test_many_letters_are_listed_in_pages(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dead_letters, "PAGE", 2)
        worker = journal(chat.system.client, max_deliveries=1)
        written = [(p, write(chat.system.client, p, kind="feast")) for p in (0, 1) for _ in range(5)]
        for entry in worker.read():
            worker.fail(entry, "")
        assert [(int(each.id[0]), each.entry) for each in dead_letters.list_dead(chat.system.client)] == written
