"""The parts of repair that do no I/O: state, diff, merge and orders."""

from hypothesis import given
from hypothesis import strategies as st

from imcore.model.rows import MessageRow, SpanRow
from imcore.repair.diff import Depends, Difference
from imcore.repair.merge import Placed, Plan, as_known, in_sequence, place, settle
from imcore.repair.orders import orders
from imcore.repair.state import ActualGroup, Changes, Counter, is_void, offset_of, paired
from imcore.streams.calls.repair_calls import StreamState, Trim
from imcore.streams.events import Acked, Created, Entry, Event, Move, Sent, SpanBegun, SpanEnded

UIDS = ("ann", "bob", "cy")
VERSION = 1000


def message(msgid: int, seq: int = 0, sender: str = "ann", content: str = "hi", span: int | None = 0) -> MessageRow:
    return MessageRow("g", msgid, seq or msgid, sender, span, content, None, None)


def span(uid: str, joined: int, left: int | None = None, acked: int = 0, changed: int = 1) -> SpanRow:
    return SpanRow("g", uid, joined, left, changed, max(acked, joined))


def entry(event: Event, entry_id: str = "1767225600123-4") -> Entry:
    return Entry(0, entry_id, event)


# Tallies.

_position = st.integers(0, 12)
_span = st.builds(
    lambda uid, joined, length, acked: span(uid, joined, None if length is None else joined + length, acked),
    st.sampled_from(UIDS),
    _position,
    st.none() | _position,
    _position,
)
_told = st.lists(st.tuples(st.integers(1, 12), st.sampled_from(UIDS)), unique_by=lambda told: told[0])


@given(_told.map(sorted), st.lists(_span, unique_by=lambda row: (row.uid, row.joined_msgid)))
def test_counter_counts_by_the_definition(messages: list[tuple[int, str]], spans: list[SpanRow]) -> None:
    counter = Counter(messages)
    for row in spans:
        counter.add(row)
    for (msgid, sender_uid), count in zip(messages, counter.counts(), strict=True):
        covering = [
            row for row in spans if row.joined_msgid < msgid and (row.left_msgid is None or msgid <= row.left_msgid)
        ]
        recipients = [row for row in covering if row.uid != sender_uid]
        read = sum(row.acked_msgid >= msgid for row in recipients)
        assert (count.read, count.unread) == (read, len(recipients) - read)


# Messages.


def placed(live: list[MessageRow], stored: list[MessageRow], *, base: int = 0, new_from: int = 99) -> list[Placed]:
    pairs = paired(live, stored, lambda row: row.msgid)
    return list(place(pairs, base=base, is_new=lambda msgid: msgid >= new_from, span_of=lambda row: row.span))


def test_equal_messages_keep_their_place() -> None:
    both = [message(3, 1), message(5, 2)]
    assert [(each.row, each.live is None) for each in placed(both, both)] == [(row, False) for row in both]


def test_new_messages_follow_lost_ones() -> None:
    merged = placed([message(7, 3), message(8, 4)], [message(5, 3), message(6, 4)], base=2, new_from=7)
    assert [(each.row.msgid, each.row.seq, each.live is None) for each in merged] == [
        (5, 3, True),
        (6, 4, True),
        (7, 5, False),
        (8, 6, False),
    ]


def test_messages_are_in_order_of_msgid_also_if_a_clock_was_behind() -> None:
    merged = placed([message(4, 3)], [message(5, 3)], base=2, new_from=4)
    assert [(each.row.msgid, each.row.seq) for each in merged] == [(4, 3), (5, 4)]


def test_two_messages_of_one_msgid_are_both_kept() -> None:
    merged = placed([message(5, 3, content="since"), message(6, 4)], [message(5, 3, content="before")], new_from=5)
    assert [(each.row.msgid, each.row.seq, each.row.content) for each in merged] == [
        (5, 1, "before"),
        (6, 2, "hi"),
        (7, 3, "since"),
    ]
    assert merged[0].live is None


def test_message_that_one_side_changed_is_not_doubled() -> None:
    (only,) = placed([message(5, 1, content="forged")], [message(5, 1)])
    assert (only.row.content, only.live is None) == ("forged", False)


