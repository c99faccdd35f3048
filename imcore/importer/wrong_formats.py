"""Identifies wrong formats, for which people take JSON Lines, so that an import can name them and say what to do."""

import codecs
import json
import re
from typing import NamedTuple


class WrongFormat(NamedTuple):
    """A format that an import does not read, and what its user can do."""

    name: str
    advice: str


_EXPORT = "export it as JSON Lines, one object a line: `im import --help` shows them"

_XML = WrongFormat("HTML or XML", _EXPORT)


def _unmarked(encoding: str) -> WrongFormat:
    return WrongFormat(f"{encoding} without a byte order mark", f"`iconv -f {encoding} -t UTF-8 FILE | im import -`")


_BEGINNINGS = {
    rb"PK\x03\x04": WrongFormat("a zip archive", "`unzip -p FILE | im import -`"),
    rb"PK\x05\x06": WrongFormat("an empty zip archive", _EXPORT),
    rb"\x1f\x8b": WrongFormat("compressed twice by gzip", "`zcat FILE | zcat | im import -`"),
    rb"\x1f\x9d": WrongFormat("compressed by compress", "`zcat FILE | im import -`"),
    rb"\x28\xb5\x2f\xfd": WrongFormat("compressed by zstd", "`zstdcat FILE | im import -`"),
    rb"\xfd7zXZ\x00": WrongFormat("compressed by xz", "`xzcat FILE | im import -`"),
    rb"\x04\x22\x4d\x18": WrongFormat("compressed by lz4", "`lz4cat FILE | im import -`"),
    rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)": WrongFormat("compressed by bzip2", "`bzcat FILE | im import -`"),
    rb"7z\xbc\xaf\x27\x1c": WrongFormat("a 7z archive", "`7z x -so FILE | im import -`"),
    rb"Rar!\x1a\x07": WrongFormat("a RAR archive", "unpack it first"),
    rb".{257}ustar": WrongFormat("a tar archive", "`tar xOf FILE | im import -`"),
    rb"SQLite format 3\x00": WrongFormat("a SQLite database", _EXPORT),
    rb"%PDF-": WrongFormat("a PDF document", _EXPORT),
    # JSON begins with an ASCII character: the bytes beside it are zeros (RFC 4627, section 3).
    rb"[^\x00]\x00\x00\x00": _unmarked("UTF-32LE"),
    rb"\x00\x00\x00[^\x00]": _unmarked("UTF-32BE"),
    rb"[^\x00]\x00[^\x00]": _unmarked("UTF-16LE"),
    rb"\x00[^\x00]\x00": _unmarked("UTF-16BE"),
    rb"\s*<(?i:!doctype|html|\?xml)": _XML,
}
"""The wrong formats by how they begin, as regular expressions: most by a magic number."""

BYTES_OF_MAGIC = 257 + len("ustar")
"""The length of the beginning that may hold a magic number."""

_ARRAY = WrongFormat("a JSON array, not one object a line", "`jq -c '.[]' FILE | im import -`")
_SPREAD = WrongFormat("JSON with objects of several lines, not one object a line", "`jq -c . FILE | im import -`")
_CR_ONLY = WrongFormat("a text whose lines end with CR only", "`tr '\\r' '\\n' <FILE | im import -`")
_SEQUENCE = WrongFormat("a JSON text sequence (RFC 7464), not JSON Lines", "`tr -d '\\036' <FILE | im import -`")
_BINARY = WrongFormat("binary data, not JSON Lines", _EXPORT)
# All but white space, ESC, which begins a colour, and RS, which begins a record of a JSON text sequence.
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c\x1d\x1f]")


def by_magic(head: bytes) -> WrongFormat | None:
    """Return the wrong format of a file by its magic number. No JSON object begins with one."""
    return next((form for start, form in _BEGINNINGS.items() if re.match(start, head, re.DOTALL)), None)


def by_look(beginning: bytes) -> WrongFormat | None:
    """Return the wrong format of lines that are not JSON objects; None if it is unknown."""
    text = _bare(beginning)
    if b"\n" not in text and b"\r" in text:
        return _CR_ONLY
    if text.startswith(b"["):
        return _ARRAY
    if text.startswith(b"{") and _has_several_lines(text):
        return _SPREAD
    for first, form in ((b"\x1e", _SEQUENCE), (b"<", _XML)):
        if text.startswith(first):
            return form
    return _BINARY if _CONTROLS.search(text) else None


def may_be_array(lines: bytes) -> bool:
    """Return whether lines that are not objects may begin a JSON array that does not end in the first of them."""
    # What is not UTF-8 becomes an escape sequence that JSON does not have.
    first = _bare(lines).partition(b"\n")[0].decode(errors="backslashreplace").strip()
    return first.startswith("[") and _end_of_value(first) < len(first)


def array(lines: bytes) -> WrongFormat | None:
    """Return the wrong format of lines that begin a JSON array: with `[`, a value, and `,` or `]`."""
    rest = _bare(lines)[1:].decode(errors="replace").lstrip()
    end = _end_of_value(rest)
    return _ARRAY if end and rest[end:].lstrip()[:1] in {",", "]"} else None


def without_mark(text: bytes) -> bytes:
    """Return a text without byte order marks of UTF-8. Several programs that each write one make several."""
    while text.startswith(codecs.BOM_UTF8):
        text = text.removeprefix(codecs.BOM_UTF8)
    return text


def _bare(text: bytes) -> bytes:
    return without_mark(text).strip()


def _has_several_lines(text: bytes) -> bool:
    """Return whether a text begins with a JSON object of several lines, or with the first line of a long one."""
    decoded = text.decode(errors="replace")
    return "\n" in decoded[: _end_of_value(decoded)] or re.match(r"\{\s*\n", decoded) is not None


def _end_of_value(text: str) -> int:
    """Return where the JSON value ends with which a text begins; 0 if it does not begin with one."""
    try:
        return json.JSONDecoder().raw_decode(text)[1]
    except (ValueError, RecursionError):
        return 0
