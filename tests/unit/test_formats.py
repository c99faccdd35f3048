"""Formats of imports: which are read, and which are refused by their names."""

import bz2
import gzip
import io
import json
import lzma
import random
import sqlite3
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imcore.errors import InvalidInput
from imcore.importer.formats import EventLines, Line, Unreadable, is_blank

EVENTS: list[dict[str, Any]] = [
    {"type": "join", "gid": "team", "uid": "bob"},
    {"type": "message", "gid": "team", "uid": "josé", "content": "Grüße, 山田 👩‍💻\u2028\x85", "client_msgid": "1"},
    {"type": "message", "gid": "team", "uid": "ann", "content": "[red]ਊ\u0a0d", "client_msgid": "2"},
]
compressed_by_gzip = partial(gzip.compress, mtime=0)
"""The same each time: data of tests are in their names."""

TEXT = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in EVENTS)


class Dribble(io.BytesIO):
    """A pipe that brings this many bytes at a time."""

    def __init__(self, data: bytes, count: int) -> None:
        super().__init__(data)
        self._count = count

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(min(size or 0, self._count))


def read(data: bytes | io.BufferedIOBase, *, most: int = 1000) -> list[Line]:
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    return list(EventLines(source, "FILE", max_content_bytes=most))


def events(lines: list[Line]) -> list[Any]:
    """What lines say; one that cannot be had says why."""
    return [
        line.reason if isinstance(line, Unreadable) else json.loads(line.decode().lstrip("\ufeff"))
        for line in lines
        if isinstance(line, Unreadable) or not is_blank(line)
    ]


def refusal(data: bytes | io.BufferedIOBase) -> str:
    with pytest.raises(InvalidInput) as error:
        read(data)
    assert "\n" not in str(error.value)
    return str(error.value)


def members(data: bytes) -> bytes:
    """Compressed line by line, with zeros behind them as on a tape."""
    return b"".join(map(compressed_by_gzip, io.BytesIO(data))) + bytes(1000)


def named(data: bytes) -> bytes:
    """Compressed with the name of the file in it, as gzip does it."""
    archive = io.BytesIO()
    with gzip.GzipFile("chat.jsonl", "wb", fileobj=archive) as file:
        file.write(data)
    return archive.getvalue()


ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "UTF-8": str.encode,
    "UTF-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "UTF-8 with two marks": lambda text: b"\xef\xbb\xbf" + text.encode("utf-8-sig"),
    "UTF-16 with two marks": lambda text: b"\xff\xfe\xff\xfe" + text.encode("utf-16-le"),
    "UTF-16 little endian": lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
    "UTF-16 big endian": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "UTF-32 little endian": lambda text: b"\xff\xfe\0\0" + text.encode("utf-32-le"),
    "UTF-32 big endian": lambda text: b"\0\0\xfe\xff" + text.encode("utf-32-be"),
}
COMPRESSIONS = {"plain": bytes, "gzip": compressed_by_gzip, "gzip with a name": named, "gzip in members": members}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS.keys())
def test_every_encoding_and_compression_is_read(
    encode: Callable[[str], bytes], compress: Callable[[bytes], bytes], count: int
) -> None:
    for text in (TEXT, TEXT[:-1], TEXT.replace("\n", "\r\n"), "\n\n" + TEXT.replace("\n", "\n\n")):
        source = Dribble(compress(encode(text)), count)
        assert events(read(source)) == EVENTS


@given(
    st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))),
    st.sampled_from(list(ENCODINGS)),
    st.integers(1, 50),
)
def test_random_text_is_read_line_by_line(texts: list[str], encoding: str, count: int) -> None:
    lines = ["{}", *texts]
    lines_read = read(Dribble(ENCODINGS[encoding]("\n".join(lines)), count))
    expected = [line + "\n" for line in lines[:-1]] + [lines[-1]] * bool(lines[-1])
    said = b"".join(line for line in lines_read if isinstance(line, bytes)).decode()
    assert said.lstrip("\ufeff") == "".join(expected)
    assert len(lines_read) == len(expected)


def test_mark_in_the_middle_stays_in_its_line() -> None:
    data = ENCODINGS["UTF-16 little endian"](TEXT)
    assert events(read(data + data)) == EVENTS * 2


def test_half_a_surrogate_pair_spoils_its_line_alone() -> None:
    odd = '{"a": "\ud83d"}\n'
    data = b"\xff\xfe" + (TEXT + odd + TEXT).encode("utf-16-le", "surrogatepass")
    lines_read = read(data)
    with pytest.raises(UnicodeDecodeError):
        lines_read.pop(len(EVENTS)).decode()  # type: ignore[union-attr]
    assert events(lines_read) == EVENTS * 2


