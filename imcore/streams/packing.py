"""Packs commands. Numbers become texts here: the C packer crashes if a signal interrupts it as it writes a number.

`hiredis.pack_command` calls `repr` for a number without expecting an error, and in `repr` Python runs the handlers of
signals: one that raises, as that of Ctrl-C does, would end the process by a segmentation fault.
"""

from typing import Any

from hiredis import pack_command
from redis.connection import HiredisRespSerializer

_TEXTS = frozenset((bytes, str))
_USUAL = frozenset((bytes, str, int))


def pack(command: tuple[Any, ...]) -> bytes:
    """Return a command in the server's protocol. Raise TypeError for a part that is no text and no number."""
    packed: bytes = pack_command(_as_texts(command))
    return packed


class Packer(HiredisRespSerializer):
    """What packs the driver's own commands."""

    def pack(self, *args: Any) -> list[bytes]:
        packed: list[bytes] = super().pack(*_as_texts(args))
        return packed


def _as_texts(command: tuple[Any, ...]) -> tuple[Any, ...]:
    types = set(map(type, command))
    if types <= _TEXTS:
        return command
    if types <= _USUAL:  # nearly always: most parts are texts, and `isinstance` would be asked for each of them
        return tuple([repr(part) if type(part) is int else part for part in command])
    return tuple([repr(part) if type(part) is int or isinstance(part, float) else part for part in command])
