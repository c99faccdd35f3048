"""Packed msgids: the same order, there and back, and nothing else is taken for one."""

import re
import reprlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imcore import msgid
from imcore.errors import InvalidInput

HIGHEST = 2**53 - 1
packed_ids = st.integers(1, HIGHEST)
halves = st.tuples(st.integers(msgid.EPOCH_MS, msgid.EPOCH_MS + 2**40 - 1), st.integers(0, 2**13 - 1)).filter(
    lambda half: half != (msgid.EPOCH_MS, 0)
)


@given(packed_ids)
@example(1)
@example(HIGHEST)
def test_pack_reverses_unpack(packed: int) -> None:
    assert msgid.pack(msgid.unpack(packed)) == packed
    assert msgid.pack_id(msgid.unpack(packed).encode()) == packed


@given(halves, halves)
@example((msgid.EPOCH_MS, 1), (msgid.EPOCH_MS + 1, 0))
@example((msgid.EPOCH_MS + 1, 8191), (msgid.EPOCH_MS + 2, 0))
def test_packed_ids_sort_as_the_entries_do(one: tuple[int, int], other: tuple[int, int]) -> None:
    packed_one, packed_other = msgid.pack(text_of(one)), msgid.pack(text_of(other))
    assert (packed_one < packed_other) == (one < other)
    assert (packed_one == packed_other) == (one == other)


@given(halves)
def test_a_packed_id_is_exact_as_a_double_and_as_a_bigint(half: tuple[int, int]) -> None:
    packed = msgid.pack(text_of(half))
    assert int(float(packed)) == packed
    assert packed < 2**63


@given(st.one_of(st.text(), st.from_regex(r"[0-9]{0,16}-?[0-9]{0,5}", fullmatch=True)))
def test_only_the_text_of_an_id_is_accepted(text: str) -> None:
    try:
        packed = msgid.pack(text)
    except InvalidInput as error:
        assert "not a msgid" in str(error)  # noqa: PT017 (most texts are refused, not all)
    else:
        assert msgid.unpack(packed) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "0-0",
        "0-1",
        "*",
        "$",
        "+",
        "1767225600000",
        "1767225600000-",
        "-0",
        "1767225600000-0 ",
        " 1767225600000-0",
        "1767225600000-0\n",
        "+1767225600000-0",
        "1767225600000--1",
        "01767225600000-0",
        "1767225600000-00",
        "1767225600000-01",
        "1767225600000-8192",
        "1767225600000-18446744073709551615",
        "1767225600000-*",
        "1_767225600000-0",
        "١٧٦٧٢٢٥٦٠٠٠٠٠-1",
        f"{msgid.EPOCH_MS - 1}-0",
        f"{msgid.EPOCH_MS - 1}-8191",
        f"{msgid.EPOCH_MS}-0",
        f"{msgid.EPOCH_MS + 2**40}-0",
        "999999999999999-0",
        "9" * 5000 + "-0",
    ],
)
def test_a_text_that_is_no_msgid_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(f"{reprlib.repr(text)} is not a msgid: ")):
        msgid.pack(text)


def test_the_lowest_and_the_highest_id() -> None:
    assert msgid.pack(f"{msgid.EPOCH_MS}-1") == 1
    assert msgid.pack(f"{msgid.EPOCH_MS + 2**40 - 1}-8191") == HIGHEST
    assert msgid.time_of(msgid.unpack(HIGHEST)).year == 2054


def test_the_offset_before_the_first_message() -> None:
    assert msgid.unpack(msgid.NONE) == "0-0"
    assert msgid.unpack_offset(msgid.NONE) is None
    assert msgid.unpack_offset(1) == f"{msgid.EPOCH_MS}-1"


@given(packed_ids)
def test_the_time_is_the_first_half_to_the_millisecond(packed: int) -> None:
    time = msgid.time_of(msgid.unpack(packed))
    assert time.tzinfo is UTC
    assert (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) == msgid.time_ms(packed)
    assert time.microsecond % 1000 == 0
    assert time == msgid.from_ms(msgid.time_ms(packed))


@given(st.datetimes(timezones=st.just(UTC)))
@example(datetime.min.replace(tzinfo=UTC))
@example(datetime.max.replace(tzinfo=UTC))
def test_a_time_of_any_year_comes_back_to_the_millisecond(moment: datetime) -> None:
    assert timedelta(0) <= moment - msgid.from_ms(msgid.to_ms(moment)) < timedelta(milliseconds=1)


@pytest.mark.parametrize("ms", [msgid.EARLIEST_MS - 1, msgid.LATEST_MS + 1, 10**18, -(10**18), 10**400])
def test_there_is_no_time_outside_the_years_1_to_9999(ms: int) -> None:
    with pytest.raises(ValueError, match="is outside the years 1 to 9999"):
        msgid.from_ms(ms)


def test_an_id_that_somebody_has_chosen_has_a_time_too() -> None:
    assert msgid.time_of("18446744073709551615-1") == datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)
    assert msgid.time_of("5-1") == datetime(1970, 1, 1, 0, 0, 0, 5000, tzinfo=UTC)


@given(st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.timezones()))  # noqa: DTZ001 (bounds are naive)
def test_milliseconds_of_a_time_are_rounded_down_in_any_zone(moment: datetime) -> None:
    ms = msgid.to_ms(moment)
    assert timedelta(0) <= moment - msgid.from_ms(ms) < timedelta(milliseconds=1)


def test_a_time_without_a_zone_has_no_milliseconds() -> None:
    with pytest.raises(ValueError, match="a time needs its zone"):
        msgid.to_ms(datetime(2026, 1, 1))  # noqa: DTZ001


@given(packed_ids)
def test_the_first_id_at_a_time_is_the_lowest_of_it(packed: int) -> None:
    ms = msgid.time_ms(packed)
    assert msgid.first_at(ms) <= packed < msgid.first_at(ms + 1)


def test_before_the_epoch_every_id_is_later() -> None:
    assert msgid.first_at(0) == 0
    assert msgid.first_at(msgid.EPOCH_MS) == 0


def text_of(half: tuple[int, int]) -> str:
    ms, counter = half
    return f"{ms}-{counter}"