def test_bytes_read_are_those_of_the_source() -> None:
    data = compressed_by_gzip(TEXT.encode() * 100_000)
    lines = EventLines(io.BytesIO(data), "FILE", max_content_bytes=1000)
    assert lines.bytes_read <= len(data)
    assert len(list(lines)) == 100_000 * len(EVENTS)
    assert lines.bytes_read == len(data)


# Damage.

DAMAGED = Unreadable("the rest cannot be read: the gzip data is damaged, which may have changed lines before this one")


@pytest.mark.parametrize("compress", [compressed_by_gzip, members])
def test_truncated_gzip_is_read_up_to_its_last_whole_line(compress: Callable[[bytes], bytes]) -> None:
    data = compress(TEXT.encode())
    for length in range(12, len(data.rstrip(b"\0"))):
        events_read = events(read(data[:length]))
        if events_read[-1] == "the rest cannot be read: the gzip data is cut off":
            events_read.pop()
        else:
            assert data[length:].startswith(b"\x1f\x8b"), "only where a member ends, nobody can know"
        assert events_read == EVENTS[: len(events_read)]


def test_damaged_gzip_is_read_up_to_the_damage() -> None:
    # Given
    lines = numbered(20_000)
    data = bytearray(compressed_by_gzip(lines))
    middle = len(data) // 2
    data[middle : middle + 1000] = b"\xff" * 1000
    # When
    *lines_read, last = read(bytes(data))
    # Then
    assert last == DAMAGED
    assert b"".join(lines_read[:9000]) == b"".join(io.BytesIO(lines).readlines()[:9000])  # type: ignore[arg-type]


def test_truncated_line_that_is_an_object_is_read() -> None:
    data = compressed_by_gzip(TEXT[:-1].encode())
    assert events(read(data[:-1])) == [*EVENTS, "the rest cannot be read: the gzip data is cut off"]


def numbered(count: int) -> bytes:
    return "".join(f'{{"n": {number}, "text": "{number**20}"}}\n' for number in range(count)).encode()


@pytest.mark.parametrize("count", [5, 1 << 20])
def test_damaged_gzip_ends_with_one_unreadable_line_wherever_the_damage_is(count: int) -> None:
    lines = numbered(200)
    data = compressed_by_gzip(lines)
    chance = random.Random(1)
    for place in range(10, len(data), 29):
        damaged = bytearray(data)
        damaged[place] ^= 1 << chance.randrange(8)
        try:
            *lines_read, last = read(Dribble(bytes(damaged), count))
        except InvalidInput as error:
            lines_read, last = [], Unreadable(str(error).replace("FILE", "the rest"))
        if [*lines_read, last] == lines.splitlines(keepends=True):
            continue  # a bit that nobody uses
        assert last == DAMAGED
        assert all(isinstance(event, dict) for event in events(lines_read))
        whole = zlib.decompressobj(31).decompress(data[:place]).rpartition(b"\n")
        assert b"".join(lines_read).startswith(whole[0] + whole[1])  # type: ignore[arg-type]


def test_line_that_is_not_valid_in_sound_gzip_does_not_end_it() -> None:
    for compress in (compressed_by_gzip, members):
        data = compress(TEXT.encode() + b"oh\n" + TEXT.encode() + b"no\n" + numbered(20_000))
        for source in (io.BytesIO(data), Dribble(data, 1000)):
            lines_read = read(source)
            assert lines_read[3] == b"oh\n"
            assert lines_read[7] == b"no\n"
            assert len(lines_read) == 20_008


def test_damage_of_a_second_gzip_member_does_not_spoil_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a line in each that is not valid, and damage behind the second one
    first, second = (
        compressed_by_gzip(TEXT.encode() + b"oh\n"),
        bytearray(compressed_by_gzip(TEXT.encode() + b"no\n" + numbered(500))),
    )
    second[-100] ^= 1
    # When
    lines_read = read(bytes(first + second))
    # Then
    assert lines_read[3] == b"oh\n"
    assert lines_read[7:] == [DAMAGED]


