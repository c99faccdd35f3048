"""The brute-force account that the demo's answers are held against."""

from dataclasses import replace

from imcore.cli.demo.stage import MEMBERS, ONLINE, PROCESSES
from imcore.cli.demo.story import LATE_READER, LEAVER, MESSAGES, NEWCOMER, readers, tallies_hold
from imcore.model.values import Message, MessageTally


def message(seq: int, sender: str) -> Message:
    return Message("g", f"{seq}-0", seq, sender, "hi")


def test_readers_are_counted_by_membership_and_offset() -> None:
    ever = {*ONLINE, *PROCESSES}

    read, unread = readers(message(1, MEMBERS[-1]))
    assert read == ever | {LATE_READER}
    assert read | unread == {*MEMBERS[:-1]}
    assert LEAVER in readers(message(50, "ann"))[0]
    assert "ann" not in set.union(*readers(message(50, "ann")))
    assert LATE_READER in readers(message(60, "ann"))[0]
    assert LATE_READER in readers(message(61, "ann"))[1]

    read, unread = readers(message(51, "dora"))
    assert read == ever - {LEAVER} | {LATE_READER}
    assert read | unread == {*MEMBERS, NEWCOMER} - {LEAVER, "dora"}
    assert NEWCOMER in unread


def test_a_wrong_or_missing_tally_is_noticed() -> None:
    sent = [message(seq, "dora") for seq in range(1, MESSAGES + 1)]
    counts = [(each, *map(len, readers(each))) for each in sent]
    right = [MessageTally(each, read, unread, read) for each, read, unread in counts]

    assert tallies_hold(right)
    assert not tallies_hold(right[:-1])
    assert not tallies_hold([*right[:-1], replace(right[-1], read=right[-1].read + 1, unread=right[-1].unread - 1)])
