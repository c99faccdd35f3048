"""Events in flight count as received once they are confirmed, and only for sessions that have not ended."""

from imcore import msgid as msgids
from imcore.gateway.delivery_queue import DeliveryQueue
from imcore.gateway.fanout import Event, NewMessage, ReceiptsChanged, Recipients, Session
from imcore.model.values import Message, Receipt

ANN, BOB, CY = (Session(uid) for uid in ("ann", "bob", "cy"))
ALL = Recipients([ANN, BOB, CY])


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
    receipt = Receipt("g", f"{msgids.EPOCH_MS + 1}-0", 1, 0, 1)
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
