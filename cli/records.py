"""The JSON objects that `im` prints, a function for each kind, and the columns that a table shows of it."""

from imcore.cli.output import Record
from imcore.model.values import Ack, Group, LogLine, Member, Message, MessageStatus, MessageTally, Receipt

MESSAGE_COLUMNS = ("msgid", "time", "gid", "sender_uid", "content")
TALLY_COLUMNS = ("msgid", "time", "sender_uid", "read", "unread", "content")
GROUP_COLUMNS = ("gid", "members", "messages", "last_msgid")
MEMBER_COLUMNS = ("uid", "last_ack_msgid", "unread", "online")
ACK_COLUMNS = ("gid", "uid", "last_ack_msgid", "advanced")
READER_COLUMNS = ("uid", "read", "read_at")
RECEIPT_COLUMNS = ("gid", "msgid", "read", "unread")
LOG_COLUMNS = ("gid", "time", "sender_uid", "content", "state")


def message_record(message: Message) -> Record:
    """Return the object of one message. `recalled` and `recalls` are there only where they apply."""
    return {
        "gid": message.gid,
        "msgid": message.msgid,
        "seq": message.seq,
        "sender_uid": message.sender_uid,
        "time": message.time,
        "content": message.content,
        "client_msgid": message.client_msgid,
        **({"recalled": True} if message.recalled else {}),
        **({"recalls": message.recalls} if message.recalls else {}),
    }


def tally_record(tally: MessageTally) -> Record:
    """Return the object of one message with how many have read it."""
    return {**message_record(tally.message), "read": tally.read, "unread": tally.unread}


def status_record(status: MessageStatus) -> Record:
    """Return the object of one message with who has read it and who has not."""
    return {
        **message_record(status.message),
        "read": len(status.read_by),
        "unread": len(status.unread_by),
        "read_by": [{"uid": reader.uid, "read_at": reader.read_at} for reader in status.read_by],
        "unread_by": list(status.unread_by),
    }


def group_record(group: Group) -> Record:
    """Return the object of one group."""
    return {
        "gid": group.gid,
        "members": group.members,
        "messages": group.messages,
        "last_msgid": group.last_msgid,
    }


def member_record(member: Member) -> Record:
    """Return the object of one member."""
    return {
        "gid": member.gid,
        "uid": member.uid,
        "last_ack_msgid": member.last_ack_msgid,
        "unread": member.unread,
        "online": member.online,
    }


def ack_record(ack: Ack) -> Record:
    """Return the object that answers an ack."""
    return {"gid": ack.gid, "uid": ack.uid, "last_ack_msgid": ack.last_ack_msgid, "advanced": ack.advanced}


def reader_records(status: MessageStatus) -> list[Record]:
    """Return a row for each recipient of one message."""
    read: list[Record] = [{"uid": reader.uid, "read": True, "read_at": reader.read_at} for reader in status.read_by]
    return read + [{"uid": uid, "read": False, "read_at": None} for uid in status.unread_by]


def receipt_record(receipt: Receipt) -> Record:
    """Return the object of one message's new tally."""
    return {"gid": receipt.gid, "msgid": receipt.msgid, "read": receipt.read, "unread": receipt.unread}


def event_record(event: Message | Receipt) -> Record:
    """Return the object of what a live session is told."""
    if isinstance(event, Message):
        return {"event": "message", **message_record(event)}
    return {"event": "receipt", **receipt_record(event)}


def log_record(line: LogLine) -> Record:
    """Return the object of one line of a local database."""
    return {
        "gid": line.gid,
        "msgid": line.msgid,
        "time": line.time,
        "sender_uid": line.sender_uid,
        "content": line.content,
        "client_msgid": line.client_msgid,
        "state": line.state,
        **({"recalled": True} if line.recalled else {}),
    }
