"""The frames of one WebSocket (RFC 6455), server's side, without I/O.

The library `websockets` decides about the handshake, control frames, fragments and the end. What comes all the time,
an unfragmented text that has arrived as a whole, is read here, in a tenth of the time that the library takes.
"""

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from websockets.frames import Frame as LibraryFrame
from websockets.frames import Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

try:
    from websockets.speedups import apply_mask
except ImportError:  # it was installed without a compiler
    from websockets.utils import apply_mask

BINARY, PROTOCOL_ERROR, NOT_UTF8, TOO_LARGE = 1003, 1002, 1007, 1009
"""Codes of a close frame (RFC 6455, 7.4.1)."""

_SWITCHED = 101
_PING = b"\x89"
VERSION = "13"
"""Of the protocol, as a client names it in its handshake."""

_WHOLE_TEXT = 0x81
_MASKED = 0x80
_SHORT = 125
"""The longest payload whose length stands in the second byte, and the longest of a control frame."""
_MASK_BYTES = 4
_LENGTH_BYTES = {126: 2, 127: 8}
_SHORTER = {2: _SHORT, 8: 0xFFFF}
"""The longest payload whose length needs fewer bytes than these."""

# The library would log whole frames and headers, and with them tokens, where debugging is on.
_library_log = logging.getLogger(f"{__name__}.library")
_library_log.setLevel(logging.WARNING)


def ping(payload: bytes) -> bytes:
    """Return a ping, whose payload is short."""
    return _PING + bytes((len(payload),)) + payload


class Handshake(NamedTuple):
    """The answer to the request that opens a socket. `headers` are the request's, with names in lower case."""

    answer: bytes
    is_accepted: bool
    headers: Mapping[str, str]


def shake_hands(head: bytes, refusal: Callable[[str, Mapping[str, str]], tuple[int, str] | None]) -> Handshake:
    """Answer a request. `refusal(path, headers)` says with which status and text it is refused, None if it is not."""
    protocol = ServerProtocol(logger=_library_log)
    protocol.receive_data(head)
    headers: dict[str, str] = {}
    for request in protocol.events_received():
        if isinstance(request, Request):
            headers = {name.lower(): value for name, value in request.headers.raw_items()}
            response = _response(protocol, request, refusal(request.path.partition("?")[0], headers))
            return Handshake(response.serialize(), response.status_code == _SWITCHED, headers)
    refused = b"".join(protocol.data_to_send())
    return Handshake(refused or protocol.reject(400, "this is no request.\n").serialize(), False, headers)


def _response(protocol: ServerProtocol, request: Request, refused: tuple[int, str] | None) -> Response:
    if refused:
        return protocol.reject(refused[0], f"{refused[1]}\n")
    versions = request.headers.get_all("Sec-WebSocket-Version")
    if versions and VERSION not in versions:
        response = protocol.reject(426, f"this server speaks version {VERSION} of WebSocket.\n")
        response.headers["Sec-WebSocket-Version"] = VERSION
        return response
    return protocol.accept(request)


class FrameHandler(Protocol):
    """What a FrameReader tells."""

    def text(self, payload: bytes) -> None:
        """Take a whole text; it is valid UTF-8."""

    def refused(self, code: int, reason: str) -> None:
        """Close with this code, because of a message that is not taken. Nothing is read any more."""

    def write(self, data: bytes) -> None:
        """Write this as it is: a control frame."""

    def ponged(self, payload: bytes) -> None:
        """Take a pong."""

    def ended(self) -> None:
        """End the connection after what was written: nothing is read any more."""