def test_gzip_checksum_that_is_far_away_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imcore.files.gzip_stream.AHEAD_BYTES", 1000)
    data = bytearray(compressed_by_gzip(TEXT.encode() + b"oh\n" + numbered(20_000)))
    data[-1] ^= 1
    lines = EventLines(Dribble(bytes(data), 500), "FILE", max_content_bytes=1000)
    assert [next(iter(lines)) for _ in range(4)][3] == b"oh\n"
    assert lines.bytes_read < 3000
    assert [type(line) for line in lines][-1] is Unreadable


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (ENCODINGS["UTF-16 little endian"](TEXT) + b"\n", "it is not valid UTF-16-LE"),
        (ENCODINGS["UTF-32 big endian"](TEXT) + b"\0\x20\0\0", "it is not valid UTF-32-BE"),
    ],
)
def test_undecodable_end_is_one_unreadable_line(data: bytes, reason: str) -> None:
    assert events(read(data)) == [*EVENTS, f"the rest cannot be read: {reason}"]


FOREIGN = "the rest cannot be read: what follows the gzip data is no gzip data; the lines before it are sound"


@pytest.mark.parametrize("count", [1, 1 << 20])
@pytest.mark.parametrize("tail", [b"garbage", b"\n", TEXT.encode(), bytes(1000) + b"\x8b", b"\x1f\x1f\x8b", b"PK\3\4"])
@pytest.mark.parametrize("compress", [compressed_by_gzip, members])
def test_foreign_data_after_gzip_does_not_spoil_the_lines_before_it(
    compress: Callable[[bytes], bytes], tail: bytes, count: int
) -> None:
    for text, last in ((TEXT, []), (TEXT[:-1], []), (TEXT + "oh", [b"oh"]), (TEXT + "oh\n" + TEXT, [b"oh\n"])):
        *lines_read, reason = read(Dribble(compress(text.encode()) + tail, count))
        assert reason == Unreadable(FOREIGN)
        assert lines_read[len(EVENTS) : len(EVENTS) + 1] == last
        assert b"".join(line for line in lines_read if isinstance(line, bytes)) == text.encode()


def test_half_a_magic_number_after_gzip_is_truncated_gzip() -> None:
    events_read = events(read(compressed_by_gzip(TEXT.encode()) + b"\x1f"))
    assert events_read == [*EVENTS, "the rest cannot be read: the gzip data is cut off"]


@pytest.mark.parametrize("data", [b"\x1f\x8b", b"\x1f\x8b\x07\x00", compressed_by_gzip(TEXT.encode())[:11]])
def test_gzip_without_any_readable_data_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"FILE cannot be read: the gzip data is (cut off|damaged)"):
        read(data)


