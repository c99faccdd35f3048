"""The layouts of tables: every value is there, whole, at any width, and the layout is the one that reads best."""

import re
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imcore.cli import tables
from imcore.cli.tables import Cell, lines
from imcore.cli.terminal import cells

COLUMNS = ("gid", "uid", "content", "state", "n")
NAMES = st.text(st.sampled_from("abé山👩"), min_size=1, max_size=40)
TEXTS = st.text(st.sampled_from("ab é山👩"), min_size=1, max_size=200).filter(str.strip)
ROWS = st.lists(
    st.tuples(NAMES, NAMES, TEXTS, TEXTS, st.integers(0, 10**12) | st.floats(0, 1)), min_size=1, max_size=12
)


def shown(columns: tuple[str, ...], rows: list[tuple[Cell, ...]], width: int) -> str:
    return "\n".join(lines(columns, rows, width, colour=False)) + "\n"


def without_blanks(text: str) -> str:
    return re.sub(r"\s", "", text)


@st.composite
def any_table(draw: st.DrawFn) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """Any columns, in any order: texts, which may be the first one, names and numbers, or some of each."""
    names = st.sampled_from(sorted(tables.TEXTS)) | st.text("abc_é山", min_size=1, max_size=20)
    columns = draw(st.lists(names, min_size=1, max_size=6, unique=True))
    cell = st.one_of(NAMES, TEXTS, st.text("ab", min_size=1, max_size=8), st.integers(0, 10**12), st.floats(0, 1))
    rows = draw(st.lists(st.tuples(*[cell] * len(columns)), max_size=4))
    # Where nearly all rows are alike, a few may have what is longer than its column.
    alike = draw(st.tuples(*[st.text("ab", min_size=1, max_size=8) | st.integers(0, 99)] * len(columns)))
    return tuple(columns), rows + [alike] * draw(st.sampled_from([0, 40]))


@settings(max_examples=300)
@given(any_table(), st.integers(1, 200))
def test_every_value_is_shown_whole_and_fits(table: tuple[tuple[str, ...], list[tuple[Cell, ...]]], width: int) -> None:
    columns, rows = table

    table_text = shown(columns, rows, width)

    for row in rows:
        for value in row:
            assert without_blanks(str(value)) in without_blanks(table_text)
    assert max(map(cells, table_text.splitlines())) <= max(width, 2)  # a wide letter needs as much


def test_a_cell_longer_than_its_column_fits_below_a_text_too() -> None:
    figures: list[tuple[Cell, ...]] = [("one text that says what is measured, as in a benchmark", "1 us", "ok")] * 30
    figures[3] = (figures[0][0], "x" * 70, "ok")

    table_text = shown(("figure", "value is", "verdict"), figures, 40)

    assert max(map(cells, table_text.splitlines())) <= 40


@given(ROWS)
def test_with_room_enough_each_record_is_a_line(rows: list[tuple[Cell, ...]]) -> None:
    assert len(shown(COLUMNS, rows, 10_000).splitlines()) == 1 + len(rows)


MESSAGES: list[tuple[Cell, ...]] = [
    ("1767225600000-0", "2026-01-01 00:00:00Z", "ann", 2, "Lunch at noon?"),
    (
        "1767225600001-0",
        "2026-01-01 00:00:00Z",
        "山田",
        10,
        "Where shall we go? To the small place at the corner?",
    ),
]
MESSAGE_COLUMNS = ("msgid", "time", "uid", "read", "content")


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (
            120,
            """\
            msgid            time                  uid   read  content
            1767225600000-0  2026-01-01 00:00:00Z  ann      2  Lunch at noon?
            1767225600001-0  2026-01-01 00:00:00Z  山田    10  Where shall we go? To the small place at the corner?
            """,
        ),
        (
            81,
            """\
            msgid            time                  uid   read  content
            1767225600000-0  2026-01-01 00:00:00Z  ann      2  Lunch at noon?
            1767225600001-0  2026-01-01 00:00:00Z  山田    10  Where shall we go? To the
                                                               small place at the corner?
            """,
        ),
        (
            80,
            """\
            msgid            time                  uid   read
                content
            1767225600000-0  2026-01-01 00:00:00Z  ann      2
                Lunch at noon?
            1767225600001-0  2026-01-01 00:00:00Z  山田    10
                Where shall we go? To the small place at the corner?
            """,
        ),
        (
            40,
            """\
            msgid: 1767225600000-0
            time: 2026-01-01 00:00:00Z
            uid: ann
            read: 2
            content: Lunch at noon?

            msgid: 1767225600001-0
            time: 2026-01-01 00:00:00Z
            uid: 山田
            read: 10
            content: Where shall we go? To the small
              place at the corner?
            """,
        ),
    ],
)
def test_the_layout_follows_from_the_width(width: int, expected: str) -> None:
    assert shown(MESSAGE_COLUMNS, MESSAGES, width) == dedent(expected)


def test_one_long_name_among_many_does_not_change_the_layout_of_all() -> None:
    rows: list[tuple[Cell, ...]] = [*[(f"user-{n}", n, "no") for n in range(9)], ("u" * 50, 9, "no")]

    table_lines = shown(("uid", "unread", "online"), rows, 30).splitlines()

    assert table_lines[:2] == ["uid     unread  online", "user-0       0  no"]
    assert table_lines[-3:] == ["u" * 30, "u" * 20, "             9  no"]


def test_texts_stay_in_their_order_with_names_where_there_are_several() -> None:
    rows: list[tuple[Cell, ...]] = [("team", "x" * 40, "3", "4"), ("-", "y", "5", "z" * 40)]

    assert shown(("gid", "what", "redis", "sql"), rows, 60) == dedent(f"""\
        gid
        team
            what: {"x" * 40}
            redis: 3
            sql: 4
        -
            what: y
            redis: 5
            sql: {"z" * 40}
        """)


def test_a_long_text_in_the_first_column_is_above_its_row() -> None:
    rows: list[tuple[Cell, ...]] = [("one gateway, acks per message, receipts folded", "603", "1/s")]

    assert shown(("figure", "median", "unit"), rows, 48) == dedent("""\
        figure
            median  unit
        one gateway, acks per message, receipts folded
            603     1/s
        """)


@pytest.mark.parametrize("width", [1, 10, 80])
def test_a_table_without_rows_is_its_head(width: int) -> None:
    assert without_blanks(shown(("gid", "unread"), [], width)) == "gidunread"


@pytest.mark.parametrize("width", [20, 200])
def test_names_of_columns_have_a_colour_where_there_are_any(width: int) -> None:
    plain = "\n".join(lines(MESSAGE_COLUMNS, MESSAGES, width, colour=False))
    coloured = "\n".join(lines(MESSAGE_COLUMNS, MESSAGES, width, colour=True))

    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    assert "\x1b[1;36m" in coloured
