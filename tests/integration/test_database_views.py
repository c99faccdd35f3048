"""The views and the read times against the brute-force model."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlmodel import Session, select

from imcore import msgid as msgids
from imcore.model.rows import Batch, MessageRow, MoveRow, SpanRow
from imcore.sql.database import Database
from imcore.sql.tables import GroupUser, MsgAck
from tests.helpers.rows import FIRST_MS, clear
from tests.model.reference import Model, ModelSpan

UIDS = ["ann", "bob", "eve"]

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["join", "leave", "send"]), st.sampled_from(UIDS), st.just(0)),
        st.tuples(st.just("ack"), st.sampled_from(UIDS), st.integers(0, 3)),
    ),
    max_size=40,
)


class History:
    """One group. Every step changes the model, and adds the rows that a worker would write for it."""

    def __init__(self, gid: str) -> None:
        self.gid = gid
        self.model = Model()
        self.model.create_group(gid)
        self.group = self.model.group(gid)
        self.clock = 0
        self.ack_times: dict[int, int] = {}
        """In milliseconds, by the number that the model gives to an ack."""
        self.batch = Batch()

    def play(self, kind: str, uid: str, back: int) -> None:
        """Take a step; one that makes no sense does nothing."""
        self.clock += 1
        if (kind == "join") == (uid not in self.group.members()):
            getattr(self, kind)(uid, back)

    def join(self, uid: str, _back: int) -> None:
        self.model.add_members(self.gid, [uid])
        self._write(self.group.current(uid))

    def leave(self, uid: str, _back: int) -> None:
        span = self.group.current(uid)
        self.model.remove_members(self.gid, [uid])
        self._write(span)

    def send(self, uid: str, _back: int) -> None:
        span = self.group.current(uid)
        self.model.send(self.gid, uid, "hello", None, msgids.unpack(msgids.first_at(FIRST_MS + self.clock)))
        newest, joined = self.packed(self.group.newest), self.packed(span.joined)
        self.batch.messages.append(MessageRow(self.gid, newest, self.group.newest, uid, joined, "hello", None, None))
        self._write(span)

    def ack(self, uid: str, back: int) -> None:
        """Confirm all but the newest messages."""
        span = self.group.current(uid)
        before, to = span.acked, self.group.newest - back
        if to <= before:
            return
        self.model.ack(self.gid, uid, self.group.msgid(to))
        self.ack_times[self.model.acks] = FIRST_MS + self.clock
        self._write(span)
        entry = msgids.first_at(FIRST_MS + self.clock)
        self.batch.moves.append(MoveRow(self.gid, self.packed(to), self.packed(before), entry, (uid,)))

    def packed(self, seq: int) -> int:
        msgid = self.group.msgid(seq)
        return msgids.pack(msgid) if msgid else msgids.NONE

    def _write(self, span: ModelSpan) -> None:
        left = None if span.left is None else self.packed(span.left)
        joined, acked = self.packed(span.joined), self.packed(span.acked)
        self.batch.spans.append(SpanRow(self.gid, span.uid, joined, left, self.clock, acked))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS, others=_STEPS)
def test_views_and_read_times_agree_with_the_history(
    database: Database, steps: list[tuple[str, str, int]], others: list[tuple[str, str, int]]
) -> None:
    # Given two groups of the same people, stored
    clear(database)
    histories = [History("g"), History("h")]
    for history, history_steps in zip(histories, [steps, others], strict=True):
        for step in history_steps:
            history.play(*step)
        database.write(history.batch)

    # Then there is a receipt for each recipient of each message, and no other
    with Session(database._backend.engine) as session:
        receipts = session.exec(select(MsgAck)).all()
        members = session.exec(select(GroupUser)).all()
    assert sorted((r.gid, r.msgid, r.sender_uid, r.recv_uid, r.if_ack) for r in receipts) == sorted(
        (history.gid, history.packed(message.seq), message.sender_uid, uid, read)
        for history in histories
        for message in history.group.messages
        for uid, read in history.group.receipts(message).items()
    )
    # And a row for each member, and no other
    assert sorted((m.gid, m.uid, m.last_ack_msgid or 0, m.joined_msgid) for m in members) == sorted(
        (history.gid, uid, history.packed(span.acked), history.packed(span.joined))
        for history in histories
        for uid in history.group.members()
        for span in [history.group.current(uid)]
    )
    # And it is known when each was read
    for history in histories:
        for message in history.group.messages:
            times = database.read_times(history.gid, history.packed(message.seq))
            times.pop(message.sender_uid, None)
            acks = history.group.read_by_ack(message)
            assert times == {uid: history.ack_times[ack] for uid, ack in acks.items()}


def test_no_offset_is_null(database: Database) -> None:
    database.write(Batch(spans=[SpanRow("g", "ann", 0, None, 1, 0)]))

    with database.connection() as connection:
        rows = connection.execute(text("SELECT gid, uid, last_ack_msgid, joined_msgid FROM group_users")).all()
    assert [tuple(row) for row in rows] == [("g", "ann", None, 0)]


@pytest.mark.parametrize(
    ("condition", "first"),
    [
        ("gid = 'g' AND msgid = 7", "m"),
        ("sender_uid = 'ann'", "m"),
        # Fault: with the members outside, the messages of the group were read once for each of them
        ("sender_uid = 'ann' AND gid = 'g'", "m"),
        ("recv_uid = 'ann'", "s"),
        ("recv_uid = 'ann' AND gid = 'g' AND msgid = 7", "s"),
    ],
)
def test_sqlite_reads_receipts_by_index(sqlite_url: str, condition: str, first: str) -> None:
    with Database.connect(sqlite_url) as database:
        database.upgrade()
        with database.connection() as connection:
            query = f"EXPLAIN QUERY PLAN SELECT * FROM msg_acks WHERE {condition}"
            plan = [row.detail for row in connection.execute(text(query))]

    assert [step.split()[:2] for step in plan] == [["SEARCH", first], ["SEARCH", "ms"["sm".index(first)]]]


@pytest.mark.parametrize("condition", ["gid = 'g' AND msgid = 7", "sender_uid = 'ann'", "recv_uid = 'ann'"])
def test_postgresql_reads_receipts_by_index(postgres_url: str, condition: str) -> None:
    with Database.connect(postgres_url) as database:
        database.upgrade()
        with database.connection() as connection:
            connection.execute(text("SET LOCAL enable_seqscan = off"))  # which is best while there are few rows
            query = f"EXPLAIN SELECT * FROM msg_acks WHERE {condition}"
            plan = "\n".join(connection.scalars(text(query)))

    assert "Seq Scan" not in plan
    assert plan.count("Index") >= 2


@pytest.mark.parametrize(
    ("kind", "index"), [("sqlite", "ix_group_msgs_client"), ("postgres", "ix_group_msgs_client_hash")]
)
def test_a_client_msgid_is_found_by_index(request: pytest.FixtureRequest, kind: str, index: str) -> None:
    statements: list[tuple[str, object]] = []
    with Database.connect(request.getfixturevalue(f"{kind}_url")) as database:
        database.upgrade()
        _remember_statements(database, statements)

        database.message_by_client_msgid("g", "c")

        statement, parameters = statements[-1]
        explain = "EXPLAIN QUERY PLAN " if kind == "sqlite" else "EXPLAIN "
        with database.connection() as connection:
            if kind == "postgres":
                connection.execute(text("SET LOCAL enable_seqscan = off"))
            rows = connection.exec_driver_sql(explain + statement, parameters).all()  # type: ignore[arg-type]
    assert index in str(rows)


def _remember_statements(database: Database, statements: list[tuple[str, object]]) -> None:
    def remember(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        statements.append((statement, parameters))

    event.listen(database._backend.engine, "before_cursor_execute", remember)