class FrameReader:
    """Reads what the client sends. It holds one message of `most_bytes` at most, and the head of a frame.

    Control frames are answered, and so are faults, with the close codes of the RFC.
    """

    __slots__ = ("_handler", "_held", "_is_in_message", "_is_over", "_message", "_most_bytes", "_needed", "_protocol")

    def __init__(self, handler: FrameHandler, most_bytes: int) -> None:
        self._handler = handler
        self._most_bytes = most_bytes
        self._protocol = ServerProtocol(state=State.OPEN, max_size=None, logger=_library_log)
        self._held = bytearray()
        """The beginning of a frame that goes on with what comes next."""
        self._needed = 0
        """How many bytes have to be there before that frame is looked at again."""
        self._message = bytearray()
        """The fragments of a text."""
        self._is_in_message = False
        self._is_over = False

    @property
    def held_bytes(self) -> int:
        """The bytes that wait for more."""
        return len(self._held) + len(self._message)

    def feed(self, data: bytes) -> None:
        """Read what has come."""
        if self._held:
            self._held += data
            if len(self._held) < self._needed:
                return
            data, self._held = bytes(self._held), bytearray()
        at, end = 0, len(data)
        while at < end and not self._is_over:
            at = self._read_short(data, at, end) or self._read(data, at, end)

    def _read_short(self, data: bytes, at: int, end: int) -> int:
        """Read a short text that has come as a whole; return where it ends, 0 if this is anything else."""
        if data[at] != _WHOLE_TEXT or at + 1 >= end or self._is_in_message:
            return 0
        begin = at + 2 + _MASK_BYTES
        stop = begin + (data[at + 1] ^ _MASKED)
        if stop - begin > _SHORT or stop > end:
            return 0
        payload = apply_mask(data[begin:stop], data[begin - _MASK_BYTES : begin])
        if payload.isascii():
            self._handler.text(payload)
        else:
            self._text(payload)
        return stop

    def _read(self, data: bytes, at: int, end: int) -> int:
        """Read any frame, or keep its beginning until more has come; return where it ends."""
        size = self._size(data, at, end)
        if size > end - at:
            self._held, self._needed = bytearray(data[at:]), size
        elif size:
            self._frame(data[at : at + size])
        return at + size

    def close(self, code: int, reason: str) -> None:
        """Write a close frame, if none was written. What comes is read on until the client's comes too."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
            self._write()

    def _text(self, payload: bytes) -> None:
        if payload.isascii() or _is_utf8(payload):
            self._handler.text(payload)
        else:
            self._refuse(NOT_UTF8, "a text is not valid UTF-8")

    def _refuse(self, code: int, reason: str) -> int:
        self._is_over = True
        self._handler.refused(code, reason)
        return 0

    def _fail(self, reason: str) -> int:
        self._protocol.fail(PROTOCOL_ERROR, reason)
        self._write()
        return 0

    def _size(self, data: bytes, at: int, end: int) -> int:
        """Return the size of the frame that begins here, as far as its head is known; 0 if it is not taken."""
        if end - at < 2:
            return 2
        is_control, length = bool(data[at] & 0x08), data[at + 1] & ~_MASKED
        if fault := _fault(data[at], data[at + 1]):
            return self._fail(fault)
        wide = _LENGTH_BYTES.get(length, 0)
        head = 2 + wide + _MASK_BYTES
        if end - at < head:
            return head
        if wide:
            length = int.from_bytes(data[at + 2 : at + 2 + wide])
            if length <= _SHORTER[wide]:
                return self._fail("a length is not in its shortest form")
        if not is_control and len(self._message) + length > self._most_bytes:
            return self._refuse(TOO_LARGE, f"a message has at most {self._most_bytes} bytes (IM_WEB_MAX_FRAME_BYTES)")
        return head + length

    def _frame(self, frame: bytes) -> None:
        """Handle a whole frame."""
        if frame[0] == _WHOLE_TEXT and not self._is_in_message:
            begin = 2 + _LENGTH_BYTES.get(frame[1] & ~_MASKED, 0) + _MASK_BYTES
            self._text(apply_mask(frame[begin:], frame[begin - _MASK_BYTES : begin]))
            return
        self._protocol.receive_data(frame)
        self._is_in_message = self._protocol.current_size is not None
        for event in self._protocol.events_received():
            if isinstance(event, LibraryFrame):
                self._part(event)
        self._write()

    def _part(self, frame: LibraryFrame) -> None:
        """Take a frame of a message in fragments, a binary one, or a pong."""
        if frame.opcode is Opcode.BINARY:
            self._refuse(BINARY, "binary frames are not taken: send JSON as text")
        elif frame.opcode in {Opcode.TEXT, Opcode.CONT}:
            self._message += frame.data
            if frame.fin:
                whole, self._message = bytes(self._message), bytearray()
                self._text(whole)
        elif frame.opcode is Opcode.PONG:
            self._handler.ponged(bytes(frame.data))

    def _write(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._handler.write(data)
            else:
                self._is_over = True
        if self._is_over:
            self._handler.ended()


def _fault(first: int, second: int) -> str | None:
    """Return what is wrong with a frame that begins like this. The library would wait for all of it before."""
    if first & 0x70:
        return "no extension was agreed on: the reserved bits are 0"
    if first & 0x07 > Opcode.BINARY:
        return "frames of this kind do not exist"
    if not second & _MASKED:
        return "a client's frames are masked"
    if first & 0x08 and second & ~_MASKED > _SHORT:
        return "a control frame is too long"
    return None


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