def test_failing_source_ends_with_one_unreadable_line() -> None:
    class Broken(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            if data := super().read1(size):
                return data
            raise OSError(5, "Input/output error")

    assert events(read(Broken(TEXT.encode()))) == [*EVENTS, "the rest cannot be read: Input/output error"]
    with pytest.raises(InvalidInput, match="FILE cannot be read: Input/output error"):
        read(Broken())


# Lines without end.

LONGEST = 6 * 1000 + (16 << 20)


MUCH = 64 << 20


class Long(io.BytesIO):
    """A stream of lines, and a very long one between them, which is never in the memory as a whole."""

    def __init__(self, before: bytes, after: bytes) -> None:
        super().__init__(after)
        self._before, self._left = before, MUCH

    def read1(self, size: int | None = -1, /) -> bytes:
        first, self._before = self._before, b""
        count = min(size or 0, self._left) if not first else 0
        self._left -= count
        return first or b"x" * count or super().read1(size)


def peak_of(action: Callable[[], object]) -> int:
    """How many bytes were taken at most at once."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


TOO_LONG = f"the line has more than {LONGEST} bytes: no event is so long"


@pytest.mark.parametrize("before", [[], EVENTS])
def test_line_longer_than_any_event_is_unreadable_and_the_rest_is_read(before: list[dict[str, Any]]) -> None:
    source = Long(TEXT.encode() if before else b"", b"\n" + TEXT.encode())
    assert events(read(source)) == [*before, TOO_LONG, *EVENTS]


def test_line_without_end_does_not_fill_the_memory() -> None:
    compressed = compressed_by_gzip(b"x" * MUCH + b"\n" + TEXT.encode())
    assert events(read(compressed)) == [TOO_LONG, *EVENTS]
    for source in (Long(TEXT.encode(), b""), io.BytesIO(compressed)):
        assert peak_of(lambda source=source: read(source)) < MUCH * 0.8


def test_blank_lines_without_end_do_not_fill_the_memory() -> None:
    for source in (compressed_by_gzip(b"\n" * MUCH), compressed_by_gzip(b"oh\n" + b"\n" * MUCH)):
        assert peak_of(lambda source=source: refusal(source)) < MUCH // 2


def test_line_as_long_as_the_longest_event_is_read() -> None:
    content = "\x01" * 1000
    line = json.dumps({"content": content}).encode() + b" " * (LONGEST - 6 * 1000 - 15)
    assert len(line) == LONGEST
    assert events(read(line)) == [{"content": content}]
    assert [type(line_read) for line_read in read(line + b" ")] == [Unreadable]


# Wrong forms.


def zipped(data: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("chat.jsonl", data)
    return archive.getvalue()


def tarred(data: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        member = tarfile.TarInfo("chat.jsonl")
        member.size = len(data)
        file.addfile(member, io.BytesIO(data))
    return archive.getvalue()


def in_sqlite(data: bytes) -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE messages (text)")
        connection.execute("INSERT INTO messages VALUES (?)", (data,))
        return connection.serialize()


MANY = "".join(json.dumps({"type": "join", "gid": "team", "uid": f"u{number}"}) + "\n" for number in range(500))
COMMAS = MANY.replace("\n", ",\n").removesuffix(",\n")
PRETTY = "\n".join(json.dumps(json.loads(line), indent=2) for line in MANY.splitlines())
SPREAD = "JSON with objects of several lines"
NO_OBJECT = "not JSON Lines: none of its first 100 lines is a JSON object"
WRONG: dict[str, tuple[bytes, str]] = {
    "array in lines": (f"[\n{COMMAS}\n]\n".encode(), "a JSON array"),
    "array of one line": (f"[{COMMAS}]".replace("\n", " ").encode(), "a JSON array"),
    "array that begins in the line of its first": (f"[{COMMAS}]".encode(), "a JSON array"),
    "array of one": (f"[\n{MANY.splitlines()[0]}\n]".encode(), "a JSON array"),
    "array of two": (("[\n" + ",\n".join(MANY.splitlines()[:2]) + "\n]\n").encode(), "a JSON array"),
    "array with the commas first": (("[\n" + "\n, ".join(MANY.splitlines()) + "\n]\n").encode(), "a JSON array"),
    "array with a mark": (b"\xef\xbb\xbf" + f"[\n{COMMAS}\n]\n".encode(), "a JSON array"),
    "array with two marks": (b"\xef\xbb\xbf" * 2 + f"[\n{COMMAS}\n]\n".encode(), "a JSON array"),
    "array in UTF-16": (ENCODINGS["UTF-16 little endian"](f"[\n{COMMAS}\n]\n"), "a JSON array"),
    "array, pretty-printed": (json.dumps(json.loads(f"[{COMMAS}]"), indent=4).encode(), "a JSON array"),
    "array with nothing in it": (b"[]", "a JSON array"),
    "pretty-printed": (PRETTY.encode(), SPREAD),
    "pretty-printed in CRLF": (PRETTY.replace("\n", "\r\n").encode(), SPREAD),
    "one object of several lines": (json.dumps({"messages": [1] * 300}, indent=1).encode(), SPREAD),
    "CR only": (MANY.replace("\n", "\r").encode(), "a text whose lines end with CR only"),
    "CR only, very long": ((MANY.replace("\n", "\r") * 1500).encode(), "a text whose lines end with CR only"),
    "UTF-16 LE without a mark": (MANY.encode("utf-16-le"), "UTF-16LE without a byte order mark"),
    "UTF-16 BE without a mark": (MANY.encode("utf-16-be"), "UTF-16BE without a byte order mark"),
    "UTF-32 LE without a mark": (MANY.encode("utf-32-le"), "UTF-32LE without a byte order mark"),
    "UTF-32 BE without a mark": (MANY.encode("utf-32-be"), "UTF-32BE without a byte order mark"),
    "zip": (zipped(MANY.encode()), "a zip archive"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "an empty zip archive"),
    "zstd": (b"\x28\xb5\x2f\xfd\x24\x0a" + bytes(30), "compressed by zstd"),
    "bzip2": (bz2.compress(MANY.encode()), "compressed by bzip2"),
    "empty bzip2": (bz2.compress(b""), "compressed by bzip2"),
    "xz": (lzma.compress(MANY.encode()), "compressed by xz"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\x04" + bytes(30), "a 7z archive"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(30), "compressed by lz4"),
    "gzip twice": (compressed_by_gzip(compressed_by_gzip(MANY.encode())), "compressed twice by gzip"),
    "tar": (tarred(MANY.encode()), "a tar archive"),
    "tar in gzip": (compressed_by_gzip(tarred(MANY.encode())), "a tar archive"),
    "SQLite": (in_sqlite(MANY.encode()), "a SQLite database"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + MANY.encode(), "a PDF document"),
    "HTML": (f"\n<!DOCTYPE html>\n<html><script>\n{MANY}</script>".encode(), "HTML or XML"),
    "XML": (b'\xef\xbb\xbf<?xml version="1.0"?>\n<log/>\n', "HTML or XML"),
    "XML without a declaration": (b"<log>\n" + b"<message/>\n" * 500, "HTML or XML"),
    "JSON text sequence": (("\x1e" + MANY.replace("\n", "\n\x1e")).encode(), "a JSON text sequence (RFC 7464)"),
    "zeros": (bytes(100_000), "binary data"),
    "random bytes": (random.Random(2).randbytes(100_000), "binary data"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + random.Random(3).randbytes(5000), "binary data"),
    "CSV": (b"gid,uid,content\n" + b"team,ann,hi\n" * 5000, NO_OBJECT),
    "one line of text": (b"hello\n", "not JSON Lines: none of its first 1 lines is a JSON object"),
    "texts in JSON": (b'"hello"\n' * 5000, NO_OBJECT),
    "a comma behind each": ((COMMAS + ",").encode(), NO_OBJECT),
    "quotes of Python": (MANY.replace('"', "'").encode(), NO_OBJECT),
    "Latin-1": (MANY.replace("team", "café").encode("latin-1"), NO_OBJECT),
    "blank lines": (b"\n" * (2 << 20), "not JSON Lines: its first 1048577 lines are blank"),
    "blank lines before events": (b" \r\n" * (1 << 20) + MANY.encode(), "not JSON Lines: its first 349526 lines are"),
    "one blank line": (b" " * (2 << 20) + b"\n" + MANY.encode(), "not JSON Lines: its first 1 lines are blank"),
    "YAML": (b"- type: join\n  gid: team\n" * 500, NO_OBJECT),
}  # fmt: skip


@pytest.mark.parametrize("form", WRONG)
def test_wrong_format_is_refused_by_its_name(form: str) -> None:
    data, name = WRONG[form]
    assert refusal(data).startswith(f"FILE is {name}")
    assert len(refusal(data)) < 250


@pytest.mark.parametrize("form", [form for form, (_, name) in WRONG.items() if not name.startswith("not JSON Lines")])
def test_refusal_of_a_wrong_format_says_what_to_do(form: str) -> None:
    assert any(word in refusal(WRONG[form][0]) for word in ("| im import -`", "im import --help", "unpack it"))


def test_refusal_says_why_the_first_line_is_not_an_object() -> None:
    data = b"\n\n" + b'{"type": "join"\n' * 3
    assert refusal(data) == (
        "FILE is not JSON Lines: none of its first 3 lines is a JSON object "
        "(line 3: the line is not JSON: Expecting ',' delimiter at character 17)"
    )


@pytest.mark.parametrize(
    "first",
    [
        *(b"oh", b"[1, 2]", b"[", b"[INFO] begun", b"[2026-01-01] begun", b"{", b"]", b'{"type": "message",', b"\xff"),
        *(b"{broken}", b"\0" * 600, b"x,y,z", b"[" * 100_000, b"<b>hi</b>", b'[{"type": "join"}]', b"\x1e{}", b"//"),
        b"a\n" * 98 + b"b",
    ],
)
@pytest.mark.parametrize("count", [1, 1 << 20])
def test_line_that_is_not_an_object_beside_objects_is_read_as_a_line(first: bytes, count: int) -> None:
    for data in (first + b"\n" + MANY.encode(), MANY.encode() + first + b"\n" + MANY.encode()):
        if len(data) < 100_000 or count > 1:
            assert read(Dribble(data, count)) == [line + b"\n" for line in data.split(b"\n")[:-1]]


@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n\n", b"\xef\xbb\xbf", b"\xff\xfe", compressed_by_gzip(b"")])
def test_empty_source_has_no_events(data: bytes) -> None:
    assert (
        events([line for line in read(data) if not isinstance(line, bytes) or line.strip(b"\xef\xbb\xbf \r\n")]) == []
    )


def test_no_more_is_read_than_identifies_the_format() -> None:
    class Typed(io.BytesIO):
        """Somebody who types, and waits for what becomes of it."""

        def read1(self, size: int | None = -1, /) -> bytes:
            if line := super().readline():
                return line
            raise AssertionError("it waits for more")

    lines = iter(EventLines(Typed(TEXT.encode()), "stdin", max_content_bytes=1000))
    assert [json.loads(next(lines)) for _ in EVENTS] == EVENTS  # type: ignore[arg-type]
