"""Events in flight count as received once they are confirmed, and only for sessions that have not ended."""

from imcore import msgid as msgids
from imcore.gateway.cursor import ResumePoint
from imcore.gateway.delivery_queue import DeliveryQueue
from imcore.gateway.fanout import Event, Gap, Joined, Left, NewMessage, ReceiptsChanged, Recipients, Session
from imcore.model.values import Message, Receipt
from imcore.streams.calls.message_calls import UNKNOWN, HandedMessage

ANN, BOB, CY = (Session(uid) for uid in ("ann", "bob", "cy"))
ALL = Recipients([ANN, BOB, CY])


def before(number: int, seq: int | None = None) -> ResumePoint:
    """Where a session resumes that was not handed a message: the server has it, if it has all that comes before."""
    return ResumePoint(packed(number) - 1, seq, HandedMessage(packed(number), UNKNOWN))


def arrived(number: int, gid: str = "g", recipients: Recipients = ALL) -> NewMessage:
    msgid = f"{msgids.EPOCH_MS + number}-0"
    return NewMessage(recipients, Message(gid, msgid, number, "dan", "hi"), msgids.pack(msgid))


def seen(events: list[Event]) -> list[tuple[str, str]]:
    """The events that each session is handed: a message's seq, or `receipts`."""
    pairs = []
    for event in events:
        what = str(event.message.seq) if isinstance(event, NewMessage) else "receipts"
        pairs += [(session.uid, what) for session in event.sessions]
    return pairs


def test_an_ended_session_is_handed_nothing_more_and_others_are() -> None:
    queue = DeliveryQueue([arrived(1), arrived(2), ReceiptsChanged(Recipients([BOB]), ())])
    queue.end([BOB])
    assert seen(queue.take()) == [("ann", "1"), ("cy", "1"), ("ann", "2"), ("cy", "2")]


def test_events_that_shared_recipients_still_do() -> None:
    queue = DeliveryQueue([arrived(1), arrived(2)])
    queue.end([BOB])
    one, two = queue.take()
    assert one.recipients is two.recipients


def test_an_ended_session_does_not_confirm_events_in_flight() -> None:
    queue = DeliveryQueue([arrived(1)])
    queue.take()
    assert seen(queue.in_flight_of([BOB])) == [("bob", "1")]
    queue.end([BOB])
    assert seen(queue.confirm()) == [("ann", "1"), ("cy", "1")]
    assert queue.confirm() == []


def test_requeued_events_are_taken_again_first() -> None:
    queue = DeliveryQueue([arrived(1), arrived(2), arrived(3)])
    queue.take()
    queue.requeue(2)
    queue.ready.append(arrived(4))
    queue.end([ANN, CY])
    assert seen(queue.confirm()) == [("bob", "1")]
    assert seen(queue.take()) == [("bob", "2"), ("bob", "3"), ("bob", "4")]


def test_a_retracted_message_is_neither_ready_nor_in_flight() -> None:
    # Given messages of two groups, some of them taken, and a digest
    receipt = Receipt("g", f"{msgids.EPOCH_MS + 1}-0", 1, 0, 1, 1)
    queue = DeliveryQueue([arrived(1), arrived(1, "h")])
    queue.take()
    queue.ready += [
        arrived(2),
        arrived(3, recipients=Recipients([ANN])),
        ReceiptsChanged(Recipients([ANN]), (receipt,)),
    ]
    # When
    queue.retract(ANN, "g")
    # Then
    assert seen(queue.confirm()) == [("bob", "1"), ("cy", "1"), *((uid, "1") for uid in ("ann", "bob", "cy"))]
    assert seen(queue.take()) == [("bob", "2"), ("cy", "2"), ("ann", "receipts")]


def packed(number: int) -> int:
    return msgids.pack(f"{msgids.EPOCH_MS + number}-0")


def paused(session: Session, *gids: str) -> Session:
    session.is_paused, session.paused_gids = True, set(gids)
    return session


def test_a_paused_session_resumes_before_its_first_event_that_was_not_taken() -> None:
    # Given one who is paused while messages of two groups are ready, one of them after a gap, and one who is resumed
    slow, back = paused(Session("eve"), "g", "h"), paused(Session("fay"), "g", "h")
    slow.resume_points = {"g": ResumePoint(packed(9), 9), "h": ResumePoint(packed(9), 9)}
    both = Recipients([slow, back])
    gap = Gap(both, "h", f"{msgids.EPOCH_MS + 2}-0", f"{msgids.EPOCH_MS + 4}-0")
    queue = DeliveryQueue([arrived(3, recipients=both), gap, arrived(4, recipients=both), arrived(5, "h", both)])
    queue.ready += [arrived(1), ReceiptsChanged(Recipients([slow]), ())]
    for session in both.sessions:
        queue.pause(session)
    back.is_paused = False
    # When
    taken = queue.take()
    # Then only the others are handed it
    assert {session for event in taken for session in event.sessions} == {back, ANN, BOB, CY}
    assert len([event for event in taken if back in event.sessions]) == 4
    assert slow.resume_points == {"g": before(3, seq=2), "h": before(2)}
    assert slow.paused_gids == {"g", "h"}


def test_joins_and_leaves_that_a_paused_session_was_not_handed_are_found_again() -> None:
    # Given one whose user has left a group and joined another, and is paused before it hears of it
    slow = paused(Session("eve"), "new", "kept")
    slow.resume_points = dict.fromkeys(("old", "new", "kept"))
    alone = slow.as_recipients
    queue = DeliveryQueue(
        [arrived(3, "old", alone), Left(alone, "old"), Joined(alone, "new"), arrived(1, "new", alone)]
    )
    queue.pause(slow)
    # When
    assert queue.take() == []
    # Then it follows what it knows of
    assert slow.paused_gids == {"old", "kept"}
    assert slow.resume_points["old"] == before(3, seq=2)


def test_a_requeued_event_of_a_paused_session_is_put_back() -> None:
    slow = Session("eve")
    queue = DeliveryQueue([arrived(3, recipients=Recipients([slow, ANN]))])
    queue.take()
    paused(slow, "g")
    queue.requeue(1)
    assert seen(queue.take()) == [("ann", "3")]
    assert slow.resume_points == {"g": before(3, seq=2)}
