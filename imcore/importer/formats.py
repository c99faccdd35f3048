"""Reads the lines of an import: JSON Lines in UTF-8, UTF-16 or UTF-32, compressed by gzip or not.

Any other format is refused by its name before anything is imported.
"""

import codecs
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from itertools import chain, islice
from typing import Any

from imcore.errors import InvalidInput
from imcore.files import gzip_stream
from imcore.files.gzip_stream import DamagedGzip, ForeignTail, GzipStream, TruncatedGzip, raising
from imcore.importer import wrong_formats
from imcore.importer.wrong_formats import BYTES_OF_MAGIC, WrongFormat, without_mark

_BYTES_PER_READ = 1 << 16
_OTHER_KEYS_BYTES = 16 << 20
"""The most bytes of a line besides its content: unknown keys are ignored."""
_BYTES_IN_JSON = 6
"""JSON may write one byte of a text in 6 bytes: `\\u0041`."""
_MOST_WRONG_LINES = 100
_MOST_WRONG_BYTES = 8 << 20
_MOST_BLANK_BYTES = 1 << 20
"""The most bytes examined before the first JSON object. Blank lines stay in memory, for the numbers of lines."""

# UTF-32 first: in little endian its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

_DAMAGE = (OSError, UnicodeError, DamagedGzip, TruncatedGzip, ForeignTail)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In the place of a line that cannot be read: why."""

    reason: str


Line = bytes | Unreadable
Chunks = Iterator[bytes]


class EventLines:
    """The lines of a source in UTF-8, with line breaks. A line that is too long, and a damaged rest, are Unreadable."""

    def __init__(self, source: BufferedIOBase, name: str, *, max_content_bytes: int) -> None:
        """Read the beginning. Raise InvalidInput with the name of the source for a wrong format."""
        self.bytes_read = 0
        self._source = source
        try:
            head, chunks, gzip = _decoded(self._chunks())
        except _DAMAGE as error:
            raise InvalidInput(f"{name} cannot be read: {_reason(error)}") from error
        _refuse(wrong_formats.by_magic(head), name)
        lines = _split(chain([head], chunks), _BYTES_IN_JSON * max_content_bytes + _OTHER_KEYS_BYTES)
        if gzip:
            lines = _until_damage(lines, gzip)
        self._lines = chain(_examined(lines, head, name), lines)

    def __iter__(self) -> Iterator[Line]:
        return self._lines

    def _chunks(self) -> Chunks:
        while chunk := self._source.read1(_BYTES_PER_READ):
            self.bytes_read += len(chunk)
            yield chunk


def is_blank(line: bytes) -> bool:
    return not without_mark(line).strip()


def json_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line. Raise InvalidInput for any other line."""
    try:
        value = json.loads(without_mark(line).decode())
    except UnicodeDecodeError:
        raise InvalidInput("the line is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidInput(f"the line is not JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets
        raise InvalidInput(f"the line is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInput("the line is not a JSON object")
    return value


def _why_no_object(line: bytes) -> str:
    try:
        json_object(line)
    except InvalidInput as error:
        return str(error)
    return ""


# From bytes to bytes in UTF-8.


_REASONS = {
    DamagedGzip: "the gzip data is damaged, which may have changed lines before this one",
    TruncatedGzip: "the gzip data is cut off",
    ForeignTail: "what follows the gzip data is no gzip data; the lines before it are sound",
}


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, UnicodeError):
        return f"it is not valid {getattr(error, 'encoding', 'text').upper()}"
    return _REASONS[type(error)]


def _decoded(chunks: Chunks) -> tuple[bytes, Chunks, GzipStream | None]:
    """Return the beginning of a source in UTF-8, long enough to identify its format, the rest, and its gzip stream."""
    gzip = None
    head, chunks = _peeked(chunks)
    if head.startswith(gzip_stream.MAGIC):
        gzip = GzipStream(chain([head], chunks))
        head, chunks = _peeked(iter(gzip))
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            head, chunks = _peeked(_recoded(chain([head[len(mark) :]], chunks), encoding))
            break
    return head, chunks, gzip


def _peeked(chunks: Chunks) -> tuple[bytes, Chunks]:
    """Return the beginning, a line or the length of a magic number, and the rest. A pipe may bring it bit by bit."""
    head = b""
    try:
        for chunk in chunks:
            head += chunk
            if len(head) >= BYTES_OF_MAGIC or (b"\n" in head and len(head) > len(codecs.BOM_UTF8)):
                break
    except _DAMAGE as error:
        if not head:
            raise
        return head, raising(error)
    return head, chunks


def _recoded(chunks: Chunks, encoding: str) -> Chunks:
    # With half a surrogate pair one line is not valid, as its UTF-8 shows, and not the rest of the source.
    try:
        for text in codecs.iterdecode(chunks, encoding, "surrogatepass"):
            yield text.encode(errors="surrogatepass")
    except UnicodeDecodeError as error:
        yield error.object[: error.start].decode(encoding, "surrogatepass").encode(errors="surrogatepass")
        raise


# From bytes to lines.


def _split(chunks: Chunks, longest: int) -> Iterator[Line]:
    """Yield the lines. A line that is too long is not kept in memory."""
    rest = bytearray()
    try:
        yield from _ended(chunks, longest, rest)
    except _DAMAGE as error:
        with suppress(InvalidInput):
            if rest and (isinstance(error, ForeignTail) or json_object(bytes(rest))):
                yield bytes(rest)
        yield Unreadable(f"the rest cannot be read: {_reason(error)}")
    else:
        if rest:
            yield bytes(rest)


def _ended(chunks: Chunks, longest: int, rest: bytearray) -> Iterator[Line]:
    """Yield the lines whose end has come. `rest` is the line whose end has not come yet."""
    is_too_long = False
    for piece in chain.from_iterable(map(BytesIO, chunks)):  # in C, and by LF alone
        is_end = piece.endswith(b"\n")
        if is_too_long:
            is_too_long = not is_end
        elif is_end and not rest:
            yield piece
        else:
            rest += piece
            if len(rest) > longest:
                rest.clear()
                is_too_long = not is_end
                yield Unreadable(f"the line has more than {longest} bytes: no event is so long")
            elif is_end:
                yield bytes(rest)
                rest.clear()


def _until_damage(lines: Iterator[Line], gzip: GzipStream) -> Iterator[Line]:
    """Yield the lines. If the data is damaged, end at the first line that is not an object: the damage may be there."""
    for line in lines:
        is_sound = isinstance(line, Unreadable) or is_blank(line) or not _why_no_object(line)
        if not is_sound and gzip.is_damaged():
            yield Unreadable(f"the rest cannot be read: {_reason(DamagedGzip())}")
            return
        yield line


# From lines to the format.


def _examined(lines: Iterator[Line], head: bytes, name: str) -> list[Line]:
    """Return the lines that had to be read to identify the format. Raise InvalidInput for a wrong one.

    They are the lines up to the first JSON object, or enough lines.
    """
    examined: list[Line] = []
    wrong: list[bytes] = []
    blank_bytes = 0
    for line in lines:
        examined.append(line)
        if isinstance(line, Unreadable):
            _refuse(wrong_formats.by_look(b"".join(wrong) or head), name)
            return examined
        if is_blank(line):
            blank_bytes += len(line)
        elif _why_no_object(line):
            wrong.append(line)
        else:
            return examined + _examined_after(lines, b"".join(wrong), line, name)
        if _are_enough(wrong, blank_bytes):
            break
    if wrong:
        raise _not_json_lines(examined, wrong, name)
    if blank_bytes > _MOST_BLANK_BYTES:
        raise InvalidInput(f"{name} is not JSON Lines: its first {len(examined)} lines are blank")
    return examined


def _are_enough(wrong: list[bytes], blank_bytes: int) -> bool:
    are_many = len(wrong) == _MOST_WRONG_LINES or sum(map(len, wrong)) > _MOST_WRONG_BYTES
    return are_many or blank_bytes > _MOST_BLANK_BYTES


def _not_json_lines(examined: list[Line], wrong: list[bytes], name: str) -> InvalidInput:
    _refuse(wrong_formats.by_look(b"".join(wrong)), name)
    return InvalidInput(
        f"{name} is not JSON Lines: none of its first {len(wrong)} lines is a JSON object "
        f"(line {examined.index(wrong[0]) + 1}: {_why_no_object(wrong[0])})"
    )


def _examined_after(lines: Iterator[Line], wrong: bytes, line: bytes, name: str) -> list[Line]:
    """Return the lines after the first JSON object that had to be read. Raise InvalidInput if it ends an array."""
    if not wrong_formats.may_be_array(wrong):
        return []
    following = list(islice(lines, 1))
    beginning = [wrong, line, *(each for each in following if isinstance(each, bytes))]
    _refuse(wrong_formats.array(b"".join(beginning)), name)
    return following


def _refuse(wrong_format: WrongFormat | None, name: str) -> None:
    if wrong_format:
        raise InvalidInput(f"{name} is {wrong_format.name}: {wrong_format.advice}")
