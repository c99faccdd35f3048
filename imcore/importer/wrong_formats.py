"""What people take for a file of events and is none: told by its name, with what to do."""

import codecs
import json
import re
from typing import NamedTuple


class Form(NamedTuple):
    """A form that an import does not read: what it is, and what to do."""

    name: str
    advice: str


_EXPORT = "export it as JSON Lines, one object a line: `im import --help` shows them"

_MAGIC = {
    b"PK\x03\x04": Form("a zip archive", "`unzip -p FILE | im import -`"),
    b"PK\x05\x06": Form("an empty zip archive", _EXPORT),
    b"\x1f\x8b": Form("compressed twice by gzip", "`zcat FILE | zcat | im import -`"),
    b"\x1f\x9d": Form("compressed by compress", "`zcat FILE | im import -`"),
    b"\x28\xb5\x2f\xfd": Form("compressed by zstd", "`zstdcat FILE | im import -`"),
    b"\xfd7zXZ\x00": Form("compressed by xz", "`xzcat FILE | im import -`"),
    b"\x04\x22\x4d\x18": Form("compressed by lz4", "`lz4cat FILE | im import -`"),
    b"7z\xbc\xaf\x27\x1c": Form("a 7z archive", "`7z x -so FILE | im import -`"),
    b"Rar!\x1a\x07": Form("a RAR archive", "unpack it first"),
    b"SQLite format 3\x00": Form("a SQLite database", _EXPORT),
    b"%PDF-": Form("a PDF document", _EXPORT),
}
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
_MARKUP = re.compile(rb"\s*<(?:!doctype|html|\?xml)", re.IGNORECASE)
_TAR_AT = 257

BYTES_OF_MAGIC = _TAR_AT + 5
"""How many bytes at the beginning say by their magic number what something is."""

# JSON begins with an ASCII character: the bytes beside it are zeros (RFC 4627, section 3).
_UNMARKED = (
    (re.compile(rb"[^\x00]\x00\x00\x00", re.DOTALL), "UTF-32LE"),
    (re.compile(rb"\x00\x00\x00[^\x00]", re.DOTALL), "UTF-32BE"),
    (re.compile(rb"[^\x00]\x00[^\x00]", re.DOTALL), "UTF-16LE"),
    (re.compile(rb"\x00[^\x00]\x00", re.DOTALL), "UTF-16BE"),
)

_ARRAY = Form("a JSON array, not one object a line", "`jq -c '.[]' FILE | im import -`")
_SPREAD = Form("JSON with objects of several lines, not one object a line", "`jq -c . FILE | im import -`")
_CR_ONLY = Form("a text whose lines end with CR only", "`tr '\\r' '\\n' <FILE | im import -`")
_SEQUENCE = Form("a JSON text sequence (RFC 7464), not JSON Lines", "`tr -d '\\036' <FILE | im import -`")
_XML = Form("HTML or XML", _EXPORT)
_BINARY = Form("binary data, not JSON Lines", _EXPORT)
# Neither the white space of texts, nor what begins a colour, nor what begins a record of a JSON text sequence.
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c\x1d\x1f]")


def by_magic(head: bytes) -> Form | None:
    """Return what begins with these bytes, if a magic number says so: no file of events has one in its first line."""
    for magic, form in _MAGIC.items():
        if head.startswith(magic):
            return form
    if _BZIP2.match(head):
        return Form("compressed by bzip2", "`bzcat FILE | im import -`")
    if head[_TAR_AT:].startswith(b"ustar"):
        return Form("a tar archive", "`tar xOf FILE | im import -`")
    for pattern, encoding in _UNMARKED:
        if pattern.match(head):
            return Form(f"{encoding} without a byte order mark", f"`iconv -f {encoding} -t UTF-8 FILE | im import -`")
    return _XML if _MARKUP.match(head) else None


def by_look(beginning: bytes) -> Form | None:
    """Return what begins with these bytes, of which no line is a JSON object; None if nobody knows."""
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
    """Return whether lines that are no objects may begin a JSON array: a whole one in the first line is a line."""
    text = _bare(lines)
    return text.startswith(b"[") and not _is_json(text.partition(b"\n")[0])


def array(lines: bytes) -> Form | None:
    """Return that lines begin a JSON array, if they do: with `[`, a value, and what comes between or after values."""
    rest = _bare(lines)[1:].decode(errors="replace").lstrip()
    end = _end_of_value(rest)
    return _ARRAY if end and rest[end:].lstrip()[:1] in {",", "]"} else None


def unmarked(text: bytes) -> bytes:
    """Return a text without the byte order mark of UTF-8: programs that each write one make several."""
    while text.startswith(codecs.BOM_UTF8):
        text = text.removeprefix(codecs.BOM_UTF8)
    return text


def _bare(text: bytes) -> bytes:
    return unmarked(text).strip()


def _has_several_lines(text: bytes) -> bool:
    """Return whether a text begins with a JSON object of several lines; of a long one its first line says so."""
    said = text.decode(errors="replace")
    return "\n" in said[: _end_of_value(said)] or re.match(r"\{\s*\n", said) is not None


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _end_of_value(text: str) -> int:
    """Return where the JSON value ends that a text begins with; 0 if it begins with none."""
    try:
        return json.JSONDecoder().raw_decode(text)[1]
    except (ValueError, RecursionError):
        return 0
