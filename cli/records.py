"""The JSON objects that `im` prints, and the columns that a table shows of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from imcore.cli.output import Record
from imcore.errors import ImError
from imcore.model.direct import is_direct, peer_of
from imcore.model.values import Ack, Group, LogLine, Member, Message, MessageStatus, MessageTally, Receipt, Unread

if TYPE_CHECKING:
    from imcore.chat import Chat

MESSAGE_COLUMNS = ("msgid", "time", "gid", "sender_uid", "content")
TALLY_COLUMNS = ("msgid", "time", "sender_uid", "read", "unread", "content")
GROUP_COLUMNS = ("gid", "members", "messages", "last_msgid")
MEMBER_COLUMNS = ("uid", "last_ack_msgid", "unread", "online")
ACK_COLUMNS = ("gid", "uid", "last_ack_msgid", "advanced")
READER_COLUMNS = ("uid", "read", "read_at")
RECEIPT_COLUMNS = ("gid", "msgid", "read", "unread")
UNREAD_COLUMNS = ("gid", "unread")
LOG_COLUMNS = ("gid", "time", "sender_uid", "content", "state")

_KEYS: dict[type, tuple[str, ...]] = {
    Message: ("gid", "msgid", "seq", "sender_uid", "time", "content", "client_msgid"),
    LogLine: ("gid", "msgid", "time", "sender_uid", "content", "client_msgid", "state"),
    Group: GROUP_COLUMNS,
    Member: ("gid", *MEMBER_COLUMNS),
    Ack: ACK_COLUMNS,
    Receipt: RECEIPT_COLUMNS,
    Unread: UNREAD_COLUMNS,
}
_KEYS_IF_SET = ("recalled", "recalls")

Value = Message | LogLine | Group | Member | Ack | Receipt | Unread


def record_of(value: Value) -> Record:
    """Return the object of a value. `recalled` and `recalls` are there only where they apply."""
    record = {key: getattr(value, key) for key in _KEYS[type(value)]}
    return record | {key: flag for key in _KEYS_IF_SET if (flag := getattr(value, key, None))}


def tally_record(tally: MessageTally) -> Record:
    return {**record_of(tally.message), "read": tally.read, "unread": tally.unread}


def status_record(status: MessageStatus) -> Record:
    return {
        **record_of(status.message),
        "read": len(status.read_by),
        "unread": len(status.unread_by),
        "read_by": [{"uid": reader.uid, "read_at": reader.read_at} for reader in status.read_by],
        "unread_by": list(status.unread_by),
    }


def reader_records(status: MessageStatus) -> list[Record]:
    read: list[Record] = [{"uid": reader.uid, "read": True, "read_at": reader.read_at} for reader in status.read_by]
    return read + [{"uid": uid, "read": False, "read_at": None} for uid in status.unread_by]


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


def peers_at(chat: "Chat", uid: str) -> Callable[[Record], Record]:
    """Return `with_peers` for the peers that the server knows. While it is away a gid stays as it is."""

    def members(gid: str) -> Iterator[str]:
        try:
            yield from (member.uid for member in chat.members(gid))
        except ImError:
            return

    return with_peers(uid, members)


def records_for(chat: "Chat", uid: str, values: Iterable[Value]) -> Iterator[Record]:
    """Yield the objects of values that a user asked for, with the peers of the user's one-to-one chats."""
    return map(peers_at(chat, uid), map(record_of, values))
