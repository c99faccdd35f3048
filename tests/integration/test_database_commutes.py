"""Writes commute: any order, any repetition, any batches and several writers at once give the same tables."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import psycopg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imcore.model.rows import Batch, BookmarkRow, GroupRow, MessageRow, MoveRow, SpanRow, UserRow
from imcore.sql.database import Database
from tests.helpers.deadline import wait_until
from tests.helpers.rows import FIRST_MS, at, clear, message, stored

# So few keys that most rows meet another one of their key
_GIDS = st.sampled_from(["g", "群"])
_UIDS = st.sampled_from(["ann", "o'neil"])
_IDS = st.integers(0, 2).map(at)
_AHEAD = st.integers(3, 4).map(at)
"""Past all offsets."""
_MS = st.integers(FIRST_MS, FIRST_MS + 2)
_ROW = st.one_of(
    st.builds(GroupRow, _GIDS, _MS, st.just("names"), st.just("sender"), st.just(0)),
    st.builds(lambda gid, ms, entry: GroupRow(gid, ms, f"receipts {entry}", f"by {entry}", entry), _GIDS, _MS, _AHEAD),
    st.builds(lambda uid, entry: UserRow(uid, f"{entry}", entry), _UIDS, _IDS),
    st.builds(message, st.integers(1, 4), _GIDS),
    st.builds(SpanRow, st.just("g"), _UIDS, st.just(0), st.none() | _IDS, st.integers(0, 2), _IDS, st.none() | _AHEAD),
    st.builds(lambda uid, entry: BookmarkRow("g", uid, 0, entry + 1, entry + 2, entry), _UIDS, _IDS),
    st.builds(MoveRow, st.just("g"), _IDS, st.just(0), _IDS, st.just(("ann", "o'neil"))),
)


def batch_of(rows: Sequence[Any]) -> Batch:
    return Batch(
        groups=[row for row in rows if isinstance(row, GroupRow)],
        messages=[row for row in rows if isinstance(row, MessageRow)],
        spans=[row for row in rows if isinstance(row, SpanRow)],
        moves=[row for row in rows if isinstance(row, MoveRow)],
        bookmarks=[row for row in rows if isinstance(row, BookmarkRow)],
        users=[row for row in rows if isinstance(row, UserRow)],
    )


class TestWritesCommute:
    @settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(rows=st.lists(_ROW, min_size=1, max_size=30), data=st.data())
    def test_rows_are_the_same_in_any_order_repetition_and_batches(
        self, database: Database, rows: list[Any], data: st.DataObject
    ) -> None:
        clear(database)
        again = data.draw(st.lists(st.sampled_from(rows), max_size=20))
        shuffled = data.draw(st.permutations(rows + again))
        size = data.draw(st.integers(1, len(shuffled)))

        for start in range(0, len(shuffled), size):
            database.write(batch_of(shuffled[start : start + size]))

        assert stored(database) == batch_of(rows).merged()

    def test_rows_are_the_same_from_several_writers_at_once(self, database: Database) -> None:
        # Given batches that overlap, in every order, with new rows and changed ones
        chance = random.Random(1)
        rows: list[Any] = [message(number, gid) for number in range(1, 60) for gid in ("g", "h")]
        rows += [
            MoveRow(gid, at(n), at(m), at(n), ("ann",)) for gid in ("g", "h") for m in range(5) for n in range(6, 18)
        ]
        rows += [SpanRow("g", uid, 0, None, n, at(n)) for uid in "abcde" for n in range(1, 20)]
        parts = [chance.sample(rows, len(rows) // 3) for _ in range(24)] + [rows]
        start = Barrier(2)

        def write(parts: Sequence[Sequence[Any]]) -> None:
            start.wait()
            for part in parts:
                database.write(batch_of(part))

        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(write, parts), threads.submit(write, parts[::-1])]:
                done.result()

        assert stored(database) == batch_of(rows).merged()


def test_a_batch_that_deadlocks_is_repeated(postgres_url: str) -> None:
    with (
        Database.connect(postgres_url) as database,
        psycopg.connect(postgres_url) as other,
        psycopg.connect(postgres_url, autocommit=True) as watching,
        ThreadPoolExecutor(1) as thread,
    ):
        # Given a writer with the first of two rows, who waits for someone with the second; it looks for a deadlock once
        watching.execute(f"ALTER DATABASE {watching.info.dbname} SET deadlock_timeout = '6s'")
        database.upgrade()
        spans = [SpanRow("g", "ann", 0, None, 1, 0), SpanRow("g", "bob", 0, None, 1, 0)]
        database.write(Batch(spans=spans))
        other.execute("SET deadlock_timeout = '1min'")  # so that it is the writer who finds out
        other.execute("UPDATE group_spans SET changed = changed WHERE uid = 'bob'")
        acks = [span._replace(acked_msgid=at(1)) for span in spans]
        writing = thread.submit(database.write, Batch(spans=acks))
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        wait_until(lambda: watching.execute(waiting).fetchone() == (1,))

        # When that one asks for the first row
        other.execute("UPDATE group_spans SET changed = changed WHERE uid = 'ann'")
        other.commit()

        # Then the writer has begun anew
        writing.result()
        assert stored(database).spans == acks
