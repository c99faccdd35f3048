"""The frames of a socket, against the library `websockets` as the other side."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from imcore.web.frames import FrameReader, shake_hands

MOST_BYTES = 70_000
_MASK = b"\1\2\3\4"


@dataclass
class Told:
    """What a reader has told, with the bytes it wrote."""

    texts: list[bytes] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    written: bytearray = field(default_factory=bytearray)
    pongs: list[bytes] = field(default_factory=list)
    has_ended: bool = False
    reader: FrameReader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = FrameReader(self, MOST_BYTES)

    def text(self, payload: bytes) -> None:
        assert not self.refusals
        self.texts.append(payload)

    def refused(self, code: int, reason: str) -> None:
        self.refusals.append(code)
        self.reader.close(code, reason)

    def write(self, data: bytes) -> None:
        assert not self.has_ended
        self.written += data

    def ponged(self, payload: bytes) -> None:
        self.pongs.append(payload)

    def ended(self) -> None:
        self.has_ended = True

    def feed(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            self.reader.feed(chunk)
            assert self.reader.held_bytes <= MOST_BYTES + 14 + len(chunk)


def client() -> ClientProtocol:
    return ClientProtocol(parse_uri("ws://host/"), state=OPEN, max_size=None)


def sent(protocol: ClientProtocol) -> bytes:
    return b"".join(protocol.data_to_send())


def frame(opcode: int, payload: bytes = b"", *, bits: int = 0x80) -> bytes:
    """A masked frame of any kind, with a mask of zeros."""
    return bytes((bits | opcode,)) + length(len(payload)) + bytes(4) + payload


def length(size: int) -> bytes:
    if size < 126:
        return bytes((0x80 | size,))
    return b"\xfe" + size.to_bytes(2) if size < 65_536 else b"\xff" + size.to_bytes(8)


def close_code(told: Told) -> int | None:
    """The code of the close frame that was written."""
    other = client()
    other.receive_data(bytes(told.written))
    return other.close_rcvd and other.close_rcvd.code


def split(data: bytes, dice: random.Random) -> Iterator[bytes]:
    """Cut into pieces as a network does: all in one, byte by byte, or anywhere."""
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.choice([0, 1, 5, 50])))
    if len(data) < 2000 and dice.random() < 0.2:
        cuts = list(range(len(data)))
    return (data[begin:end] for begin, end in pairwise([0, *cuts, len(data)]) if end > begin)


def random_text(dice: random.Random) -> str:
    size = dice.choice([0, 1, 80, 124, 125, 126, 127, 400, 65_535, 65_536, 65_537])
    return (
        "".join(dice.choice("ab") for _ in range(size)) if dice.random() < 0.7 else "é群😀"[: size % 4] * min(size, 99)
    )


def talk(protocol: ClientProtocol, dice: random.Random, count: int) -> tuple[list[str], int]:
    """Send messages, whole and in fragments, with control frames between; return the texts and how many pings."""
    texts: list[str] = []
    pings = 0
    for _ in range(count):
        text = random_text(dice)
        parts = list(split(text.encode(), dice))[:20] if dice.random() < 0.3 else []
        if not parts or b"".join(parts) != text.encode():
            protocol.send_text(text.encode())
        for number, part in enumerate(parts if b"".join(parts) == text.encode() else []):
            is_last = number == len(parts) - 1
            if number == 0:
                protocol.send_text(part, fin=is_last)
            else:
                protocol.send_continuation(part, fin=is_last)
            if dice.random() < 0.3:
                protocol.send_pong(b"")
        texts.append(text)
        if dice.random() < 0.3:
            pings += 1
            protocol.send_ping(f"ping {pings}".encode())
    return texts, pings


@pytest.mark.parametrize("seed", range(12))
def test_texts_come_whole_however_the_network_cuts_them(seed: int) -> None:
    # Given a client that talks, pings, and closes
    dice = random.Random(seed)
    other, told = client(), Told()
    texts, pings = talk(other, dice, 40)
    other.send_close(1000, "bye")
    # When its bytes come in pieces
    told.feed(split(sent(other), dice))
    # Then each text was read once and in order, each ping answered, and the end is clean
    assert [text.decode() for text in told.texts] == texts
    assert told.has_ended
    assert not told.refusals
    other.receive_data(bytes(told.written))
    answers = [bytes(e.data) for e in other.events_received() if isinstance(e, Frame) and e.opcode is Opcode.PONG]
    assert answers == [f"ping {number + 1}".encode() for number in range(pings)]
    assert other.close_rcvd
    assert (other.close_rcvd.code, other.close_rcvd.reason) == (1000, "bye")


TEXT, CONT, BINARY, CLOSE, PING = 1, 0, 2, 8, 9


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x02hi", 1002),  # not masked
        (b"\x89\x00", 1002),  # a ping that is not masked
        (b"\xc1\xfe", 1002),  # a reserved bit, and nothing of the text yet
        (b"\x83\xfe", 1002),
        (frame(TEXT, b"hi", bits=0xC0), 1002),
        (frame(TEXT, b"hi", bits=0xA0), 1002),
        (frame(TEXT, b"hi", bits=0x90), 1002),
        *[(frame(opcode, b"hi"), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)],
        (frame(CONT, b"hi"), 1002),
        (frame(TEXT, b"h", bits=0) + frame(TEXT, b"i"), 1002),
        (frame(PING, b"x", bits=0), 1002),
        (frame(PING, b"x" * 126), 1002),
        (b"\x88\xfe\x01\x00", 1002),  # a close frame that claims 256 bytes, of which none came
        (b"\x81\xfe\x00\x05" + _MASK + b"xxxxx", 1002),  # five bytes, with a length of two bytes
        (b"\x81\xff" + (65_535).to_bytes(8) + _MASK, 1002),
        (frame(CLOSE, b"x"), 1002),
        (frame(CLOSE, (999).to_bytes(2)), 1002),
        (frame(CLOSE, (1005).to_bytes(2)), 1002),
        (frame(CLOSE, (1006).to_bytes(2)), 1002),
        (frame(CLOSE, (1000).to_bytes(2) + b"\xff"), 1007),
        (frame(TEXT, b"h", bits=0) + frame(CLOSE, (1000).to_bytes(2)), 1002),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),  # half of a surrogate pair
        (frame(TEXT, b"\xc3", bits=0) + frame(CONT, b"x"), 1007),
        (frame(TEXT, b"\xff" * 200), 1007),
        (frame(BINARY, b"hi"), 1003),
        (frame(BINARY, b"h", bits=0), 1003),
        (b"\x81\xff" + (MOST_BYTES + 1).to_bytes(8) + _MASK, 1009),
        (b"\x81\xff" + b"\xff" * 8 + _MASK, 1009),
        (frame(TEXT, b"x" * 40_000, bits=0) + b"\x80\xfe" + (30_001).to_bytes(2) + _MASK, 1009),
    ],
)
def test_each_fault_ends_the_socket_with_its_code(data: bytes, code: int) -> None:
    for pieces in ([data], [bytes((byte,)) for byte in data] if len(data) < 1000 else [data]):
        told = Told()
        # When a good text comes, then the fault, then another text
        told.feed([frame(TEXT, b"before"), *pieces, frame(TEXT, b"after")])
        # Then that text was read, and the fault was answered at once
        assert told.texts == [b"before"]
        assert close_code(told) == code
        assert told.has_ended


def test_a_fragmented_text_may_be_cut_within_a_character() -> None:
    told = Told()
    told.feed([frame(TEXT, b"\xc3", bits=0), frame(PING, b"p"), frame(CONT, b"\xa9")])
    assert told.texts == ["é".encode()]
    assert told.written == b"\x8a\x01p"


def test_a_message_of_exactly_the_limit_is_taken() -> None:
    told = Told()
    told.feed([frame(TEXT, b"x" * MOST_BYTES), frame(TEXT, b"y" * 10, bits=0), frame(CONT, b"y" * (MOST_BYTES - 10))])
    assert [len(text) for text in told.texts] == [MOST_BYTES, MOST_BYTES]


def test_many_empty_fragments_cost_nothing() -> None:
    told = Told()
    told.feed([frame(TEXT, b"", bits=0), *[frame(CONT, b"", bits=0)] * 10_000, frame(CONT, b"end")])
    assert told.texts == [b"end"]


def test_what_comes_after_our_close_is_read_until_theirs() -> None:
    # Given a socket that we close
    told = Told()
    told.reader.close(4408, "too slow")
    assert close_code(told) == 4408
    assert not told.has_ended
    # When the client has sent a text before it answers
    told.feed([frame(TEXT, b"late"), frame(CLOSE, (4408).to_bytes(2))])
    # Then the end is clean, and a second close writes nothing
    assert told.has_ended
    written = bytes(told.written)
    told.reader.close(1000, "")
    assert told.written == written


def test_an_empty_close_is_answered_with_an_empty_one() -> None:
    told = Told()
    told.feed([frame(CLOSE)])
    assert told.written == b"\x88\x00"
    assert told.has_ended


def library_reads(data: bytes) -> tuple[list[bytes], int | None]:
    """The texts that the library reads, and the code that it closes with."""
    server = ServerProtocol(state=OPEN, max_size=None)
    server.receive_data(data)
    texts, parts = [], b""
    for event in server.events_received():
        assert isinstance(event, Frame)
        if event.opcode in {Opcode.TEXT, Opcode.CONT, Opcode.BINARY}:
            parts += event.data
            if event.fin:
                texts.append(parts)
                parts = b""
    return texts, server.close_sent.code if server.close_sent else None


OUR_OWN = {1003, 1007, 1009}
"""Faults of messages, which the library leaves to the program."""


@pytest.mark.parametrize("seed", range(60))
def test_spoiled_bytes_end_as_the_library_ends_them(seed: int) -> None:
    # Given what a client has sent, with some bytes changed, lost or doubled
    dice = random.Random(seed)
    other, told = client(), Told()
    talk(other, dice, 6)
    other.send_close(1000)
    data = bytearray(sent(other)[: dice.choice([200, 3000, 200_000])])
    for _ in range(dice.choice([1, 1, 3, 20])):
        at = dice.randrange(len(data))
        match dice.randrange(4):
            case 0:
                data[at] ^= 1 << dice.randrange(8)
            case 1:
                del data[at : at + dice.choice([1, 2, 14])]
            case 2:
                data[at:at] = data[: dice.choice([1, 2, 14])]
            case 3:
                data[at] = dice.randrange(256)
        data = data or bytearray(b"\0")
    # When they are read
    told.feed(split(bytes(data), dice))
    # Then it agrees with the library, up to a fault that only we know
    texts, code = library_reads(bytes(data))
    assert told.texts == texts[: len(told.texts)]
    ours = close_code(told)
    if ours == code:
        assert ours is None or len(told.texts) == len(texts)
    else:
        assert ours in OUR_OWN | {1002}
        assert told.has_ended


KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def request(path: str = "/ws", version: str | None = "13", key: str | None = KEY, **more: str) -> bytes:
    headers = {"Host": "host", "Upgrade": "websocket", "Connection": "keep-alive, Upgrade"}
    headers |= {"Sec-WebSocket-Version": version} if version else {}
    headers |= {"Sec-WebSocket-Key": key} if key else {}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in (headers | more).items()]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()


def no_refusal(path: str, headers: object) -> None:
    return None


def test_a_handshake_is_accepted_without_extensions() -> None:
    offered = {"Sec_WebSocket_Extensions": "permessage-deflate", "Authorization": "Bearer x"}
    handshake = shake_hands(request("/ws?a=b", **offered), no_refusal)
    assert handshake.is_accepted
    assert handshake.answer.startswith(b"HTTP/1.1 101 ")
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in handshake.answer
    assert b"deflate" not in handshake.answer
    assert handshake.headers["authorization"] == "Bearer x"


@pytest.mark.parametrize(
    ("head", "status", "also"),
    [
        (request(version="8"), 426, b"Sec-WebSocket-Version: 13"),
        (request(version=None), 400, b""),
        (request(key=None), 400, b""),
        (request(key="short"), 400, b""),
        (request(key="AAAA"), 400, b""),
        (request(Upgrade="h2c"), 426, b"Upgrade: websocket"),
        (request(Connection="close"), 426, b"Upgrade: websocket"),
        (request().replace(b"GET", b"POST"), 405, b"Allow: GET"),
        (request().replace(b"HTTP/1.1", b"HTTP/1.0"), 505, b""),
        (request(Origin="https://a\r\nOrigin: https://b"), 400, b""),
        (request(Content_Length="5"), 400, b""),
        (request(X="x" * 10_000), 431, b""),
        (request("/" + "x" * 10_000), 414, b""),
        (b"nonsense\r\n\r\n", 400, b""),
        (request("/other"), 404, b"sockets are at /ws"),
    ],
)
def test_a_handshake_is_refused(head: bytes, status: int, also: bytes) -> None:
    def refusal(path: str, headers: object) -> tuple[int, str] | None:
        return None if path == "/ws" else (404, "sockets are at /ws")

    handshake = shake_hands(head, refusal)
    assert not handshake.is_accepted
    assert handshake.answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert also in handshake.answer
    assert b"\r\nConnection: close\r\n" in handshake.answer
