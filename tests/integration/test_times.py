"""Times of senders, from the years 1 to 9999, are the same in every part of the system."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imcore import Chat
from imcore import msgid as msgids
from imcore.admin.retention import trim
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase
from imcore.importer.importer import import_events
from imcore.model.values import Draft
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.settings import Settings
from imcore.streams.calls import message_calls
from imcore.workers.receipts import ReceiptsWorker
from tests.deadline import wait_until
from tests.persist_runs import new_persist

TIMES = [
    "0001-01-01T00:00:00.000Z",
    "0001-01-01T14:00:00+14:00",
    "0001-01-01T00:00:00-14:00",
    "1899-12-31",
    "1969-12-31T23:59:59.999Z",
    "2026-02-28T12:00:00.0005Z",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T09:59:59.999-14:00",
    "9999-12-31T23:59:59.999",
]


@pytest.fixture
def chat(valkey: str, database_url: str, tmp_path: Path) -> Iterator[Chat]:
    settings = Settings.from_env({}, data_dir=str(tmp_path), redis_url=valkey, database_url=database_url)
    settings = replace(settings, block_ms=1, retry_ms=0, receipt_window_ms=0, partitions=1)
    with Chat.connect(settings=settings) as chat:
        chat.system.database.upgrade()
        yield chat


def run_workers(chat: Chat) -> None:
    for make in (new_persist, ReceiptsWorker):
        worker = make(chat.system.client, chat.system.database, chat.system.settings)
        wait_until(lambda worker=worker: worker.step() == 0 and worker.drained())
        worker.close()


def pulled(chat: Chat) -> list[datetime | None]:
    return [message.sent_at for message in chat.pull("bob", "team")]


def test_time_of_a_sender_is_kept_everywhere(chat: Chat, tmp_path: Path) -> None:
    # Given
    message = {"type": "message", "gid": "team", "uid": "ann", "content": "hi"}
    events = [{"type": "join", "gid": "team", "uid": "bob"}]
    events += [message | {"time": time, "client_msgid": str(number)} for number, time in enumerate(TIMES)]
    expected = [datetime.fromisoformat(time) for time in TIMES]
    expected = [time if time.tzinfo else time.replace(tzinfo=UTC) for time in expected]
    expected = [time.replace(microsecond=time.microsecond // 1000 * 1000) for time in expected]
    # When
    errors: list[str] = []
    lines = [json.dumps(event).encode() for event in events]
    summary = import_events(chat, lines, on_error=lambda _, reason: errors.append(reason))
    # Then
    assert (summary.messages, errors) == (len(TIMES), [])
    assert pulled(chat) == expected
    run_workers(chat)
    assert list(check(chat.system)) == []
    assert trim(chat.system, keep_messages=0).entries == len(TIMES)
    assert pulled(chat) == expected
    chat.system.client.driver.flushall()
    with Chat.connect(settings=chat.system.settings) as again:
        assert rebuild(again.system, yes=True).messages == len(TIMES)
        assert pulled(again) == expected
        assert list(check(again.system)) == []
        with LocalDatabase(tmp_path / "bob.db", "bob") as local:
            Device(again, "bob", local).sync()
            assert len(list(local.log())) == len(TIMES)


def test_time_out_of_range_from_another_program_is_left_out(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    drafts = [Draft("ann", "hi", "", ms) for ms in (msgids.LATEST_MS + 1, msgids.EARLIEST_MS - 1, 10**30)]
    with chat.gateway() as gateway:
        gateway.open("bob")
        # When it is sent without the checks of Chat
        chat.system.client.call(message_calls.send(chat.system.client.space, "team", drafts, 1000))
        heard: list[datetime | None] = []
        wait_until(lambda: heard.extend(event.message.sent_at for event in gateway.poll(0.05)) or len(heard) == 3)
        gateway.close(clean=False)
    # Then
    assert heard == pulled(chat) == [None, None, None]
    run_workers(chat)
    assert list(check(chat.system)) == []
    trim(chat.system, keep_messages=0)
    assert pulled(chat) == [None, None, None]
    assert not [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]
