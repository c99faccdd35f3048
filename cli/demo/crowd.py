"""The first act of the demo: a group of 200, held against a brute-force account."""

from sqlalchemy import TextClause, text

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.cli.demo import story
from imcore.cli.demo.claims import Claims
from imcore.cli.demo.story import Played

_TABLES = ("group_msgs", "group_spans", "offset_moves")
_ACKS = text("SELECT SUM(json_array_length(uids)) FROM offset_moves WHERE gid = :gid")
_STORED_TALLIES = text(
    """SELECT msgid, SUM(CASE WHEN if_ack THEN 1 ELSE 0 END), SUM(CASE WHEN if_ack THEN 0 ELSE 1 END)
    FROM msg_acks WHERE gid = :gid GROUP BY msgid"""
)


def introduce(claims: Claims) -> None:
    """Say who will do what."""
    claims.chapter(
        f"A group of {len(story.MEMBERS)}, {len(story.ONLINE)} of them online; {story.MESSAGES} messages",
        f"after message {story.TURNING_POINT} {story.LEAVER} leaves and {story.NEWCOMER!r} joins",
        f"{story.LATE_READER} comes by later, and reads {story.LATE_READ}",
    )


def claim_delivery(claims: Claims, played: Played) -> None:
    """Claim that all had arrived, with what the sessions have noted."""
    everything = [message.msgid for message in played.messages]
    expected = dict.fromkeys(story.ONLINE, everything) | {story.LEAVER: everything[: story.TURNING_POINT]}
    claims.hold(
        played.received == expected,
        "every online member had every message pushed to them, once and in order",
        f"{len(played.arrival_ms)} arrivals, the median {played.median_ms:.1f} ms after the call of send",
    )


def claim_tallies(claims: Claims, chat: Chat, played: Played) -> None:
    """Claim that tallies, names and unread counts are those of the account."""
    tallies = chat.status(story.GID, limit=0)
    complete = [tally.message.msgid for tally in tallies] == [message.msgid for message in played.messages]
    shown = (tallies[0], tallies[story.TURNING_POINT - 1], tallies[-1])
    claims.hold(
        complete and all(map(story.tally_holds, tallies)),
        f"the tallies of all {len(tallies)} messages are those of a brute-force account; three of them:",
        *(f"message {t.message.seq} by {t.message.sender_uid}: {t.read} read it, {t.unread} did not" for t in shown),
    )
    status = chat.message_status(story.GID, played.messages[-1].msgid)
    claims.hold(
        story.names_hold(status),
        f"the {len(status.unread_by)} who have not read the last message are known by name:",
        f"{', '.join(status.unread_by[:4])}, ... {status.unread_by[-1]}",
    )
    unread = {member.uid: member.unread for member in chat.members(story.GID)}
    claims.hold(
        all(count == story.unread_of(uid) for uid, count in unread.items()),
        f"the unread counts of all {len(unread)} members are right; three of them:",
        ", ".join(f"{uid} {unread[uid]}" for uid in (story.LATE_READER, story.NEWCOMER, story.MEMBERS[-1])),
    )


def claim_storage(claims: Claims, chat: Chat) -> None:
    """Claim what is stored where, and what is not."""
    stream = chat.system.client.space.group(story.GID).stream
    entries, offsets = chat.system.client.query("XLEN", stream), len(chat.system.client.query("XINFO GROUPS", stream))
    claims.hold(
        (entries, offsets) == (story.MESSAGES, len(story.MEMBERS)),
        f"Redis: one stream of {entries} entries, one a message,",
        f"with {offsets} consumer groups, one a member, whose position is last_ack_msgid",
    )
    with chat.system.database.connection() as connection:
        rows = {name: connection.scalar(_count_of(name), {"gid": story.GID}) for name in _TABLES}
        receipts = connection.scalar(_count_of("msg_acks"), {"gid": story.GID})
    claims.hold(
        (rows["group_msgs"], rows["group_spans"]) == (story.MESSAGES, len(story.account())),
        f"SQL: {', '.join(f'{count} rows in {name}' for name, count in rows.items())}",
    )
    claims.hold(
        receipts == story.MESSAGES * (len(story.MEMBERS) - 1),
        f"SQL: {receipts} receipts in msg_acks, which is a view and stores none of them",
    )
    with chat.system.database.connection() as connection:
        acks = connection.scalar(_ACKS, {"gid": story.GID}) or 0
    claims.hold(
        0 < acks < story.MESSAGES * len(story.ONLINE) / 2,
        f"SQL: {acks} acks, one for every {story.ACK_EVERY} messages of a member, in {rows['offset_moves']} rows",
    )


def claim_sql(claims: Claims, chat: Chat, played: Played) -> None:
    """Claim that SQL says the same as Redis, and when somebody has read."""
    with chat.system.database.connection() as connection:
        stored = {row[0]: (row[1], row[2]) for row in connection.execute(_STORED_TALLIES, {"gid": story.GID})}
    live = {msgids.pack(t.message.msgid): (t.read, t.unread) for t in chat.status(story.GID, limit=0)}
    claims.hold(stored == live, f"the tallies of msg_acks are the same for all {len(stored)} messages")
    status = chat.message_status(story.GID, played.messages[0].msgid)
    times = [reader.read_at for reader in status.read_by if reader.read_at]
    claims.hold(
        len(times) == len(status.read_by) > 0,
        f"it is known when each of {len(times)} read the first message, though nobody acked it by itself",
    )


def _count_of(table: str) -> TextClause:
    return text(f"SELECT COUNT(*) FROM {table} WHERE gid = :gid")  # noqa: S608 (the names are ours)
