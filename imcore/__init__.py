"""Instant-message delivery with read receipts, for one-to-one chats and for groups of any size."""

TYPE_CHECKING = False  # nothing is imported here: the command line can be interrupted from its first import on
if TYPE_CHECKING:
    from typing import Any

    from imcore import errors, msgid
    from imcore.aio import AsyncChat
    from imcore.chat import Chat
    from imcore.gateway.async_gateway import AsyncGateway
    from imcore.gateway.async_listener import AsyncListener
    from imcore.gateway.fanout import (
        Ended,
        Event,
        Gap,
        Joined,
        Left,
        NewMessage,
        PositionMoved,
        ReceiptsChanged,
        Rewound,
        Session,
        SessionStart,
    )
    from imcore.gateway.gateway import Gateway
    from imcore.gateway.listener import Listener
    from imcore.model.values import (
        Ack,
        Draft,
        ErasedUser,
        Group,
        GroupPolicy,
        HistoryPage,
        InboxEntry,
        InboxPage,
        Member,
        Message,
        MessageStatus,
        MessageTally,
        Reader,
        Receipt,
        Tally,
        Unread,
        UnreadCounts,
        UserPolicy,
        Why,
    )
    from imcore.settings import Settings

__all__ = [
    "Ack",
    "AsyncChat",
    "AsyncGateway",
    "AsyncListener",
    "Chat",
    "Draft",
    "Ended",
    "ErasedUser",
    "Event",
    "Gap",
    "Gateway",
    "Group",
    "GroupPolicy",
    "HistoryPage",
    "InboxEntry",
    "InboxPage",
    "Joined",
    "Left",
    "Listener",
    "Member",
    "Message",
    "MessageStatus",
    "MessageTally",
    "NewMessage",
    "PositionMoved",
    "Reader",
    "Receipt",
    "ReceiptsChanged",
    "Rewound",
    "Session",
    "SessionStart",
    "Settings",
    "Tally",
    "Unread",
    "UnreadCounts",
    "UserPolicy",
    "Why",
    "errors",
    "msgid",
]

_PLACES = {
    "AsyncChat": "aio",
    "AsyncGateway": "gateway.async_gateway",
    "AsyncListener": "gateway.async_listener",
    "Chat": "chat",
    "Gateway": "gateway.gateway",
    "Listener": "gateway.listener",
    "Settings": "settings",
    "errors": "errors",
    "msgid": "msgid",
    **dict.fromkeys(("Event", "NewMessage", "ReceiptsChanged", "PositionMoved", "Gap"), "gateway.fanout"),
    **dict.fromkeys(("Ended", "Joined", "Left", "Rewound", "Session", "SessionStart"), "gateway.fanout"),
}
"""The modules of what is not in `model.values`; `errors` and `msgid` are modules themselves."""


def __getattr__(name: str) -> "Any":
    """Import these when they are asked for: a command that does not need them should not wait for the drivers."""
    from importlib import import_module  # noqa: PLC0415

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = _PLACES.get(name, "model.values")
    module = import_module(f"imcore.{place}")
    return module if place == name else getattr(module, name)
