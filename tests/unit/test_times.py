"""Times as programs and people read them, in UTC and in the zone of the machine."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from imcore.cli.records import shown, zone_trouble
from imcore.model.records import iso

MOMENT = datetime(2026, 11, 30, 10, 19, 10, 259_999, UTC)

Zone = Callable[[str], None]


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zone]:
    """Set the zone of the machine."""

    def to(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield to
    monkeypatch.undo()
    time.tzset()


def local(moment: datetime) -> str:
    return shown(moment, local=True, short=True)


def test_utc_is_the_same_wherever_the_machine_is(zone: Zone) -> None:
    zone("Asia/Kolkata")

    assert iso(MOMENT) == "2026-11-30T10:19:10.259Z"
    assert shown(MOMENT, local=False, short=False) == "2026-11-30T10:19:10.259Z"
    assert shown(MOMENT, local=False, short=True) == "2026-11-30 10:19:10Z"
    assert shown(MOMENT.replace(second=0), local=False, short=True) == "2026-11-30 10:19:00Z"


@pytest.mark.parametrize(
    ("name", "short", "whole"),
    [
        ("Europe/Berlin", "2026-11-30 11:19:10+01", "2026-11-30T11:19:10.259+01:00"),
        ("Asia/Kolkata", "2026-11-30 15:49:10+05:30", "2026-11-30T15:49:10.259+05:30"),
        ("America/St_Johns", "2026-11-30 06:49:10-03:30", "2026-11-30T06:49:10.259-03:30"),
        ("UTC", "2026-11-30 10:19:10+00", "2026-11-30T10:19:10.259+00:00"),
        ("", "2026-11-30 10:19:10+00", "2026-11-30T10:19:10.259+00:00"),
        ("<+12>-12", "2026-11-30 22:19:10+12", "2026-11-30T22:19:10.259+12:00"),
        ("EST5EDT,M3.2.0,M11.1.0", "2026-11-30 05:19:10-05", "2026-11-30T05:19:10.259-05:00"),
    ],
)
def test_a_local_time_has_its_offset_from_utc(zone: Zone, name: str, short: str, whole: str) -> None:
    zone(name)

    assert local(MOMENT) == short
    assert shown(MOMENT, local=True, short=False) == whole
    assert zone_trouble() is None


def test_offsets_distinguish_the_hour_that_comes_twice(zone: Zone) -> None:
    zone("Europe/Berlin")
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)

    assert [local(first), local(first + timedelta(hours=1))] == ["2026-10-25 02:30:00+02", "2026-10-25 02:30:00+01"]


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("Asia/Tokyo", datetime.max.replace(tzinfo=UTC)),
        ("America/New_York", datetime.min.replace(tzinfo=UTC)),
    ],
)
def test_a_time_outside_the_calendar_of_the_zone_is_shown_in_utc(zone: Zone, name: str, moment: datetime) -> None:
    zone(name)

    assert local(moment) == shown(moment, local=False, short=True)


@pytest.mark.parametrize(
    "name", ["Nowhere/City", ":Nowhere/City", "Europe", "../../etc/passwd", "Europe/Berlin ", "zzz\x00"]
)
def test_an_unknown_zone_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {"TZ": name})

    assert "does not know the time zone" in str(zone_trouble())
