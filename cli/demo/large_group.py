"""The first act of the demo: a group of 200. Some members are online, leave, join, or read later."""

from itertools import cycle
from statistics import median

from sqlalchemy import text

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.cli.demo.claims import Claims
from imcore.cli.demo.oracle import Oracle
from imcore.cli.demo.stage import MEMBERS, ONLINE, ListenProcesses, Stage
from imcore.errors import ImError

GID = "demo"
SENDERS = (MEMBERS[-1], *ONLINE[:2])
LEAVER, NEWCOMER, LATE_READER = ONLINE[-1], "newcomer", MEMBERS[100]
MESSAGES = 100
TURNING_POINT = 50
"""After this message the leaver leaves and the newcomer joins."""
LATE_READ = 60
ACK_EVERY = 10

_TABLES = ("group_msgs", "group_spans", "offset_moves", "msg_acks")
_ACKS = text("SELECT SUM(json_array_length(uids)) FROM offset_moves WHERE gid = :gid")
_STORED_TALLIES = text(
    """SELECT msgid, SUM(CASE WHEN if_ack THEN 1 ELSE 0 END), SUM(CASE WHEN if_ack THEN 0 ELSE 1 END)
    FROM msg_acks WHERE gid = :gid GROUP BY msgid"""
)


def play(claims: Claims, chat: Chat, sessions: ListenProcesses) -> Oracle:
    """Play the act, and claim that every online member received every message. Return the oracle's account."""
    claims.chapter(
        f"A group of {len(MEMBERS)}, {len(ONLINE)} of them online; {MESSAGES} messages",
        f"after message {TURNING_POINT} {LEAVER} leaves and {NEWCOMER!r} joins",
        f"{LATE_READER} comes by later, and reads {LATE_READ}",
    )
    with chat.gateway(ack_every=ACK_EVERY) as gateway:
        stage = Stage(chat, gateway, sessions, GID, MEMBERS)
        oracle = stage.oracle
        for seq, sender in zip(range(1, MESSAGES + 1), cycle(SENDERS), strict=False):
            stage.send_and_wait(f"message {seq}", sender, f"{sender}/{seq}")
            if seq == TURNING_POINT:
                stage.leave(LEAVER)
                chat.add_members(GID, [NEWCOMER])
                oracle.joined(NEWCOMER)
        online = len(chat.online(MEMBERS))
        if online != len(ONLINE) - 1:
            raise ImError(f"{online} members are online, not {len(ONLINE) - 1}")
    chat.ack(LATE_READER, GID, chat.pull(LATE_READER, GID)[LATE_READ - 1].msgid)
    oracle.acked(ONLINE)
    oracle.acked([LATE_READER], LATE_READ)
    claims.hold(
        stage.received == dict.fromkeys(ONLINE, oracle.msgids) | {LEAVER: oracle.msgids[:TURNING_POINT]},
        "every online member had every message pushed to them, once and in order",
        f"{len(stage.arrival_ms)} arrivals, the median {median(stage.arrival_ms):.1f} ms after the call of send",
    )
    return oracle


def claim_tallies(claims: Claims, chat: Chat, oracle: Oracle) -> None:
    """Claim that tallies, names and unread counts are those of the oracle."""
    tallies = chat.status(GID, limit=0)
    shown = (tallies[0], tallies[TURNING_POINT - 1], tallies[-1])
    claims.hold(
        oracle.has_tallies(tallies),
        f"the tallies of all {len(tallies)} messages are those of a brute-force account; three of them:",
        *(f"message {t.message.seq} by {t.message.sender_uid}: {t.read} read it, {t.unread} did not" for t in shown),
    )
    status = chat.message_status(GID, oracle.msgids[-1])
    claims.hold(
        oracle.has_names(status),
        f"the {len(status.unread_by)} who have not read the last message are known by name:",
        f"{', '.join(status.unread_by[:4])}, ... {status.unread_by[-1]}",
    )
    unread = {member.uid: member.unread for member in chat.members(GID)}
    claims.hold(
        all(count == oracle.unread_of(uid) for uid, count in unread.items()),
        f"the unread counts of all {len(unread)} members are right; three of them:",
        ", ".join(f"{uid} {unread[uid]}" for uid in (LATE_READER, NEWCOMER, MEMBERS[-2])),
    )


def claim_storage(claims: Claims, chat: Chat, oracle: Oracle) -> None:
    """Claim what Redis and SQL store."""
    client = chat.system.client
    stream = client.space.group(GID).stream
    entries, offsets = client.query("XLEN", stream), len(client.query("XINFO GROUPS", stream))
    claims.hold(
        (entries, offsets) == (MESSAGES, len(MEMBERS)),
        f"Redis: one stream of {entries} entries, one a message,",
        f"with {offsets} consumer groups, one a member, whose position is last_ack_msgid",
    )
    counts = {name: text(f"SELECT COUNT(*) FROM {name} WHERE gid = :gid") for name in _TABLES}  # noqa: S608 (our names)
    with chat.system.database.connection() as connection:
        rows = {name: connection.scalar(query, {"gid": GID}) for name, query in counts.items()}
        acks = connection.scalar(_ACKS, {"gid": GID}) or 0
    receipts = rows.pop("msg_acks")
    claims.hold(
        (rows["group_msgs"], rows["group_spans"]) == (MESSAGES, oracle.memberships),
        f"SQL: {', '.join(f'{count} rows in {name}' for name, count in rows.items())}",
    )
    claims.hold(
        receipts == MESSAGES * (len(MEMBERS) - 1),
        f"SQL: {receipts} receipts in msg_acks, which is a view and stores none of them",
    )
    claims.hold(
        0 < acks < MESSAGES * len(ONLINE) / 2,
        f"SQL: {acks} acks, one for every {ACK_EVERY} messages of a member, in {rows['offset_moves']} rows",
    )


def claim_sql(claims: Claims, chat: Chat, oracle: Oracle) -> None:
    """Claim that the tallies of SQL are those of Redis, and that SQL knows the time of each reading."""
    with chat.system.database.connection() as connection:
        stored = {row[0]: (row[1], row[2]) for row in connection.execute(_STORED_TALLIES, {"gid": GID})}
    live = {msgids.pack(t.message.msgid): (t.read, t.unread) for t in chat.status(GID, limit=0)}
    claims.hold(stored == live, f"the tallies of msg_acks are the same for all {len(stored)} messages")
    status = chat.message_status(GID, oracle.msgids[0])
    times = [reader.read_at for reader in status.read_by if reader.read_at]
    claims.hold(
        len(times) == len(status.read_by) > 0,
        f"it is known when each of {len(times)} read the first message, though nobody acked it by itself",
    )
