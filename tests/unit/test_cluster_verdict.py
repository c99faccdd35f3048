"""The verdict of the cluster soak finds what is lost, doubled, left out or out of order."""

from collections.abc import Sequence

import pytest

from tests.helpers.cluster_soak.storm import Intent, content_of
from tests.helpers.cluster_soak.verdict import (
    Confirmed,
    Deliveries,
    Heard,
    Told,
    deliveries_of,
    doubles_of,
    faults_of_messages,
)
from tests.model.reference import ModelMessage

MSGIDS = [f"1700000000000-{number}" for number in range(6)]
GHOST = "1700000000000-9"


def message(number: int, client_msgid: str | None = None) -> ModelMessage:
    cid = client_msgid or f"c{number}"
    return ModelMessage(MSGIDS[number], number + 1, "ann", content_of(cid), cid)


STORED = [message(number) for number in range(5)]


def told(confirmed: Sequence[Confirmed] = ()) -> Told:
    intents = {f"c{number}": Intent("g", "ann", f"c{number}") for number in range(6)}
    return Told(intents=intents, confirmed=list(confirmed))


def deliveries(numbers: Sequence[int], begin: str | None = None, *, came_back: bool = False) -> Deliveries:
    heard = Heard("bob", {"g": begin}, {"g": [[*MSGIDS, GHOST][number] for number in numbers]})
    return deliveries_of("g", STORED, [heard], came_back=came_back)


def test_what_was_confirmed_is_there_under_its_msgid() -> None:
    assert faults_of_messages("g", STORED, told([Confirmed("c1", MSGIDS[1])])) == []
    assert "was confirmed as" in faults_of_messages("g", STORED, told([Confirmed("c5", MSGIDS[5])]))[0]
    assert "was confirmed as" in faults_of_messages("g", STORED, told([Confirmed("c1", MSGIDS[2])]))[0]


def test_messages_that_nobody_sent_holes_in_the_seqs_and_doubles_are_found() -> None:
    assert "nobody has sent" in faults_of_messages("g", [message(0, "other")], told())[0]
    assert "not dense" in faults_of_messages("g", STORED[1:], told())[0]
    assert doubles_of([*STORED, message(5, "c1")]) == {"c1": [MSGIDS[1], MSGIDS[5]]}


@pytest.mark.parametrize("numbers", [[0, 1, 3], [0, 1, 1, 2], [0, 2, 1], [1, 2]])
def test_holes_doubles_and_disorder_of_a_session_are_found(numbers: list[int]) -> None:
    assert len(deliveries(numbers).faults) == 1


def test_a_session_that_ended_early_or_began_late_is_no_fault() -> None:
    assert deliveries([0, 1]).faults == []
    assert deliveries([3, 4], MSGIDS[2]).faults == []
    assert deliveries([]).faults == []


def test_ghosts_are_counted_apart() -> None:
    assert deliveries([0, 1, 6, 2]) == Deliveries([], {GHOST}, 3, 0, 0)


def test_a_session_may_return_only_where_lost_messages_came_back() -> None:
    assert len(deliveries([0, 1, 3, 2, 3, 4]).faults) == 1
    assert deliveries([0, 1, 3, 2, 3, 4], came_back=True) == Deliveries([], set(), 6, 1, 0)
    assert deliveries([0, 1, 3, 4], came_back=True).unheard == 1


def test_what_was_taken_back_comes_again() -> None:
    heard = Heard("bob", {"g": None})
    heard.msgids["g"] += [*MSGIDS[:3], GHOST]
    heard.rewind("g", MSGIDS[1])
    heard.msgids["g"] += MSGIDS[2:5]
    assert deliveries_of("g", STORED, [heard], came_back=False) == Deliveries([], set(), 5, 0, 0)