_rows = st.lists(st.integers(1, 30), unique=True).map(lambda ids: [message(msgid) for msgid in sorted(ids)])


@given(_rows, _rows)
def test_place_drops_no_message_and_leaves_no_hole(live: list[MessageRow], stored: list[MessageRow]) -> None:
    merged = placed(live, stored, base=10)
    assert {each.row.msgid for each in merged} == {row.msgid for row in live + stored}
    assert [each.row.seq for each in merged] == list(range(11, 11 + len(merged)))
    assert [each.row.msgid for each in merged] == sorted(each.row.msgid for each in merged)


# Spans.


def settled(stored: list[SpanRow], live: list[SpanRow], said: dict[int, int] | None = None) -> list[SpanRow]:
    rows = settle(stored, as_known(stored, live), version=VERSION)
    last_own = {(row.uid, row.joined_msgid): (said or {}).get(row.joined_msgid, 0) for row in rows}
    return in_sequence(rows, last_own, version=VERSION).rows


def test_further_offset_wins() -> None:
    assert settled([span("bob", 0, acked=5)], [span("bob", 0, acked=7)]) == [span("bob", 0, acked=7)]
    assert settled([span("bob", 0, acked=7)], [span("bob", 0, acked=5)]) == [span("bob", 0, acked=7)]


def test_further_position_of_what_has_arrived_wins_within_the_span() -> None:
    behind, ahead = (
        span("bob", 0, acked=5)._replace(delivered_msgid=6),
        span("bob", 0, acked=4)._replace(delivered_msgid=9),
    )
    assert settled([behind], [ahead]) == settled([ahead], [behind]) == [behind._replace(delivered_msgid=9)]
    assert settled([behind], [span("bob", 0, acked=7)]) == [span("bob", 0, acked=7)]
    closed = span("bob", 0, 8, 3)
    assert settled([closed], [ahead]) == [closed._replace(acked_msgid=4, delivered_msgid=8)]


def test_span_that_one_side_closed_is_closed() -> None:
    closed = span("bob", 0, 5, 5)
    assert settled([closed], [span("bob", 0)]) == [closed]
    assert settled([span("bob", 0, acked=5)], [closed]) == [closed._replace(changed=VERSION)]


def test_span_ends_after_its_last_message() -> None:
    (row,) = settled([span("bob", 0, 5)], [span("bob", 0)], {0: 8})
    assert (row.left_msgid, row.changed) == (8, VERSION)


def test_second_join_is_void() -> None:
    # Given a join that Redis has lost, and another one since
    stored, live = [span("bob", 3)], [span("bob", 6, acked=9)]
    # When
    rows = settled(stored, live)
    # Then the first span stays open, and messages before the second are not read by it
    assert rows[0] == span("bob", 3, None, 3, VERSION)
    assert is_void(rows[1])
    # And so it stays, whatever Redis still says, and when it is found again
    assert settled(rows, live) == rows
    assert settled(rows, [span("bob", 3, acked=9)]) == [rows[0]._replace(acked_msgid=9), rows[1]]


def test_leave_and_return_around_a_lost_message_are_void() -> None:
    # Given what bob said, which Redis has lost, and so took him to have left before it
    stored, live = [span("bob", 0, acked=7)], [span("bob", 0, 4), span("bob", 4)]
    # When
    rows = settled(stored, live, {0: 7})
    # Then
    assert [(row.joined_msgid, row.left_msgid) for row in rows] == [(0, None), (4, 3)]
    assert settled(rows, live, {0: 7}) == rows


def test_offset_ends_with_its_span() -> None:
    assert offset_of(span("bob", 0, 5, 9)) == 5
    assert offset_of(span("bob", 0, None, 9)) == 9


# The plan.


def plan_of(spans: dict[str, list[SpanRow]], *, live: dict[str, list[SpanRow]] | None = None) -> Plan:
    plan = Plan(
        base=Trim(0, 0),
        trim=Trim(0, 0),
        seen=StreamState("0-0", 0),
        journal_end="0-0",
        newest_live=0,
        newest_stored=0,
        live=ActualGroup(live or {}, set(), {}, set(), {}, set()),
        known={},
        settled=spans,
        lowered=[],
        private={},
        bookmarked=0,
        bound=99,
        latest_change=VERSION,
        version=VERSION,
        seq=0,
        newest=0,
    )
    plan.lay_out([], {})
    return plan


