"""What a caller has in hand counts as received only if it has done with it, and only for who is still there."""

from imcore import msgid as msgids
from imcore.gateway.delivery_queue import DeliveryQueue
from imcore.gateway.fanout import Event, NewMessage, ReceiptsChanged, Recipients, Session
from imcore.model.values import Message, Receipt

ANN, BOB, CY = (Session(uid) for uid in ("ann", "bob", "cy"))
ALL = Recipients([ANN, BOB, CY])


def arrived(number: int, gid: str = "g", audience: Recipients = ALL) -> NewMessage:
    msgid = f"{msgids.EPOCH_MS + number}-0"
    return NewMessage(audience, Message(gid, msgid, number, "dan", "hi"), msgids.pack(msgid))


def seen(events: list[Event]) -> list[tuple[str, str]]:
    """What each is handed: a message's seq, or that they are told something."""
    found = []
    for event in events:
        what = str(event.message.seq) if isinstance(event, NewMessage) else "told"
        found += [(session.uid, what) for session in event.sessions]
    return found


def test_an_ended_session_is_handed_nothing_more_and_others_are() -> None:
    handover = DeliveryQueue([arrived(1), arrived(2), ReceiptsChanged(Recipients([BOB]), ())])
    handover.end([BOB])
    assert seen(handover.take()) == [("ann", "1"), ("cy", "1"), ("ann", "2"), ("cy", "2")]


def test_who_shared_an_audience_shares_one_still() -> None:
    handover = DeliveryQueue([arrived(1), arrived(2)])
    handover.end([BOB])
    one, two = handover.take()
    assert one.audience is two.audience


def test_what_an_ended_session_has_in_hand_is_not_received_by_it() -> None:
    handover = DeliveryQueue([arrived(1)])
    handover.take()
    assert seen(handover.settle_of([BOB])) == [("bob", "1")]
    handover.end([BOB])
    assert seen(handover.settle()) == [("ann", "1"), ("cy", "1")]
    assert handover.settle() == []


def test_what_is_given_back_is_handed_over_again_first() -> None:
    handover = DeliveryQueue([arrived(1), arrived(2), arrived(3)])
    handover.take()
    handover.give_back(2)
    handover.ready.append(arrived(4))
    handover.end([ANN, CY])
    assert seen(handover.settle()) == [("bob", "1")]
    assert seen(handover.take()) == [("bob", "2"), ("bob", "3"), ("bob", "4")]


def test_what_comes_again_is_neither_ready_nor_in_hand() -> None:
    # Given messages of two groups, some of them taken, and a digest
    receipt = Receipt("g", f"{msgids.EPOCH_MS + 1}-0", 1, 0, 1)
    handover = DeliveryQueue([arrived(1), arrived(1, "h")])
    handover.take()
    handover.ready += [
        arrived(2),
        arrived(3, audience=Recipients([ANN])),
        ReceiptsChanged(Recipients([ANN]), (receipt,)),
    ]
    # When
    handover.take_back(ANN, "g")
    # Then
    assert seen(handover.settle()) == [("bob", "1"), ("cy", "1"), *((uid, "1") for uid in ("ann", "bob", "cy"))]
    assert seen(handover.take()) == [("bob", "2"), ("cy", "2"), ("ann", "told")]
