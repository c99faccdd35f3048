"""Reads what people give to an import: JSON Lines in UTF-8, UTF-16 or UTF-32, compressed by gzip or not.

Anything else is told once, by its name, before anything is imported.
"""

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from itertools import chain, islice
from typing import Any, NamedTuple

from imcore.errors import InvalidInput
from imcore.files import gzip_stream
from imcore.files.gzip_stream import DamagedGzip, ForeignTail, GzipStream, TruncatedGzip
from imcore.importer.wrong_formats import BYTES_OF_MAGIC, Form, array, by_look, by_magic, may_be_array, unmarked

CHUNK_BYTES = 1 << 16
"""How much is read at once."""

OTHER_KEYS_BYTES = 16 << 20
"""How much a line may hold besides a content: keys that nobody knows are ignored."""

_BYTES_IN_JSON = 6
"""JSON may write one byte of a text in so many: `\\u0041`."""

_LINES_LOOKED_AT = 100
_BYTES_LOOKED_AT = 8 << 20
_BLANK_BYTES_LOOKED_AT = 1 << 20
"""How much may be blank before the first line that is not: these lines are kept, for their numbers."""

# UTF-32 first: in little endian its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MARK = codecs.BOM_UTF8


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What stands for a line that cannot be had, and why."""

    reason: str


Line = bytes | Unreadable
Chunks = Iterator[bytes]


class EventLines:
    """The lines of a source in UTF-8, each with its line break. `bytes_read`: how far the source has been read.

    A line that is longer than that of any event, and the rest of a source that cannot be read, are Unreadable.
    """

    def __init__(self, source: BufferedIOBase, name: str, *, max_content_bytes: int) -> None:
        """Read the beginning. Raise InvalidInput, which calls the source by its name, for what has a wrong form."""
        self.bytes_read = 0
        self._source = source
        longest = _BYTES_IN_JSON * max_content_bytes + OTHER_KEYS_BYTES
        try:
            head, rest, gzip = _decoded(self._chunks())
        except _DAMAGE as error:
            raise InvalidInput(f"{name} cannot be read: {_reason(error)}") from error
        _refuse(by_magic(head), name)
        lines = _split(chain([head], rest), longest)
        if gzip:
            lines = _until_damage(lines, gzip)
        self._lines = chain(_looked_at(lines, head, name), lines)

    def __iter__(self) -> Iterator[Line]:
        return self._lines

    def _chunks(self) -> Chunks:
        while chunk := self._source.read1(CHUNK_BYTES):
            self.bytes_read += len(chunk)
            yield chunk


def is_blank(line: bytes) -> bool:
    """Return whether a line has nothing in it."""
    return not unmarked(line).strip()


def json_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object that a line is. Raise InvalidInput for what is none."""
    try:
        found = json.loads(unmarked(line).decode())
    except UnicodeDecodeError:
        raise InvalidInput("the line is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidInput(f"the line is not JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets without end
        raise InvalidInput(f"the line is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidInput("the line is not a JSON object")
    return found


# From bytes to bytes in UTF-8.


_DAMAGE = (OSError, UnicodeError, DamagedGzip, TruncatedGzip, ForeignTail)

_DAMAGED = "the gzip data is damaged, which may have changed lines before this one"
_CUT_OFF = "the gzip data is cut off"
_FOREIGN = "what follows the gzip data is no gzip data; the lines before it are sound"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, UnicodeError):
        return f"it is not valid {getattr(error, 'encoding', 'text').upper()}"
    if isinstance(error, ForeignTail):
        return _FOREIGN
    return _CUT_OFF if isinstance(error, TruncatedGzip) else _DAMAGED


class _Decoded(NamedTuple):
    """A source in UTF-8: its beginning, long enough to tell what it is, what comes after it, and where from."""

    head: bytes
    rest: Chunks
    gzip: GzipStream | None


def _decoded(chunks: Chunks) -> _Decoded:
    gzip = None
    head, chunks = _peeked(chunks)
    if head.startswith(gzip_stream.MAGIC):
        gzip = GzipStream(chain([head], chunks))
        head, chunks = _peeked(iter(gzip))
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            head, chunks = _peeked(_recoded(chain([head[len(mark) :]], chunks), encoding))
            break
    return _Decoded(head, chunks, gzip)


def _peeked(chunks: Chunks) -> tuple[bytes, Chunks]:
    """Return the beginning and the rest: a line, or what a magic number may take. A pipe may give it bit by bit."""
    head = b""
    try:
        for chunk in chunks:
            head += chunk
            if len(head) >= BYTES_OF_MAGIC or (b"\n" in head and len(head) > len(_MARK)):
                break
    except _DAMAGE as error:
        if not head:
            raise
        return head, _raising(error)
    return head, chunks


def _raising(error: Exception) -> Chunks:
    raise error
    yield b""


def _recoded(chunks: Chunks, encoding: str) -> Chunks:
    # Half a surrogate pair is the fault of one line, which the UTF-8 of it shows.
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    try:
        for chunk in chunks:
            yield decoder.decode(chunk).encode(errors="surrogatepass")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        yield error.object[: error.start].decode(encoding, "surrogatepass").encode(errors="surrogatepass")
        raise


# From bytes to lines.


def _split(chunks: Chunks, longest: int) -> Iterator[Line]:
    """Yield the lines. A line whose end does not come is not kept."""
    begun = _BegunLine(longest)
    try:
        for chunk in chunks:
            for piece in BytesIO(chunk):  # in C, and by LF alone
                if begun.is_empty and piece.endswith(b"\n"):
                    yield piece
                elif line := begun.add(piece):
                    yield line
    except _DAMAGE as error:
        is_whole = isinstance(error, ForeignTail) or begun.is_object()
        if is_whole and (line := begun.end()):
            yield line
        yield Unreadable(f"the rest cannot be read: {_reason(error)}")
        return
    if line := begun.end():
        yield line


def _until_damage(lines: Iterator[Line], gzip: GzipStream) -> Iterator[Line]:
    """Yield the lines. If they come from damaged data, end at the first that is no object: nothing after it is sure."""
    for line in lines:
        is_sound = isinstance(line, Unreadable) or is_blank(line) or not _why_no_object(line)
        if not is_sound and gzip.is_damaged():
            yield Unreadable(f"the rest cannot be read: {_DAMAGED}")
            return
        yield line


class _BegunLine:
    """A line whose end has not come yet."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._text = bytearray()
        self._is_too_long = False

    @property
    def is_empty(self) -> bool:
        return not self._text and not self._is_too_long

    def add(self, piece: bytes) -> Line | None:
        """Add what comes next; return the line if that ends it, and once if it makes it too long."""
        is_end = piece.endswith(b"\n")
        if self._is_too_long:
            self._is_too_long = not is_end
            return None
        self._text += piece
        if len(self._text) > self._longest:
            self._text.clear()
            self._is_too_long = not is_end
            return Unreadable(f"the line has more than {self._longest} bytes: no event is so long")
        return self.end() if is_end else None

    def is_object(self) -> bool:
        """Return whether it is a whole JSON object, and only lacks its line break."""
        try:
            return bool(json_object(bytes(self._text)))
        except InvalidInput:
            return False

    def end(self) -> bytes:
        """Return what there is of it, and begin the next one."""
        text = bytes(self._text)
        self._text.clear()
        return text


# What lines say of the form.


class _Wrong(NamedTuple):
    """A line that is no JSON object, its number, and why."""

    line: bytes
    number: int
    why: str


def _looked_at(lines: Iterator[Line], head: bytes, name: str) -> list[Line]:
    """Return the lines up to the first JSON object. Raise InvalidInput for a form where that is none of the events."""
    seen: list[Line] = []
    wrong: list[_Wrong] = []
    blank_bytes = 0
    for line in lines:
        seen.append(line)
        if isinstance(line, Unreadable):
            _refuse(by_look(_joined(wrong) or head), name)
            return seen
        if is_blank(line):
            blank_bytes += len(line)
            if blank_bytes > _BLANK_BYTES_LOOKED_AT:
                break
            continue
        why = _why_no_object(line)
        if not why:
            return seen + _after_the_first(lines, _joined(wrong), line, name)
        wrong.append(_Wrong(line, len(seen), why))
        if len(wrong) == _LINES_LOOKED_AT or sum(len(each.line) for each in wrong) > _BYTES_LOOKED_AT:
            break
    if wrong:
        _refuse(by_look(_joined(wrong)), name)
        raise InvalidInput(
            f"{name} is not JSON Lines: none of its first {len(wrong)} lines is a JSON object "
            f"(line {wrong[0].number}: {wrong[0].why})"
        )
    if blank_bytes > _BLANK_BYTES_LOOKED_AT:
        raise InvalidInput(f"{name} is not JSON Lines: its first {len(seen)} lines are blank")
    return seen


def _after_the_first(lines: Iterator[Line], wrong: bytes, line: bytes, name: str) -> list[Line]:
    """Return what had to be looked at after the first JSON object. Raise InvalidInput if that is the last of an array.

    Such an object has no comma behind it, and may have a line of its own.
    """
    if not may_be_array(wrong):
        return []
    following = list(islice(lines, 1))
    _refuse(array(b"".join([wrong, line, *(each for each in following if isinstance(each, bytes))])), name)
    return following


def _refuse(form: Form | None, name: str) -> None:
    if form:
        raise InvalidInput(f"{name} is {form.name}: {form.advice}")


def _why_no_object(line: bytes) -> str:
    try:
        json_object(line)
    except InvalidInput as error:
        return str(error)
    return ""


def _joined(wrong: Sequence[_Wrong]) -> bytes:
    return b"".join(each.line for each in wrong)