def test_message_of_an_unknown_member_has_no_span() -> None:
    assert plan_of({}).span_of(message(5, span=3)) is None
    assert plan_of({"ann": [span("ann", 0, 2)]}).span_of(message(5, span=3)) is None


def test_message_belongs_to_the_span_whose_end_was_lost() -> None:
    plan = plan_of({"ann": [span("ann", 0)]})
    assert plan.span_of(message(5, span=3)) == 0
    assert plan.span_of(message(5, span=None)) == 0
    assert plan.span_of(message(5, span=0)) == 0


def test_offset_goes_back_only_if_it_passed_a_lost_message() -> None:
    # Given an offset of bob that only Redis has, in a second span that goes: the first one stays open
    stood = [span("bob", 0, 7, 5), span("bob", 7, acked=9)]
    plan = plan_of({"bob": [span("bob", 0, None, 5)]}, live={"bob": stood})
    plan.lost, plan.before = [8], {8: 7}
    # When, then
    assert [(order.what, order.joined, order.acked) for order in orders(plan)] == [("open", 0, 5)]
    # And one that has passed it goes back to before it
    plan.live.rows["bob"] = [span("bob", 0, acked=9)]
    assert [order.acked for order in orders(plan)] == [7]


def test_what_has_arrived_goes_back_only_if_it_passed_a_lost_message() -> None:
    # Given a lost message that had arrived as SQL knows, and another one
    live = span("bob", 0, acked=5)._replace(delivered_msgid=12)
    plan = plan_of({"bob": [live]}, live={"bob": [live]})
    plan.known = {("bob", 0): span("bob", 0, acked=5)._replace(delivered_msgid=9)}
    plan.lost, plan.before = [8, 11], {8: 7, 11: 10}
    # When, then
    assert [(order.acked, order.delivered) for order in orders(plan)] == [(5, 10)]
    # And the offset goes back before the first
    plan.live.rows["bob"] = [live._replace(acked_msgid=12, delivered_msgid=None)]
    assert [(order.acked, order.delivered) for order in orders(plan)] == [(7, 10)]


# What is on its way.


def test_backlog_is_applied_to_stored_spans() -> None:
    # Given
    pending = Changes()
    for event in (
        Created("g"),
        SpanBegun("g", "bob", 4),
        SpanEnded("g", "ann", 0, 6),
        Sent("g", 7, 8, 2),
        Acked("g", (Move(0, 2, 5, ("cy",)),)),
    ):
        pending.add(entry(event))
    pending.add_span(span("cy", 0, acked=8, changed=0))
    # When
    rows = {row.uid: row for row in pending.applied([span("ann", 0), span("cy", 0, acked=2), span("dee", 0)])}
    # Then
    assert (rows["ann"].left_msgid, rows["cy"].acked_msgid, rows["bob"].left_msgid) == (6, 8, None)
    assert rows["dee"] == span("dee", 0)
    assert (pending.created_ms, pending.covers(6), pending.covers(7)) == (1767225600123, False, True)


def test_changes_explain_only_differences_that_depend_on_them() -> None:
    # Given
    touched = Changes()
    for event in (Sent("g", 7, 8, 2), Acked("g", (Move(0, 2, 5, ("cy",)),)), SpanBegun("g", "eve", 4)):
        touched.add(entry(event))
    touched.add_message("bob", 3)

    def explains(depends: Depends, uid: str = "", msgid: int = 0) -> bool:
        return Difference("", "", "", depends, uid=uid, msgid=msgid).explained_by(touched)

    # Then
    assert [uid for uid in ("ann", "bob", "cy", "eve") if explains("span", uid)] == ["bob", "cy", "eve"]
    assert [msgid for msgid in range(1, 10) if explains("message", msgid=msgid)] == [3, 7, 8, 9]
    assert [msgid for msgid in range(1, 10) if explains("tally", msgid=msgid)] == [3, 4, 5, 7, 8, 9]
    assert explains("head")
    assert not explains("group")
