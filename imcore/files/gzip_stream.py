"""Decompresses a gzip stream, which need not be seekable."""

import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

CHUNK_BYTES = 1 << 16

AHEAD_BYTES = 16 << 20
"""The compressed data that is read ahead at most to find out whether a member is damaged."""
_AHEAD_DECOMPRESSED = 1 << 30

MAGIC = b"\x1f\x8b"
_FORMAT = 16 + zlib.MAX_WBITS

Chunks = Iterator[bytes]


class DamagedGzip(Exception):
    """The gzip data is damaged."""


class TruncatedGzip(Exception):
    """The gzip data is cut off."""


class ForeignTail(Exception):
    """Other data follows sound gzip data."""


class GzipStream:
    """The decompressed chunks of all gzip members, in order.

    Iterating first yields all sound data, then raises DamagedGzip, TruncatedGzip or ForeignTail. Damage may be detected
    as late as the checksum at the end of its member: the chunks between may have changed.
    """

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._ahead: deque[bytes] = deque()  # read by `is_damaged`
        self._member: Any = None
        self._rest = b""
        self._is_damaged: bool | None = None

    def __iter__(self) -> Chunks:
        while chunk := self._ahead.popleft() if self._ahead else next(self._chunks, b""):
            self._rest += chunk  # the rest was empty, or the first byte of the next member
            while self._has_member():
                before = self._member.copy()
                try:
                    piece = self._member.decompress(self._rest, CHUNK_BYTES)
                except zlib.error as error:
                    self._is_damaged = True
                    yield _before_the_damage(before, self._rest)
                    raise DamagedGzip from error
                self._rest = self._member.unconsumed_tail
                yield piece
                if self._member.eof:
                    self._rest, self._member = self._member.unused_data, None
                elif not self._rest and len(piece) < CHUNK_BYTES:
                    break
        if self._member or self._rest:
            raise TruncatedGzip

    def is_damaged(self) -> bool:
        """Return whether the checksum shows the member of the last chunk as damaged, unless it is far ahead."""
        if self._is_damaged is None:
            self._is_damaged = self._member is not None and self._ends_in_damage()
        return self._is_damaged

    def _has_member(self) -> bool:
        """Begin the next member if the last one has ended. Zeros may follow each member."""
        if self._member is None:
            self._rest = self._rest.lstrip(b"\0")
            if not self._rest.startswith(MAGIC[: len(self._rest)]):
                raise ForeignTail
            if len(self._rest) < len(MAGIC):
                return False
            self._member, self._is_damaged = zlib.decompressobj(_FORMAT), None
        return True

    def _ends_in_damage(self) -> bool:
        member = self._member.copy()
        room = _AHEAD_DECOMPRESSED
        with suppress(zlib.error):
            for chunk in chain([self._rest], list(self._ahead), self._read_ahead()):
                data = chunk
                while True:
                    piece = member.decompress(data, CHUNK_BYTES)
                    room -= len(piece)
                    if member.eof or room < 0:
                        return False
                    data = member.unconsumed_tail
                    if not data and len(piece) < CHUNK_BYTES:
                        break
            return False
        return True

    def _read_ahead(self) -> Chunks:
        read = 0
        try:
            while read < AHEAD_BYTES and (chunk := next(self._chunks, b"")):
                self._ahead.append(chunk)
                read += len(chunk)
                yield chunk
        except OSError as error:
            self._chunks = raising(error)


def raising(error: Exception) -> Chunks:
    raise error
    yield b""


def _before_the_damage(member: Any, data: bytes) -> bytes:
    """Decompress byte by byte up to the damage: in one piece, zlib would return nothing."""
    decompressed = bytearray()
    with suppress(zlib.error):
        for i in range(len(data)):
            decompressed += member.decompress(data[i : i + 1])
    return bytes(decompressed)
