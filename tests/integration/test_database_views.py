"""The views and the read times against a model that does keep a receipt per message and recipient."""

from dataclasses import dataclass, field

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

UIDS = ["ann", "bob", "eve"]

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["join", "leave", "send"]), st.sampled_from(UIDS), st.just(0)),
        st.tuples(st.just("ack"), st.sampled_from(UIDS), st.integers(0, 3)),
    ),
    max_size=40,
)


@dataclass
class History:
    """One group. Every step changes the model's receipts, and adds the rows that a worker would write for it."""

    gid: str
    spans: dict[str, SpanRow] = field(default_factory=dict)
    """The current one of each member."""
    newest: int = 0
    sent: int = 0
    clock: int = 0
    receipts: dict[tuple[int, str], int | None] = field(default_factory=dict)
    """By message and recipient: when it was read."""
    senders: dict[int, str] = field(default_factory=dict)
    batch: Batch = field(default_factory=Batch)

    def play(self, kind: str, uid: str, back: int) -> None:
        """Take a step; one that makes no sense does nothing."""
        self.clock += 1
        if (kind == "join") == (uid not in self.spans):
            getattr(self, kind)(uid, back)

    def join(self, uid: str, _back: int) -> None:
        self._span(SpanRow(self.gid, uid, self.newest, None, self.clock, self.newest))

    def leave(self, uid: str, _back: int) -> None:
        self._span(self.spans[uid]._replace(left_msgid=self.newest, changed=self.clock))
        del self.spans[uid]

    def send(self, uid: str, _back: int) -> None:
        self.sent += 1
        self.newest = msgids.first_at(FIRST_MS + self.clock)
        self.senders[self.newest] = uid
        self.receipts |= {(self.newest, member): None for member in self.spans if member != uid}
        span = self.spans[uid].joined_msgid
        self.batch.messages.append(MessageRow(self.gid, self.newest, self.sent, uid, span, "hello", None, None))

    def ack(self, uid: str, back: int) -> None:
        """Confirm all but the newest messages."""
        span = self.spans[uid]
        to = [span.joined_msgid, *(m for m in self.senders if m > span.joined_msgid)][: -back or None]
        if not to or to[-1] <= span.acked_msgid:
            return
        for message, member in self.receipts:
            if member == uid and span.joined_msgid < message <= to[-1]:
                self.receipts[message, uid] = self.receipts[message, uid] or self.clock
        self._span(span._replace(acked_msgid=to[-1]))
        entry = msgids.first_at(FIRST_MS + self.clock)
        self.batch.moves.append(MoveRow(self.gid, to[-1], span.acked_msgid, entry, (uid,)))

    def _span(self, span: SpanRow) -> None:
        self.spans[span.uid] = span
        self.batch.spans.append(span)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS, others=_STEPS)
def test_views_and_read_times_agree_with_the_history(
    database: Database, steps: list[tuple[str, str, int]], others: list[tuple[str, str, int]]
) -> None:
    # Given two groups of the same people, stored
    clear(database)
    groups = [History("g"), History("h")]
    for group, group_steps in zip(groups, [steps, others], strict=True):
        for step in group_steps:
            group.play(*step)
        database.write(group.batch)

    # Then there is a receipt for each recipient of each message, and no other
    with Session(database._backend.engine) as session:
        receipts = session.exec(select(MsgAck)).all()
        members = session.exec(select(GroupUser)).all()
    assert sorted((r.gid, r.msgid, r.sender_uid, r.recv_uid, r.if_ack) for r in receipts) == sorted(
        (group.gid, message, group.senders[message], uid, read_at is not None)
        for group in groups
        for (message, uid), read_at in group.receipts.items()
    )
    # And a row for each member, and no other
    assert sorted((m.gid, m.uid, m.last_ack_msgid or 0, m.joined_msgid) for m in members) == sorted(
        (group.gid, span.uid, span.acked_msgid, span.joined_msgid) for group in groups for span in group.spans.values()
    )
    # And it is known when each was read
    for group in groups:
        for message, sender in group.senders.items():
            times = database.read_times(group.gid, message)
            times.pop(sender, None)
            expected = {u: FIRST_MS + at for (m, u), at in group.receipts.items() if m == message and at is not None}
            assert times == expected


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
