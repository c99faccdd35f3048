"""Read times: folded rows hold each one exactly, also after kills, when batches are cut in other places."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from imcore import msgid as msgids
from imcore.model.rows import FOLD_MS, Batch, MoveRow, delays_of, folded
from imcore.sql import queries
from imcore.sql.database import Database
from imcore.sql.moves import line_of, movers_of
from imcore.sql.tables import OFFSET_MOVES
from imcore.streams.events import Acked, Entry, Move
from imcore.workers.fetch import WorkItem
from imcore.workers.stored_rows import batch_of
from tests.helpers.rows import FIRST_MS, at, clear

UIDS = ["ann", "ann2", "anna", "bob", ",", "o'neil", '"', "[", "]", "x[", '","', "群", "\\", "\\n", "5", "", "{}"]
NEWEST = 6

Times = dict[int, dict[str, int]]
"""When each uid read each message, by the number of the message."""


@dataclass
class Journal:
    """Random acks, and when each message was read by their minimum."""

    dice: random.Random
    times: Times = field(default_factory=lambda: {number: {} for number in range(1, NEWEST + 1)})

    def entries(self, count: int) -> list[Entry]:
        """Acks of random uids over random messages, in order of time: many of one millisecond, some far apart."""
        entries, now, number = list[Entry](), FIRST_MS, 0
        for _ in range(count):
            later = self.dice.choice([0, 0, 1, 3, 400, FOLD_MS, 90_000])
            now, number = now + later, 0 if later else number + 1
            moves = tuple(self._move(now) for _ in range(self.dice.choice([1, 1, 1, 3])))
            entries.append(Entry(0, f"{now}-{number}", Acked("g", moves)))
        return entries

    def _move(self, now: int) -> Move:
        start = self.dice.randrange(NEWEST)
        to = self.dice.randint(start + 1, min(NEWEST, start + 2))
        uids = tuple(self.dice.sample(UIDS, self.dice.choice([1, 1, 1, 4])))
        for number in range(start + 1, to + 1):
            times = self.times[number]
            times.update((uid, min(now, times.get(uid, now))) for uid in uids)
        return Move(0, at(start), at(to), uids)


def cut(entries: Sequence[Entry], dice: random.Random) -> Iterator[Sequence[Entry]]:
    """Cut entries into batches."""
    begin = 0
    while begin < len(entries):
        end = begin + dice.choice([1, 2, 5, 20, 100])
        yield entries[begin:end]
        begin = end


def write(database: Database, entries: Sequence[Entry]) -> None:
    """Write what the worker would write of entries, without offsets: they are of no concern here."""
    database.write(Batch(moves=batch_of([WorkItem(entry) for entry in entries]).moves))


def cells(database: Database) -> list[Any]:
    return [row.uids for row in database.fetch(select(OFFSET_MOVES.c.uids))]


def read_times(database: Database) -> Times:
    return {number: database.read_times("g", at(number)) for number in range(1, NEWEST + 1)}


@pytest.mark.parametrize("seed", range(12))
def test_read_times_are_exact_through_kills(database: Database, seed: int) -> None:
    # Given entries that two workers share, in batches, of which some are not written before a kill
    dice = random.Random(seed)
    journal = Journal(dice)
    entries = journal.entries(150)
    for mine in (entries[::2], entries[1::2]):
        for batch in cut(mine, dice):
            if dice.random() < 0.8:
                write(database, batch)

    # When they come again in other batches and orders, and at last all of them
    for count in (50, 70, 90, 150):
        again = dice.sample(entries, count)
        if dice.random() < 0.5:
            again.sort(key=lambda entry: entry.version)
        for batch in cut(again, dice):
            write(database, batch)

    # Then each time is the first one
    assert read_times(database) == journal.times


def test_the_same_batches_again_change_nothing(database: Database) -> None:
    # Given batches that begin alike and go on otherwise, and so add a line to a row
    dice = random.Random(1)
    journal = Journal(dice)
    entries = journal.entries(100)
    batches = [list(cut(entries, dice)), list(cut(entries, dice)), [entries]]
    for batch in chain(*batches):
        write(database, batch)
    before = sorted(cells(database))
    assert any("\n" in cell for cell in before)

    # When all of them come again, a few times
    for batch in chain(*batches[::-1], *batches):
        write(database, batch)

    # Then nothing has changed
    assert sorted(cells(database)) == before
    assert read_times(database) == journal.times


def test_forty_acks_of_one_message_are_one_row(database: Database) -> None:
    # Given 40 who ack a message by themselves, and a gateway that acks it for a thousand
    uids = [f"user-{number:08}" for number in range(40)]
    alone = [
        Entry(0, f"{FIRST_MS + n // 4}-{n}", Acked("g", (Move(0, at(0), at(1), (uid,)),))) for n, uid in enumerate(uids)
    ]
    together = tuple(f"user-{number:08}" for number in range(1000))
    write(database, alone)
    write(database, [Entry(0, f"{FIRST_MS}-0", Acked("h", (Move(0, at(0), at(1), together),)))])

    # Then each is a row of few bytes an ack, and no time is written more than once
    assert database.read_times("g", at(1)) == {uid: FIRST_MS + n // 4 for n, uid in enumerate(uids)}
    assert database.read_times("h", at(1)) == dict.fromkeys(together, FIRST_MS)
    one, other = sorted(cells(database), key=len)
    assert (len(one) / 40, len(other) / 1000) < (8, 8)
    assert json.loads(other) == {"user-00000": [uid.removeprefix("user-00000") for uid in together]}


def test_acks_far_apart_are_deleted_apart(database: Database) -> None:
    # Given two acks over the same messages that one batch brings, of a worker that was down meanwhile
    later = FIRST_MS + 3_600_000
    write(
        database,
        [
            Entry(0, f"{ms}-0", Acked("g", (Move(0, 0, at(1), (uid,)),)))
            for ms, uid in ((FIRST_MS, "ann"), (later, "bob"))
        ],
    )
    assert database.read_times("g", at(1)) == {"ann": FIRST_MS, "bob": later}

    # When the older one is deleted
    assert queries.forget_moves(database, msgids.first_at(later), 10) == 1

    # Then the other one is there
    assert database.read_times("g", at(1)) == {"bob": later}


GARBAGE = [
    "word",
    "{}",
    "[1]",
    "5",
    "",
    "null",
    "[[[",
    '{"a": 5}',
    '["ann", 1e9, -5, 99999, true, {}, null, "bob"]',
    "[" * 99_999,
]


@pytest.mark.parametrize("cell", GARBAGE, ids=[cell[:20] for cell in GARBAGE])
def test_what_follows_a_cell_that_was_written_by_hand_is_read(database: Database, cell: str) -> None:
    # Given a cell that holds anything
    clear(database)
    row = MoveRow("g", at(1), 0, at(1), ("cy",))
    database.write(Batch(moves=[row]))
    with database.writing() as connection:
        connection.execute(update(OFFSET_MOVES).values(uids=cell))
    readable = {uid: msgids.time_ms(at(1)) for uid in ("ann", "bob") if uid in cell}
    assert database.read_times("g", at(1)) == readable

    # When the worker stores the row again, twice
    for _ in range(2):
        database.write(Batch(moves=[row]))

    # Then it is read
    assert database.read_times("g", at(1)) == {**readable, "cy": msgids.time_ms(at(1))}
    assert cells(database) == [f'{cell}\n["cy"]']


def test_bytes_written_by_hand_hide_no_line(sqlite_url: str) -> None:
    with Database.connect(sqlite_url) as database:
        database.upgrade()
        row = MoveRow("g", at(1), 0, at(1), ("cy",))
        database.write(Batch(moves=[row]))
        with database.writing() as connection:
            connection.exec_driver_sql("UPDATE offset_moves SET uids = x'ff41'")
        database.write(Batch(moves=[row]))
        assert database.read_times("g", at(1)) == {"cy": msgids.time_ms(at(1))}


_NAME = st.text(max_size=5) | st.sampled_from(UIDS)
_MOVERS = st.lists(_NAME | st.integers(1, FOLD_MS - 1), max_size=20).map(tuple)


@given(movers=_MOVERS, others=_MOVERS)
def test_lines_hold_any_movers(movers: tuple[str | int, ...], others: tuple[str | int, ...]) -> None:
    cell = f"{line_of(movers)}\n{line_of(others)}"
    assert cell.count("\n") == 1
    assert list(movers_of(cell)) == [*delays_of(movers), *delays_of(others)]


@given(st.lists(st.tuples(st.integers(0, 3 * FOLD_MS), st.integers(0, 2), _NAME), max_size=30), st.data())
def test_folding_loses_no_time(acks: list[tuple[int, int, str]], data: st.DataObject) -> None:
    rows = [MoveRow("g", at(1), 0, msgids.first_at(FIRST_MS + ms) + n, (uid,)) for ms, n, uid in acks]

    once = folded(rows)
    part = data.draw(st.integers(0, len(rows)))

    assert folded(data.draw(st.permutations(rows))) == once
    assert folded(folded(rows[:part]) + folded(rows[part:])) == once
    assert _first_times(once) == _first_times(rows)
    assert len({row.entry for row in once}) == len(once)


def _first_times(rows: Sequence[MoveRow]) -> dict[tuple[int, str], int]:
    """The first time of each uid within each FOLD_MS."""
    times: dict[tuple[int, str], int] = {}
    for row in rows:
        for uid, delay in delays_of(row.uids):
            ms = msgids.time_ms(row.entry) + delay
            key = (ms - msgids.EPOCH_MS) // FOLD_MS, uid
            times[key] = min(ms, times.get(key, ms))
    return times
