"""One event of each kind that a gateway hands over: nobody who handles them may forget one."""

from collections.abc import Iterable
from typing import get_args

from imcore import Ended, Gap, Joined, Left, Message, NewMessage, PositionMoved, Receipt, ReceiptsChanged, Rewound
from imcore import msgid as msgids
from imcore.gateway.fanout import Event, Recipients, Session

FIRST, LAST = "1767225600001-0", "1767225600002-0"


def one_of_each(sessions: Iterable[Session]) -> list[Event]:
    to = Recipients(sessions)
    events: list[Event] = [
        NewMessage(to, Message("team", FIRST, 1, "ann", "hello"), msgids.pack(FIRST)),
        ReceiptsChanged(to, (Receipt("team", FIRST, 1, 2, 1, 33),)),
        PositionMoved(to, "team", LAST),
        PositionMoved(to, "team", None),
        Gap(to, "team", FIRST, LAST),
        Rewound(to, "team", FIRST),
        Rewound(to, "team", None),
        Joined(to, "team"),
        Left(to, "team"),
        Ended(to),
    ]
    assert {type(event) for event in events} == set(get_args(Event))
    return events
