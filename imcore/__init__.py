"""Instant-message delivery with read receipts, for one-to-one chats and for groups of any size."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imcore import errors
    from imcore.chat import Chat
    from imcore.live.gateway import Gateway
    from imcore.live.listener import Listener
    from imcore.live.rooms import Arrived, Event, Session, Told
    from imcore.settings import Settings
    from imcore.streams.calls import Draft
    from imcore.values import Ack, Group, Member, Message, MessageStatus, MessageTally, Reader, Receipt, Tally, Unread

__all__ = [
    "Ack",
    "Arrived",
    "Chat",
    "Draft",
    "Event",
    "Gateway",
    "Group",
    "Listener",
    "Member",
    "Message",
    "MessageStatus",
    "MessageTally",
    "Reader",
    "Receipt",
    "Session",
    "Settings",
    "Tally",
    "Told",
    "Unread",
    "errors",
]

_PLACES = {
    "Chat": "chat",
    "Draft": "streams.calls",
    "Gateway": "live.gateway",
    "Listener": "live.listener",
    "Settings": "settings",
    **dict.fromkeys(("Arrived", "Event", "Session", "Told"), "live.rooms"),
}
"""The modules of what is not in `values`."""


def __getattr__(name: str) -> Any:
    """Import these when they are asked for: a command that does not need them should not wait for the drivers."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"imcore.{'errors' if name == 'errors' else _PLACES.get(name, 'values')}")
    return module if name == "errors" else getattr(module, name)
