"""Limits of inputs: every boundary, in bytes of UTF-8, and the errors beyond."""

import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imcore import msgid
from imcore.errors import InvalidInput
from imcore.model.limits import (
    MAX_NAME_BYTES,
    check_content,
    check_limit,
    check_msgid,
    check_name,
    check_receipts,
    check_time,
    check_time_ms,
    check_uids,
)
from imcore.model.values import Receipt

ODD = [
    "#ubuntu",
    "{0}",
    "{x}",
    "a:b",
    "a[b]c",
    "[red]eve[/red]",
    "o'neil",
    "%s",
    "50%",
    "a_b",
    "群主",
    "👩‍👩‍👧",
    "e\u0301",
    " ",
    "-x",
    "\\",
    "*?",
]


class TestNames:
    @pytest.mark.parametrize("name", [*ODD, "x", "x" * 128, "é" * 64, "群" * 42 + "ab", "👍" * 32])
    def test_what_is_allowed_comes_back_unchanged(self, name: str) -> None:
        assert check_name(name, "uid") == name

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("", "gid is empty: give 1 to 128 bytes"),
            ("x" * 129, "gid has 129 bytes: at most 128 are allowed"),
            ("é" * 64 + "x", "gid has 129 bytes: at most 128 are allowed"),
            ("👍" * 33, "gid has 132 bytes: at most 128 are allowed"),
            ("a\nb", r"gid 'a\nb' has a control character: leave it out"),
            ("\x1b[2J", r"gid '\x1b[2J' has a control character: leave it out"),
            ("a\u2028b", r"gid 'a\u2028b' has a control character: leave it out"),
            ("a\ud800", "gid is not valid UTF-8"),
            ("\udcff", "gid is not valid UTF-8"),
        ],
    )
    def test_what_is_not_allowed_is_refused_in_one_printable_line(self, name: str, said: str) -> None:
        with pytest.raises(InvalidInput) as refusal:
            check_name(name, "gid")
        assert str(refusal.value) == said
        assert said.isprintable()

    @given(st.text())
    @example("x" * MAX_NAME_BYTES)
    @example("\x7f")
    @example("\x80")
    @example("\x9f")
    @example("\xa0")
    def test_a_name_is_allowed_exactly_when_it_keeps_the_rules(self, name: str) -> None:
        forbidden = any(unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"} for letter in name)
        size = len(name.encode(errors="surrogatepass"))
        assert is_allowed(name) == (1 <= size <= MAX_NAME_BYTES and not forbidden)

    def test_every_control_character_is_refused(self) -> None:
        controls = [chr(code) for code in range(0x300) if unicodedata.category(chr(code)) == "Cc"]
        assert len(controls) == 65
        assert [letter for letter in controls if is_allowed(f"a{letter}b")] == []


class TestUids:
    def test_each_counts_once_in_the_order_given(self) -> None:
        assert check_uids(["b", "a", "b", "c", "a"]) == ["b", "a", "c"]
        assert check_uids(iter(["x"])) == ["x"]
        assert check_uids(()) == []

    def test_one_bad_uid_refuses_all(self) -> None:
        with pytest.raises(InvalidInput, match="uid is empty"):
            check_uids(["a", ""])

    def test_a_single_text_is_not_taken_for_its_letters(self) -> None:
        with pytest.raises(InvalidInput, match="uids are a list"):
            check_uids("bob")


class TestContent:
    @pytest.mark.parametrize("content", [*ODD, "a\r\nb\tc", "\x1b[31mred", "\x01", "\x7f\x85", "x" * 3000])
    def test_what_is_allowed_comes_back_unchanged(self, content: str) -> None:
        assert check_content(content, 65_536) == content

    @pytest.mark.parametrize(("content", "size"), [("x" * 10, 10), ("é" * 5, 10), ("👍" * 2, 8)])
    def test_the_limit_is_in_bytes_and_itself_allowed(self, content: str, size: int) -> None:
        assert check_content(content, size) == content
        with pytest.raises(InvalidInput, match=rf"content has {size} bytes: at most {size - 1} are allowed \(IM_MAX"):
            check_content(content, size - 1)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("", "content is empty: write something"),
            ("a\x00b", "content has a NUL character, which PostgreSQL cannot store: leave it out"),
            ("\ud83d", "content is not valid UTF-8"),
        ],
    )
    def test_content_that_no_database_can_keep_is_refused(self, content: str, said: str) -> None:
        with pytest.raises(InvalidInput) as refusal:
            check_content(content, 65_536)
        assert str(refusal.value) == said


