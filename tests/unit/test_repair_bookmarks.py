"""Bookmarks of both sides: which one counts, and what is reported."""

import pytest

from imcore.model.rows import BookmarkRow, SpanRow
from imcore.repair.bookmarks import Bookmarks, Marks, own_floor, parsed
from imcore.repair.state import Changes
from imcore.streams.events import BookmarkChange, BookmarksSet, Entry

BOUND, NOW = 100, 1 << 52
SPAN = SpanRow("g", "bob", 5, None, 1, 8)
FIRST, SECOND = "1767225600123-4", "1767225600123-5"


def row(private: int = 0, mark: int = 0, *, joined: int = 5, changed: int = 7) -> BookmarkRow:
    return BookmarkRow("g", "bob", joined, private, mark, changed)


def changes(*events: tuple[str, int, int], joined: int = 5) -> Changes:
    made = Changes()
    for entry_id, private, mark in events:
        event = BookmarksSet("g", (BookmarkChange(joined, private, mark, ("bob",)),))
        made.add(Entry(0, entry_id, event))
    return made


def bookmarks(
    stored: BookmarkRow | None = None,
    live: str | None = None,
    backlog: Changes | None = None,
    later: Changes | None = None,
) -> Bookmarks:
    texts = {} if live is None else {"bob": live}
    rows = [] if stored is None else [stored]
    return Bookmarks(rows, texts, backlog or Changes(), later, bound=BOUND, latest_change=NOW)


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("9 0", (9, 0)),
        ("0 7", (0, 7)),
        ("09 007", (9, 7)),
        (f"{1 << 53} 7", (0, 7)),
        ("x", (0, 0)),
        ("9", (0, 0)),
        (None, (0, 0)),
    ],
)
def test_bookmarks_are_parsed_as_the_functions_do(text: str | None, marks: tuple[int, int]) -> None:
    assert parsed(text) == marks


def test_own_messages_are_listed_from_a_mark_behind_the_offset() -> None:
    assert [own_floor(8, mark) for mark in (0, 6, 9)] == [8, 6, 8]


@pytest.mark.parametrize(
    ("stored", "live", "backlog", "is_sound"),
    [
        (None, None, None, True),
        (row(), None, None, True),
        (row(9), "9 0", None, True),
        (row(9, 6), "9 6", None, True),
        (row(9), "9 0", changes((FIRST, 9, 0)), True),
        (row(7), None, None, True),
        (None, "9 0", changes((FIRST, 9, 0)), True),
        (None, "10 0", changes((FIRST, 9, 0), (SECOND, 10, 0)), True),
        (row(9, joined=2), None, None, True),
        (row(9), None, changes((FIRST, 0, 0)), True),
        (row(9), None, None, False),
        (row(9), "10 0", None, False),
        (row(9, joined=2), "9 0", None, False),
        (row(9, 4), "9 4", None, False),
        (row(BOUND + 1), f"{BOUND + 1} 0", None, False),
        (row(9, changed=NOW + 1), "9 0", None, False),
        (row(-9), None, None, False),
        (None, "0 0", None, False),
        (None, "mine", None, False),
    ],
)
def test_bookmarks_that_say_the_same_do_not_differ(
    stored: BookmarkRow | None, live: str | None, backlog: Changes | None, is_sound: bool
) -> None:
    both = bookmarks(stored, live, backlog)
    assert both.pair(SPAN, 8).is_sound == is_sound
    assert list(both.differences([SPAN], {"bob": 8})) == ([] if is_sound else [both.pair(SPAN, 8).difference()])


@pytest.mark.parametrize(
    ("stored", "live", "is_older", "desired"),
    [
        (row(9), None, False, (9, 0)),
        (row(9), "mine", False, (9, 0)),
        (row(9), "50 0", False, (9, 0)),
        (row(9), "0 4", False, (9, 0)),
        (row(9), "10 0", False, (10, 0)),
        (row(9), "10 0", True, (9, 0)),
        (row(), "10 0", False, (10, 0)),
        (row(), "10 0", True, (0, 0)),
        (None, "10 0", True, (10, 0)),
        (row(9, joined=2), "10 0", True, (10, 0)),
        (row(50), "50 0", False, (50, 0)),
        (row(BOUND + 1), "10 0", True, (10, 0)),
        (row(BOUND + 1), None, True, (0, 0)),
    ],
)
def test_one_bookmark_counts(
    stored: BookmarkRow | None, live: str | None, is_older: bool, desired: tuple[int, int]
) -> None:
    both = bookmarks(stored, live)
    pair = both.pair(SPAN, 8)
    assert pair.desired(40, is_older=is_older) == desired
    # And once all orders are followed, nothing differs
    orders = both.orders({"bob": SPAN}, 40, 3, is_older=is_older)
    text = live
    for order in orders.in_redis:
        assert order[2:4] == parsed(live)
        text = f"{order.private} {order.mark}" if order.private or order.mark else None
    (now,) = orders.in_sql or [stored]
    assert bookmarks(now, text).pair(SPAN, 8).is_sound
    assert now is stored or now is None or now.changed >= (stored.changed if stored else 3)


def test_bookmark_that_changes_as_it_is_read_is_left_for_another_look() -> None:
    both = bookmarks(row(9), "9 0", later=changes((FIRST, 10, 0)))
    orders = both.orders({"bob": SPAN}, 40, 3, is_older=True)
    assert (orders.in_redis, orders.in_sql, orders.changing) == ([], [], {"bob"})
    # And not if Redis has it by then
    orders = bookmarks(row(9), "10 0", later=changes((FIRST, 10, 0))).orders({"bob": SPAN}, 40, 3, is_older=True)
    assert (orders.in_redis, orders.in_sql, orders.changing) == ([], [], set())


def test_bookmarks_of_others_are_reported_and_their_damaged_rows_deleted() -> None:
    live = {"eve": "9 0", "mal": "x"}
    rows = [row()._replace(uid="eve", changed=NOW + 1), row(9)._replace(uid="zoe")]
    both = Bookmarks(rows, live, Changes(), bound=BOUND, latest_change=NOW)
    assert [(each.uid, each.what) for each in both.differences([SPAN], {"bob": 8})] == [
        ("eve", "bookmark of 'eve'"),
        ("mal", "bookmark of 'mal'"),
        ("eve", "row of the bookmark of 'eve'"),
    ]
    assert both.orders({"bob": SPAN}, 40, 3, is_older=False).gone == ["eve"]


def test_furthest_position_of_a_bookmark_is_possible() -> None:
    assert bookmarks(row(9, BOUND + 1)).furthest == 9
    assert bookmarks(row(9), backlog=changes((FIRST, 0, 30))).furthest == 30
    assert bookmarks(row(9)).private == {("bob", 5): 9}
    assert Marks(9, 6).counting(SPAN, 9) == (0, 6)
