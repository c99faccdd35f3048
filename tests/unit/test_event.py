"""Events: parsing the lines of an import."""

import json
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from imcore import msgid as msgids
from imcore.errors import InvalidInput
from imcore.importer.event import parse
from tests.helpers.import_events import HELLO


@given(st.sampled_from(["", "+", "-"]), st.integers(0, 3), st.integers(0, 10**6))
def test_year_is_only_reported_if_it_is_before_1_or_after_9999(sign: str, zeros: int, year: int) -> None:
    time = f"{sign}{'0' * zeros}{year:04}-01-01T00:00:00Z"
    said = ""
    try:
        parse(json.dumps(HELLO | {"time": time}).encode(), max_content_bytes=10)
    except InvalidInput as error:
        said = str(error)

    if sign == "-" or not 1 <= year <= 9999:
        assert "is not between the years 1 and 9999" in said
    elif sign or zeros:
        assert said == f"time must be ISO 8601; it is {time!r}"
    else:
        assert said == ""


@given(
    st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)),  # noqa: DTZ001 (the zone comes behind it)
    st.sampled_from("Tt "),
    st.sampled_from(["Z", "z", "+00:00", "+05:30", ""]),
)
def test_time_is_accepted_in_every_form_of_rfc_3339(moment: datetime, between: str, zone: str) -> None:
    event = parse(
        json.dumps(HELLO | {"time": moment.isoformat(between, "milliseconds") + zone}).encode(), max_content_bytes=10
    )

    offset = timedelta(hours=5, minutes=30) if zone == "+05:30" else timedelta()
    assert event.sent_at_ms == msgids.to_ms((moment - offset).replace(tzinfo=UTC))