class TestMsgids:
    def test_a_msgid_is_packed(self) -> None:
        assert check_msgid("1767225600000-7") == msgid.pack("1767225600000-7")

    @pytest.mark.parametrize("text", ["", "x", "1767225600000", "1767225600000-", "-1", "1-2-3", "\x1b[2J", "\ud800"])
    def test_anything_else_is_refused_with_an_example(self, text: str) -> None:
        with pytest.raises(InvalidInput, match=r" is not a msgid: it looks like 1767225600000-0$") as refusal:
            check_msgid(text)
        assert str(refusal.value).isprintable()

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("2677348427776-0", "the last possible one is 2677348427775-8191, of the year 2054"),
            ("99999999999999-0", "the last possible one is 2677348427775-8191, of the year 2054"),
            ("18446744073709551615-0", "the last possible one is 2677348427775-8191, of the year 2054"),
            ("9" * 400 + "-0", "the last possible one is 2677348427775-8191, of the year 2054"),
            ("0-0", "the first possible one is 1577836800000-1, of the year 2020"),
            ("1577836800000-0", "the first possible one is 1577836800000-1, of the year 2020"),
            ("1577836799999-8191", "the first possible one is 1577836800000-1, of the year 2020"),
            ("1767225600000-8192", "its second number is at most 8191"),
            ("1767225600000-18446744073709551615", "its second number is at most 8191"),
            ("01767225600000-0", "its numbers have no leading zeros"),
            ("1767225600000-00", "its numbers have no leading zeros"),
        ],
    )
    def test_a_text_that_only_looks_like_a_msgid_is_refused_with_the_reason(self, text: str, fault: str) -> None:
        with pytest.raises(InvalidInput) as refusal:
            check_msgid(text)
        assert str(refusal.value).endswith(f" is not a msgid: {fault}")
        assert len(str(refusal.value)) < 150

    @given(st.from_regex(r"[0-9]{1,20}-[0-9]{1,6}", fullmatch=True))
    def test_an_entry_id_is_never_said_to_look_like_a_msgid(self, text: str) -> None:
        try:
            check_msgid(text)
        except InvalidInput as refusal:
            assert "looks like" not in str(refusal)  # noqa: PT017 (some are msgids)

    @pytest.mark.parametrize("value", [None, 7, b"1767225600000-0", ["1767225600000-0"]])
    def test_a_value_that_is_no_text_is_refused_as_such(self, value: Any) -> None:
        with pytest.raises(InvalidInput, match="is not a msgid: it must be a text"):
            check_msgid(value)

    def test_a_long_text_is_not_repeated_whole(self) -> None:
        with pytest.raises(InvalidInput) as refusal:
            check_msgid("9" * 100_000)
        assert len(str(refusal.value)) < 100


def is_allowed(name: str) -> bool:
    try:
        return check_name(name, "uid") == name
    except InvalidInput:
        return False


class TestTimesAndLimits:
    @pytest.mark.parametrize(
        "moment",
        [
            datetime(1, 1, 1, tzinfo=UTC),
            datetime(1, 1, 1, 14, tzinfo=timezone(timedelta(hours=14))),
            datetime(9999, 12, 31, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        ],
    )
    def test_every_time_of_the_years_1_to_9999_is_taken_and_comes_back(self, moment: datetime) -> None:
        ms = check_time(moment)
        assert check_time_ms(ms) == ms
        assert timedelta(0) <= moment - msgid.from_ms(ms) < timedelta(milliseconds=1)

    @pytest.mark.parametrize("ms", [msgid.EARLIEST_MS - 1, msgid.LATEST_MS + 1, 10**30, -(10**30)])
    def test_a_number_outside_these_years_is_no_time(self, ms: int) -> None:
        with pytest.raises(InvalidInput, match="is not between the years 1 and 9999 in UTC"):
            check_time_ms(ms)

    @pytest.mark.parametrize(
        "moment",
        [
            datetime(2026, 1, 1),  # noqa: DTZ001 (that is the fault)
            datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
            datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-14))),
        ],
    )
    def test_a_time_that_nobody_could_store_is_refused(self, moment: datetime) -> None:
        with pytest.raises(InvalidInput, match="the time"):
            check_time(moment)

    def test_a_time_is_kept_to_the_millisecond(self) -> None:
        assert check_time(datetime(1970, 1, 1, 0, 0, 1, 2999, tzinfo=UTC)) == 1002

    def test_a_limit_below_the_lowest_is_refused(self) -> None:
        assert check_limit(None) is None
        assert check_limit(0, lowest=0) == 0
        with pytest.raises(InvalidInput, match="1 is the lowest"):
            check_limit(0)

    @pytest.mark.parametrize("limit", [True, 1.5, "2", [3]])
    def test_a_limit_that_is_no_whole_number_is_refused(self, limit: Any) -> None:
        with pytest.raises(InvalidInput, match="makes no sense"):
            check_limit(limit)

    @pytest.mark.parametrize(
        "receipts",
        [5, None, "abc", [5], [Receipt("g", "1767225600000-0", "many", 1, 1, 1)], [Receipt(1, 2, 3, 4, 3, 5)]],
    )
    def test_a_value_that_is_no_receipt_is_refused(self, receipts: Any) -> None:
        with pytest.raises(InvalidInput):
            check_receipts(receipts)
