from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from imcore.streams.events import Move
from imcore.workers.folding import segments

POSITIONS = st.integers(0, 12)
MOVERS = st.sets(st.sampled_from("abc"), min_size=1).map(tuple)
MOVES = st.lists(
    st.builds(Move, st.just(0), POSITIONS, POSITIONS, MOVERS),
    max_size=12,
)


@given(MOVES)
def test_a_message_is_covered_when_anyone_but_its_sender_moved_over_it(moves: list[Move]) -> None:
    # When
    found = segments(moves)
    # Then
    for message in range(1, 13):
        over = {uid for move in moves if move.start < message <= move.to for uid in move.uids}
        covering = [segment for segment in found if segment.after < message <= segment.until]
        assert len(covering) == bool(over)
        for sender in "abc":
            changed = any(segment.only != sender for segment in covering)
            assert changed == bool(over - {sender})


@given(MOVES)
def test_segments_are_in_order_and_as_few_as_can_be(moves: list[Move]) -> None:
    found = segments(moves)
    assert all(segment.after < segment.until for segment in found)
    for one, two in pairwise(found):
        assert one.until <= two.after
        assert one.until < two.after or one.only != two.only
