"""The brute-force account that the demo's answers are held against."""

from imcore.cli.demo.oracle import Oracle
from imcore.model.values import Message, MessageStatus, MessageTally, Reader


def message(seq: int, sender: str) -> Message:
    return Message("g", f"{seq}-0", seq, sender, "hi")


def test_oracle_counts_recipients_by_membership_and_offset() -> None:
    # Given a group whose second message is the last for bob, who leaves, and the last before dan, who joins
    oracle = Oracle(["ann", "bob", "cy"])
    first, second, third = message(1, "ann"), message(2, "cy"), message(3, "ann")
    oracle.sent(first)
    oracle.sent(second)
    oracle.left("bob")
    oracle.joined("dan")
    oracle.sent(third)

    # When cy reads one message, and dan all
    oracle.acked(["cy"], 1)
    oracle.acked(["bob", "dan"])

    # Then each message has the recipients of its time, without its sender
    assert oracle.readers(first) == ({"bob", "cy"}, set())
    assert oracle.readers(second) == ({"bob"}, {"ann"})
    assert oracle.readers(third) == ({"dan"}, {"cy"})
    assert {uid: oracle.unread_of(uid) for uid in ("ann", "cy", "dan")} == {"ann": 1, "cy": 1, "dan": 0}
    assert oracle.memberships == 4


def test_oracle_notices_a_wrong_tally_or_name() -> None:
    oracle = Oracle(["ann", "bob", "cy"])
    first = message(1, "ann")
    oracle.sent(first)
    oracle.acked(["bob"])

    assert oracle.has_tallies([MessageTally(first, 1, 1)])
    for wrong in ([MessageTally(first, 2, 0)], [], [MessageTally(message(2, "ann"), 1, 1)]):
        assert not oracle.has_tallies(wrong)
    assert oracle.has_names(MessageStatus(first, (Reader("bob", None),), ("cy",)))
    assert not oracle.has_names(MessageStatus(first, (Reader("cy", None),), ("bob",)))
