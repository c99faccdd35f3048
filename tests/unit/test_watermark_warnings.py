"""`persist` logs a partition that it cannot repair now once a minute, however often it tries."""

from types import SimpleNamespace

import pytest

from imcore.errors import TryAgain
from imcore.repair import watch as watch_module
from imcore.repair.watch import Watch
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.util import backoff


def test_watch_warns_of_a_failing_reconciliation_once_a_minute(
    client: RedisClient, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def held(*_: object) -> None:
        raise TryAgain("another process mends partition 0")

    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(watch_module, "time", clock)
    monkeypatch.setattr(watch_module, "reconcile", held)
    watch = Watch(client, database, Settings.from_env({}))
    while clock.now < 1.5 * backoff.REPEAT_AFTER_S:
        for partition in (0, 1):
            with pytest.raises(TryAgain):
                watch._mend(partition, "Redis is older than SQL")
        clock.now += 4
    assert caplog.messages == [
        f"partition {partition}: Redis is older than SQL; the two are reconciled" for partition in (0, 1, 0, 1)
    ]
