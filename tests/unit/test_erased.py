"""What erased users are called, and rows and cells without their names."""

import json

import pytest

from imcore.errors import TryAgain
from imcore.model.direct import gid_of, is_direct, is_hashed, peer_of, random_gid, says_names
from imcore.model.erased import is_alias, new_alias
from imcore.model.rows import Batch, BookmarkRow, Erasures, GroupRow, MessageRow, MoveRow, SpanRow
from imcore.sql.bulk import erasures_of
from imcore.sql.moves import line_of, movers_of, names, renamed

ALIAS = "erased-0123456789abcdef"
ERASURES = Erasures(3, {"ann": ALIAS}, {"dm:3:ann:bob": "dm#new"})


def test_an_alias_is_unlike_any_other() -> None:
    one, other = new_alias(), new_alias()
    assert one != other
    assert is_alias(one)
    for name in ("ann", "erased-", f"{one}0", one.upper(), f"{one}\n"):
        assert not is_alias(name)


def test_a_random_gid_says_no_names() -> None:
    gid = random_gid()
    assert gid != random_gid()
    assert is_direct(gid)
    assert is_hashed(gid)
    assert not says_names(gid)
    assert peer_of(gid, "ann", ["bob"]) is None
    assert says_names(gid_of("ann", "bob"))
    assert says_names(gid_of("a" * 100, "b" * 100))
    assert not says_names("team")


def test_the_rows_of_the_table() -> None:
    rows = [("", "", "3"), ("ann", "", ALIAS), ("ann", "dm:3:ann:bob", "dm#new")]
    assert erasures_of(rows) == ERASURES
    assert erasures_of([]) == Erasures()
    assert erasures_of([("", "", "by hand")]) == Erasures()


def test_what_is_stored_meanwhile_has_the_alias() -> None:
    batch = Batch(
        groups=[GroupRow("dm:3:ann:bob", 1)],
        messages=[
            MessageRow("g", 1, 1, "ann", 0, "text", "c", None, meta="{}"),
            MessageRow("g", 2, 2, "bob", 0, "x", None, None),
        ],
        spans=[
            SpanRow("g", "ann", 0, None, 1, 5),
            SpanRow("g", ALIAS, 0, 7, 2, 0),
            SpanRow("dm:3:ann:bob", "bob", 0, None, 1, 0),
        ],
        moves=[MoveRow("g", 2, 1, 1, ("ann", 5, "bob"))],
        bookmarks=[BookmarkRow("g", "ann", 0, 1, 0, 1), BookmarkRow("g", "bob", 0, 1, 0, 1)],
        erasures=3,
    )
    stored = ERASURES.applied(batch)
    assert stored.groups == [GroupRow("dm#new", 1)]
    assert stored.messages[0] == MessageRow("g", 1, 1, ALIAS, 0, "", None, None)
    assert stored.messages[1] == batch.messages[1]
    assert stored.spans == [SpanRow("dm#new", "bob", 0, None, 1, 0), SpanRow("g", ALIAS, 0, 7, 2, 5)]
    assert stored.moves == [MoveRow("g", 2, 1, 1, (ALIAS, 5, "bob"))]
    assert stored.bookmarks == [batch.bookmarks[1]]


def test_what_was_read_before_is_not_stored() -> None:
    with pytest.raises(TryAgain):
        ERASURES.applied(Batch(erasures=2))
    assert Erasures().applied(batch := Batch(groups=[GroupRow("g", 1)])) is batch


@pytest.mark.parametrize(
    ("movers", "expected"),
    [
        (("ann", "bob"), [(ALIAS, 0), ("bob", 0)]),
        (("user-001", "user-002", 7, "user-003"), [("user-001", 0), (ALIAS, 0), ("user-003", 7)]),
        (("user-00", "user-002"), [("user-00", 0), (ALIAS, 0)]),
    ],
)
def test_a_cell_of_moves_has_the_alias(movers: tuple[str | int, ...], expected: list[tuple[str, int]]) -> None:
    uid = "ann" if "ann" in movers else "user-002"
    cell = f"{line_of(('cy',))}\n{line_of(movers)}"
    assert names(cell, uid)
    assert list(movers_of(renamed(cell, uid, ALIAS))) == [("cy", 0), *expected]
    assert not names(renamed(cell, uid, ALIAS), uid)
    assert renamed(cell, "another", ALIAS) == cell


def test_a_cell_that_somebody_has_written_by_hand_stays() -> None:
    cell = f"no JSON\n{json.dumps(['ann', None, 1.5])}"
    assert [uid for uid, _ in movers_of(renamed(cell, "ann", ALIAS))] == [ALIAS]
