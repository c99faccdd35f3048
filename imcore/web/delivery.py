"""Delivery: events of the gateway become frames, each encoded once, and go to the clients of their sessions."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from imcore import msgid as msgids
from imcore.errors import ImError
from imcore.gateway.fanout import Ended, Gap, Joined, Left, NewMessage, PositionMoved, ReceiptsChanged, Rewound
from imcore.metrics import WebMetrics
from imcore.model.records import record_of
from imcore.web import jsonrpc
from imcore.web.client import UNAUTHORIZED
from imcore.web.flow import Frame
from imcore.web.position_methods import receipt_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imcore.gateway.async_gateway import AsyncGateway
    from imcore.gateway.fanout import Event, News

log = logging.getLogger(__name__)

POLL_S = 60.0
PAUSE_S = 1.0
"""After an error that waiting does not mend."""
COPIES_AT_ONCE = 2000
"""Frames that are handed to sockets before other work of the loop has its turn."""


async def deliver(gateway: "AsyncGateway", metrics: WebMetrics) -> None:
    """Deliver events until cancelled."""
    while True:
        try:
            await _hand_over(await gateway.poll(POLL_S), metrics)
        except ImError as error:
            log.error("live delivery waits: %s", error)
            await asyncio.sleep(PAUSE_S)
        except Exception:
            log.exception("live delivery has failed, and goes on")
            await asyncio.sleep(PAUSE_S)


async def _hand_over(events: "Sequence[Event]", metrics: WebMetrics) -> None:
    copies = 0
    for event in events:
        if isinstance(event, Ended):
            for session in event.sessions:
                session.tag.close(UNAUTHORIZED, "the user was erased")
            continue
        message = (event.message.gid, event.message.msgid, event.msgid) if isinstance(event, NewMessage) else None
        frame = Frame(frame_text(event), message)
        for session in event.sessions:
            session.tag.push(frame)
        _count(event, metrics)
        copies += len(event.sessions)
        if copies > COPIES_AT_ONCE:
            copies = 0
            await asyncio.sleep(0)


def _count(event: "News", metrics: WebMetrics) -> None:
    copies = len(event.sessions)
    if isinstance(event, NewMessage):
        metrics.messages.add(copies)
        metrics.pushed_s.observe(time.time() - msgids.time_ms(event.msgid) / 1000, copies)
    elif isinstance(event, ReceiptsChanged):
        metrics.receipts.add(copies * len(event.receipts))


def frame_text(event: "News") -> bytes:
    """Return the notification of an event."""
    match event:
        case NewMessage():
            return jsonrpc.notification("message", record_of(event.message))
        case ReceiptsChanged():
            return jsonrpc.notification("receipts", {"receipts": [receipt_record(each) for each in event.receipts]})
        case PositionMoved():
            return jsonrpc.notification("position", {"gid": event.gid, "last_ack_msgid": event.last_ack_msgid})
        case Gap():
            return jsonrpc.notification(
                "gap", {"gid": event.gid, "from_msgid": event.from_msgid, "to_msgid": event.to_msgid}
            )
        case Rewound():
            return jsonrpc.notification("rewound", {"gid": event.gid, "after_msgid": event.after_msgid})
        case Joined() | Left():
            return jsonrpc.notification("joined" if isinstance(event, Joined) else "left", {"gid": event.gid})
