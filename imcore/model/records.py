"""The JSON objects of the values: what `im --json` prints and what the network's clients get."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime

from imcore.model.direct import is_direct, peer_of
from imcore.model.values import (
    Ack,
    DeletedGroup,
    Delivery,
    Group,
    GroupPolicy,
    InboxEntry,
    InboxPage,
    LogLine,
    Member,
    Message,
    MessageStatus,
    MessageTally,
    Receipt,
    Tally,
    Unread,
    UnreadCounts,
    UserPolicy,
    Why,
)

Record = Mapping[str, object]
"""One JSON object; for the command line also a row of a table."""

_KEYS: dict[type, tuple[str, ...]] = {
    Message: ("gid", "msgid", "seq", "sender_uid", "time", "content", "client_msgid"),
    LogLine: ("gid", "msgid", "time", "sender_uid", "content", "client_msgid", "state"),
    Receipt: ("gid", "msgid", "read", "unread", "delivered"),
    Unread: ("gid", "unread"),
}
"""The keys of the types that have more fields than are shown."""
_KEYS_IF_SET = ("recalled", "recalls", "meta", "recipients")

_Answer = Ack | Delivery | Unread | Tally | GroupPolicy | UserPolicy | Why
Value = Message | LogLine | Group | DeletedGroup | Member | Receipt | _Answer


def record_of(value: Value) -> Record:
    """Return the object of a value. It has the keys of _KEYS_IF_SET only where they apply."""
    keys = _KEYS.get(type(value)) or [field.name for field in fields(value)]
    record = {key: getattr(value, key) for key in keys}
    extra = {key: getattr(value, key, None) for key in _KEYS_IF_SET}
    return record | {key: each for key, each in extra.items() if each is not None and each is not False}


def tally_record(tally: MessageTally) -> Record:
    counts = {"read": tally.read, "unread": tally.unread, "delivered": tally.delivered}
    return {**record_of(tally.message), **counts}


def inbox_record(entry: InboxEntry) -> Record:
    message = entry.message
    return {
        "gid": entry.gid,
        "unread": entry.unread,
        "marked": entry.marked,
        "first_unread_msgid": entry.first_unread_msgid,
        **{key: getattr(message, key, None) for key in ("msgid", "sender_uid", "time", "content")},
    }


def unread_record(uid: str, unread: Unread) -> Record:
    """Return what is unread for a user in one group, after a mark was set or removed."""
    return {"gid": unread.gid, "uid": uid, "unread": unread.unread}


def totals_record(inbox: InboxPage) -> Record:
    totals = {
        "groups": inbox.groups,
        "unread_groups": inbox.unread_groups,
        "unread": inbox.unread,
        "next": inbox.next,
    }
    return totals | {"silent": list(inbox.silent)} if inbox.silent else totals


def unread_records(counts: UnreadCounts) -> list[Record]:
    """Return what is unread in each group, and last, if there are any, which partitions are silent."""
    records = [record_of(each) for each in counts]
    return [*records, {"silent": list(counts.silent)}] if counts.silent else records


def status_record(status: MessageStatus) -> Record:
    """Return the object of a status; names that are withheld are null."""
    names = {
        "read_by": [{"uid": reader.uid, "read_at": reader.read_at} for reader in status.read_by],
        "unread_by": list(status.unread_by),
        "delivered_to": list(status.delivered_to),
    }
    return {
        **record_of(status.message),
        "read": status.read,
        "unread": status.unread,
        "delivered": status.delivered,
        **(names if status.has_names else dict.fromkeys(names)),
    }


def with_peers(uid: str, members_of: Callable[[str], Iterable[str]]) -> Callable[[Record], Record]:
    """Return a function that adds the other user, as `peer`, to an object about a one-to-one chat."""
    peers: dict[str, str | None] = {}

    def with_peer(record: Record) -> Record:
        gid = str(record["gid"])
        if is_direct(gid) and peers.get(gid) is None:  # an unknown peer may be known later
            peers[gid] = peer_of(gid, uid, members_of(gid))
        peer = peers.get(gid)
        return record if peer is None else {**record, "peer": peer}

    return with_peer


def iso(moment: datetime) -> str:
    """Return the time in ISO 8601, UTC, with milliseconds."""
    return iso_as_given(moment.astimezone(UTC), "milliseconds")


def iso_as_given(moment: datetime, timespec: str) -> str:
    """Return the time in ISO 8601, in the zone that it has."""
    text = moment.isoformat(timespec=timespec)
    return text.replace("+00:00", "Z") if moment.tzinfo is UTC else text
