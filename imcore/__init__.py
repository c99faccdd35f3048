"""Instant-message delivery with read receipts, for one-to-one chats and for groups of any size."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imcore.chat import Chat
    from imcore.streams.calls import Draft

__all__ = ["Chat", "Draft"]


def __getattr__(name: str) -> Any:
    """Import these when they are asked for: a command that does not need them should not wait for the drivers."""
    if name in __all__:
        from imcore import chat  # noqa: PLC0415

        return getattr(chat, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
