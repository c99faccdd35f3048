"""Decodes the forms of Redis into values. No I/O.

Anybody may write into Redis. So messages for members are decoded leniently: a value that cannot be read is left out,
and one message never hides the others. Only rows for SQL are decoded strictly.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from imcore import msgid as msgids
from imcore.errors import InvalidInput
from imcore.model.meta import from_text
from imcore.model.rows import MessageRow
from imcore.model.values import Message, Receipt
from imcore.streams.keys import SEPARATOR
from imcore.util.batches import batches

Entry = list[Any]
"""A stream entry as functions answer it: its id, and fields and values in turn, as `im_send` writes them."""

_SEP = SEPARATOR.encode()
_SEQ, _UID, _SPAN, _CID, _SENT, _CAUGHT_UP, _TEXT = range(1, 15, 2)
_EXTRA = 14
_RECALLED = [b"recalled", b"1"]

SUBSCRIBED, UNSUBSCRIBED, PUSHED, PONG = b"ssubscribe", b"sunsubscribe", b"smessage", b"pong"


class PubSubEvent(NamedTuple):
    """A channel was SUBSCRIBED or UNSUBSCRIBED, data was PUSHED on it, or all connections answered a ping (PONG)."""

    kind: bytes
    channel: str = ""
    data: bytes = b""


def message(gid: str, entry: Entry) -> Message:
    msgid, values = entry
    extra = values[_EXTRA:]
    return Message(
        gid,
        text(msgid),
        number(values[_SEQ]) or 0,
        *_from_client(values[_UID], values[_TEXT], values[_CID], values[_SENT]),
        recalled=extra == _RECALLED,
        recalls=_recalls(extra) if extra else None,
        meta=_meta(extra[1]) if _has_meta(extra) else None,
    )


def _from_client(
    uid: bytes, content: bytes, client_msgid: bytes, sent_at: bytes
) -> tuple[str, str, str | None, datetime | None]:
    """Return the values of a message that its sender gave."""
    return text(uid), text(content), text(client_msgid) or None, _time(_sent_at_ms(sent_at))


def text(raw: bytes) -> str:
    """Decode UTF-8; invalid bytes become U+FFFD."""
    return raw.decode("utf-8", "replace")


def texts(raws: Iterable[bytes]) -> list[str]:
    return list(map(text, raws))


def streams(answer: Any) -> Any:
    """Return an answer of XREADGROUP as (stream, entries) pairs. By RESP3 the driver nests the entries once more."""
    if not isinstance(answer, dict):
        return answer or []
    return [(stream, [entry for part in parts for entry in part]) for stream, parts in answer.items()]


def number(raw: bytes) -> int | None:
    """Return a whole number from 0 to the highest packed msgid; None for anything else."""
    return _between(raw, 0, msgids.HIGHEST)


def _between(raw: bytes, lowest: int, highest: int) -> int | None:
    try:
        value = int(raw)
    except ValueError:
        return None
    return value if lowest <= value <= highest else None


def _recalls(extra: list[bytes]) -> str | None:
    recalls = number(extra[1]) if _is_tombstone(extra) else None
    return msgids.unpack(recalls) if recalls else None


def _is_tombstone(extra: list[bytes]) -> bool:
    return extra[:1] == [b"recalls"] and len(extra) > 1


def _has_meta(extra: list[bytes]) -> bool:
    return extra[:1] == [b"meta"] and len(extra) > 1


def _meta(raw: bytes) -> dict[str, Any] | None:
    """Return a message's meta; None for anything that is no JSON object."""
    try:
        return from_text(raw.decode()) if raw else None
    except (InvalidInput, UnicodeDecodeError):
        return None


def _sent_at_ms(raw: bytes) -> int | None:
    """Return a client's time in ms since 1970; None for anything outside the years 1 to 9999."""
    return _between(raw, msgids.EARLIEST_MS, msgids.LATEST_MS) if raw else None


def _time(ms: int | None) -> datetime | None:
    try:
        return None if ms is None else msgids.from_ms(ms)
    except ValueError:
        return None


def values_of(fields: list[bytes] | dict[bytes, bytes]) -> list[bytes]:
    """Return fields and values in turn; the driver may have made a dict of them."""
    return [each for pair in fields.items() for each in pair] if isinstance(fields, dict) else fields


def message_row(gid: str, msgid: int, values: list[bytes]) -> MessageRow:
    """Return the SQL row of an entry. Raise IndexError, ValueError if it is no message.

    An invalid time or meta of the sender is left out, as in `message`: SQL and members have the same.
    """
    row = MessageRow(
        gid,
        msgid,
        _whole(values[_SEQ]),
        values[_UID].decode(),
        _whole(values[_SPAN]) if values[_SPAN] else None,
        values[_TEXT].decode(),
        values[_CID].decode() or None,
        _sent_at_ms(values[_SENT]),
    )
    if len(values) <= _EXTRA:
        return row
    extra = values[_EXTRA:]
    return row._replace(
        recalls=_whole(extra[1]) if _is_tombstone(extra) else None,
        meta=extra[1].decode() if _has_meta(extra) and _meta(extra[1]) is not None else None,
    )


class Columns(NamedTuple):
    """What tells messages apart, of each of them."""

    seqs: list[bytes]
    senders: list[bytes]
    spans: list[bytes]


