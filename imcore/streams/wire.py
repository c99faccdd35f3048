"""The forms that leave and enter Redis, decoded into values. No I/O."""

from typing import Any

from imcore import msgid as msgids
from imcore.sql.rows import NO_TIME, MessageRow
from imcore.streams.keys import SEPARATOR
from imcore.values import Message, Receipt

Entry = list[Any]
"""A stream entry as a function answers it: its id, and its fields and values in turn, as `im_send` writes them."""

_SEP = SEPARATOR.encode()
_SEQ, _UID, _SPAN, _CID, _SENT, _UP, _TEXT = range(1, 15, 2)
_EXTRA = 14
_RECALLED = [b"recalled", b"1"]


def message(gid: str, entry: Entry) -> Message:
    """Return the message of a group's stream entry."""
    msgid, values = entry
    return Message(
        gid=gid,
        msgid=msgid.decode(),
        seq=int(values[_SEQ]),
        sender_uid=values[_UID].decode(),
        content=values[_TEXT].decode(),
        client_msgid=values[_CID].decode() or None,
        sent_at=msgids.from_ms(int(values[_SENT])) if values[_SENT] else None,
        recalled=values[_EXTRA:] == _RECALLED,
        recalls=None if (recalls := _recalls(values)) is None else msgids.unpack(recalls),
    )


def _recalls(values: list[bytes]) -> int | None:
    """Return the packed msgid that an entry recalls, if it is a tombstone."""
    return int(values[_EXTRA + 1]) if values[_EXTRA : _EXTRA + 1] == [b"recalls"] else None


def values_of(fields: list[bytes] | dict[bytes, bytes]) -> list[bytes]:
    """Return fields and values in turn, in whichever form the client answered a plain command."""
    return [text for pair in fields.items() for text in pair] if isinstance(fields, dict) else fields


def message_row(gid: str, msgid: int, values: list[bytes]) -> MessageRow:
    """Return what SQL keeps of the entry with this packed msgid. Raise IndexError, ValueError for what is none."""
    sent_at_ms = values[_SENT]
    return MessageRow(
        gid,
        msgid,
        int(values[_SEQ]),
        values[_UID].decode(),
        int(values[_SPAN]) if values[_SPAN] else None,
        values[_TEXT].decode(),
        values[_CID].decode() or None,
        int(sent_at_ms) if sent_at_ms else None,
        _recalls(values),
    )


def moved_with_sender(values: list[bytes]) -> bool:
    """Return whether the sender was caught up, so that their offset moved to this message as it was stored."""
    return values[_UP] == b"1"


Push = tuple[bytes, list[bytes]]
"""What a channel brings: its kind (m: message, r: recall, d: digest, j: joined, l: left), and the fields after it."""


def push(data: bytes) -> Push:
    """Split what a channel brought. A message's content comes last, since it alone may hold the separator."""
    kind, _, rest = data.partition(_SEP)
    return kind, rest.split(_SEP, 6 if kind == b"m" else -1)


def pushed_message(fields: list[bytes]) -> tuple[int, Message]:
    """Return the packed msgid and the message of a push of kind m."""
    gid, msgid, seq, uid, cid, sent, text = fields
    return msgids.pack_id(msgid), Message(
        gid=gid.decode(),
        msgid=msgid.decode(),
        seq=int(seq),
        sender_uid=uid.decode(),
        content=text.decode(),
        client_msgid=cid.decode() or None,
        sent_at=msgids.from_ms(int(sent)) if sent else None,
    )


def pushed_recall(fields: list[bytes]) -> tuple[int, Message]:
    """Return the packed msgid and the tombstone of a push of kind r."""
    gid, msgid, seq, uid, target = (field.decode() for field in fields)
    tombstone = Message(gid, msgid, int(seq), uid, "", recalls=msgids.unpack(int(target)))
    return msgids.pack_id(fields[1]), tombstone


def pushed_receipts(fields: list[bytes]) -> list[Receipt]:
    """Return the receipts of a digest, a push of kind d."""
    gid, version, *items = fields
    receipts = []
    for number, item in enumerate(items, int(version)):
        msgid, read, unread = map(int, item.split())
        receipts.append(Receipt(gid.decode(), msgids.unpack(msgid), read, unread, number))
    return receipts


def message_of_row(row: MessageRow) -> Message:
    """Return the message of a stored row."""
    return Message(
        gid=row.gid,
        msgid=msgids.unpack(row.msgid),
        seq=row.seq,
        sender_uid=row.sender_uid,
        content=row.content,
        client_msgid=row.client_msgid,
        sent_at=None if row.sent_at_ms in (None, NO_TIME) else msgids.from_ms(row.sent_at_ms),
        recalled=row.recalled,
        recalls=None if row.recalls is None else msgids.unpack(row.recalls),
    )
