"""Times as programs and as people read them."""

import os
import re
from datetime import UTC, datetime

_RULE = re.compile(r"(?:[A-Za-z]{3,}|<[A-Za-z0-9+-]{3,}>)[+-]?\d")
"""The beginning of a value of TZ that gives the distance from UTC itself, as in POSIX, instead of naming a zone."""


def iso(moment: datetime) -> str:
    """Return the time in ISO 8601, UTC, with milliseconds."""
    return _iso(moment.astimezone(UTC), "milliseconds")


def shown(moment: datetime, *, local: bool, short: bool) -> str:
    """Return the time as people read it, in UTC or in this machine's zone with its offset.

    A short one has a blank and no milliseconds: `2026-11-30 10:19:10Z`, `2026-11-30 11:19:10+01`.
    """
    text = _iso(_in_zone(moment) if local else moment.astimezone(UTC), "seconds" if short else "milliseconds")
    return text.replace("T", " ").removesuffix(":00") if short else text


def zone_trouble() -> str | None:
    """Return a warning if this machine does not know the zone that TZ names, else None."""
    from zoneinfo import ZoneInfo  # noqa: PLC0415 (only --local-time needs it)

    name = os.environ.get("TZ", "").removeprefix(":")
    if not name or _RULE.match(name) or os.path.isfile(name):
        return None
    try:
        ZoneInfo(name)
    except (LookupError, OSError, ValueError):
        return f"this machine does not know the time zone {name!r} (TZ): times are in UTC"
    return None


def _in_zone(moment: datetime) -> datetime:
    try:
        return moment.astimezone()
    except (OverflowError, ValueError):  # in this zone it is before the year 1, or after 9999
        return moment.astimezone(UTC)


def _iso(moment: datetime, timespec: str) -> str:
    text = moment.isoformat(timespec=timespec)
    return text.replace("+00:00", "Z") if moment.tzinfo is UTC else text