def columns_of(entries: Sequence[list[bytes]]) -> Columns:
    """Return the columns of entries. Raise IndexError, ValueError if `message_row` would for one of them."""
    for values in entries:
        if len(values) > _EXTRA or values[_SENT]:
            message_row("", 0, values)
    b"\n".join([values[_TEXT] for values in entries]).decode()
    b"\n".join([values[_CID] for values in entries]).decode()
    seqs, senders, spans = ([values[place] for values in entries] for place in (_SEQ, _UID, _SPAN))
    return Columns(seqs, senders, spans)


def _whole(raw: bytes) -> int:
    try:
        value = int(raw)
    except ValueError:
        value = -1
    if not 0 <= value <= msgids.HIGHEST:
        raise ValueError(f"{raw[:30]!r} is no number from 0 to {msgids.HIGHEST}")
    return value


def was_caught_up(values: list[bytes]) -> bool:
    """Return whether the sender was caught up, so that their offset moved to this message as it was stored."""
    return values[_CAUGHT_UP] == b"1"


def has_text(values: list[bytes]) -> bool:
    """Return whether an entry has a text or a meta."""
    return any(values[_TEXT : _TEXT + 1]) or _has_meta(values[_EXTRA:])


Push = tuple[bytes, list[bytes]]
"""Data of a channel: its kind (m: message, b: several messages, r: recall, d: digest, p: position, j: joined, l: left),
and its fields."""

_SPLITS = {b"m": 8, b"b": 3}
_BUNDLED = 7
"""The fields of each of several messages, before the texts of all."""


def push(data: bytes) -> Push:
    """Split the data of a channel. The content of messages comes last, since it alone may hold the separator."""
    kind, _, rest = data.partition(_SEP)
    return kind, rest.split(_SEP, _SPLITS.get(kind, -1))


class PushedMessage(NamedTuple):
    """A message, its packed msgid, and the name of the server's process that has pushed it."""

    msgid: int
    message: Message
    process: str


def pushed_messages(kind: bytes, fields: list[bytes]) -> list[PushedMessage]:
    """Return the messages of a push of one of MESSAGE_KINDS, in order. Raise ValueError for any other data."""
    return MESSAGE_KINDS[kind](fields)


def _pushed_one(fields: list[bytes]) -> list[PushedMessage]:
    gid, msgid, seq, process, uid, cid, sent, meta, content = fields
    message = Message(text(gid), text(msgid), int(seq), *_from_client(uid, content, cid, sent), meta=_meta(meta))
    return [PushedMessage(msgids.pack_id(msgid), message, text(process))]


def _pushed_bundle(fields: list[bytes]) -> list[PushedMessage]:
    raw_gid, raw_process, count, rest = fields
    *heads, bodies = rest.split(_SEP, _BUNDLED * int(count))
    gid, process, at = text(raw_gid), text(raw_process), 0
    pushed = []
    for msgid, seq, uid, cid, sent, meta_bytes, content_bytes in batches(heads, _BUNDLED):
        middle = at + int(meta_bytes)
        end = middle + int(content_bytes)
        meta, content = bodies[at:middle], bodies[middle:end]
        message = Message(gid, text(msgid), int(seq), *_from_client(uid, content, cid, sent), meta=_meta(meta))
        pushed.append(PushedMessage(msgids.pack_id(msgid), message, process))
        at = end
    if at != len(bodies) or len(pushed) != int(count):
        raise ValueError("not as many bytes as it says")
    return pushed


def _pushed_recall(fields: list[bytes]) -> list[PushedMessage]:
    gid, msgid, seq, process, uid, target = map(text, fields)
    tombstone = Message(gid, msgid, int(seq), uid, "", recalls=msgids.unpack(int(target)))
    return [PushedMessage(msgids.pack_id(fields[1]), tombstone, process)]


MESSAGE_KINDS = {b"m": _pushed_one, b"b": _pushed_bundle, b"r": _pushed_recall}


def pushed_receipts(fields: list[bytes]) -> list[Receipt]:
    """Return the receipts of a digest, a push of kind d. Raise ValueError for any other data."""
    first, version, *items = fields
    gid, receipts = text(first), []
    for item_version, item in enumerate(items, int(version)):
        msgid, read, unread, delivered = map(int, item.split())
        receipts.append(Receipt(gid, msgids.unpack(msgid), read, unread, delivered, item_version))
    return receipts


def pushed_position(fields: list[bytes]) -> tuple[str, int, bool]:
    """Return the gid and the offset (packed) of a push of kind p, and whether what lies beside the offset has changed.

    Raise ValueError for any other data.
    """
    gid, offset, is_bookmark = fields
    return text(gid), int(offset), is_bookmark == b"1"


def message_of_row(row: MessageRow) -> Message:
    gid, msgid, seq, uid, _, content, client_msgid, sent_at_ms, recalls, recalled, meta_text = row
    tombstone_of = None if recalls is None else msgids.unpack(recalls)
    sent_at, meta = _time(sent_at_ms), None if meta_text is None else _meta(meta_text.encode(errors="replace"))
    return Message(gid, msgids.unpack(msgid), seq, uid, content, client_msgid, sent_at, recalled, tombstone_of, meta)
