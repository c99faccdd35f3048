"""The story of the demo: a throw-away stack, a group that talks, and what is claimed of it."""

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain, cycle

from sqlalchemy import text

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.cli import output
from imcore.cli.commands.worker import NAMES
from imcore.cli.demo.stage import ABSENT, GID, MEMBERS, ONLINE, PROCESSES, ListenProcesses, Stage
from imcore.cli.sandbox import open_sandbox
from imcore.errors import ImError
from imcore.model.direct import gid_of
from imcore.model.values import Message, MessageTally
from imcore.process import StopSignals
from imcore.repair.check import check
from imcore.sql.moves import movers_of
from imcore.streams.consumers import worker_stats

MESSAGES = 100
SENDER, KILLED, FRIEND = PROCESSES
SENDERS = (MEMBERS[-1], *ONLINE[:2], SENDER, ABSENT)
LEAVER, NEWCOMER, LATE_READER = ONLINE[-1], "newcomer", MEMBERS[100]
KILLED_AFTER, BACK_AFTER, TURNING_POINT = 15, 30, 50
LATE_READ = 60
PUSHED_TO, PRIVATE = MEMBERS[101], MEMBERS[102]
ARRIVED, MARKED = 20, 3
ACK_EVERY = 10

_QUESTION, _ANSWER = "Are you coming?", "On my way"
_TABLES = ("group_msgs", "group_spans", "offset_moves", "msg_acks")
_MOVES = text("SELECT start, msgid, uids FROM offset_moves WHERE gid = :gid")
_STORED_TALLIES = text(
    """SELECT msgid, SUM(CASE WHEN if_ack THEN 1 ELSE 0 END), SUM(CASE WHEN if_ack THEN 0 ELSE 1 END),
        SUM(CASE WHEN if_delivered THEN 1 ELSE 0 END)
    FROM msg_acks WHERE gid = :gid GROUP BY msgid"""
)


class Claims:
    """Prints the story and its claims; counts claims, and those that did not hold.

    As JSON a claim is an object of `what`, `held` and `details` on stdout; all else goes to stderr.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.made = 0
        self.broken = 0
        self._as_json = as_json

    def hold(self, holds: bool, claim: str, *details: str) -> None:
        """Print a claim, and whether it holds."""
        self.made += 1
        self.broken += not holds
        if self._as_json:
            output.show([{"what": claim, "held": holds, "details": details}], (), as_json=True)
            output.flush()
        else:
            self.say(f"  {'ok    ' if holds else 'BROKEN'} {claim}", *map(_indented, details))

    def chapter(self, title: str, *lines: str) -> None:
        """Print what comes next."""
        self.say("", title, *map(_indented, lines))

    def say(self, *lines: str) -> None:
        """Print lines that are no claim."""
        if self._as_json:
            output.remark(*lines)
        else:
            output.say(*output.fitted(sys.stdout, *lines))
            output.flush()


def _indented(line: str) -> str:
    return f"         {line}"


def play(claims: Claims, log: list[str]) -> None:
    """Play the whole story. The complaints of the workers and the sessions go into the log.

    Raise ImError if a claim did not hold, or if the story did not reach its end.
    """
    with StopSignals(), open_sandbox("im-demo-") as sandbox, sandbox.chat() as chat:
        chat.system.database.upgrade()
        with sandbox.workers(*NAMES, on_line=lambda name, line: log.append(f"{name} | {line}")) as workers:
            claims.chapter(
                f"A throw-away stack in {sandbox.settings.data_dir}",
                f"server {chat.system.client.address}",
                f"database {chat.system.database.address}",
                f"workers {', '.join(NAMES)}, each a process",
            )
            with ListenProcesses(sandbox, log) as sessions:
                _play_live(claims, chat, sessions)
            workers.wait(lambda: _is_stored(chat), "the worker persist has stored everything")
            claims.chapter("The same from SQL, where the worker `persist` has stored it")
            _claim_storage(claims, chat)
            _claim_sql(claims, chat)
            claims.chapter("im check: Redis against SQL, every count anew")
            differences = list(check(chat.system))
            claims.hold(not differences, f"no difference {differences[:3] or ''}".rstrip())
            codes = workers.stop()
        claims.hold(not any(codes.values()), f"the workers ended in order: {codes}")
    if claims.broken:
        raise ImError(f"{claims.broken} of {claims.made} claims did not hold")


def readers(message: Message) -> tuple[set[str], set[str]]:
    """Return who must have read a message in the end, and who must not have: a brute-force account of the story."""
    has_turned = message.seq > TURNING_POINT
    recipients = {*MEMBERS, NEWCOMER} - {LEAVER if has_turned else NEWCOMER, message.sender_uid}
    read = recipients.intersection([*ONLINE, *PROCESSES, *[LATE_READER] * (message.seq <= LATE_READ)])
    return read, recipients - read


def tallies_hold(tallies: Sequence[MessageTally]) -> bool:
    """Whether these are the right tallies of all messages."""
    expected = [tuple(map(len, readers(tally.message))) for tally in tallies]
    return len(tallies) == MESSAGES and [(tally.read, tally.unread) for tally in tallies] == expected


def _play_live(claims: Claims, chat: Chat, sessions: ListenProcesses) -> None:
    """Play and claim all that needs sessions."""
    claims.chapter(
        f"A group of {len(MEMBERS)}, {len(ONLINE)} of them online on a gateway; {MESSAGES} messages",
        f"{', '.join(PROCESSES)} have a process each (`im listen`); {ABSENT}, who writes too, is never online",
        f"{KILLED}'s process is killed (SIGKILL) after message {KILLED_AFTER}, and started again after {BACK_AFTER}",
        f"after message {TURNING_POINT} {LEAVER} leaves and {NEWCOMER!r} joins",
        f"{LATE_READER} comes by later, and reads {LATE_READ}",
    )
    with chat.gateway(ack_every=ACK_EVERY) as gateway:
        stage = Stage(chat, gateway, sessions)
        unacked = _converse(stage)
        _claim_messages(claims, stage, unacked)
        claims.chapter("Who has read what, live from Redis, before any worker has to have run")
        _claim_tallies(claims, stage)
        claims.chapter("Receipts, as the worker `receipts` delivers them")
        _claim_receipts(claims, stage)
        _claim_one_to_one(claims, stage)
        _claim_absent(claims, stage)
        claims.chapter("Did it arrive, and what have I not read? Two who are offline")
        _claim_delivered(claims, chat, stage.msgids)
        _claim_bookmark(claims, chat, stage.msgids)
    codes = sessions.stop()
    claims.hold(not any(codes.values()), f"the sessions ended in order: {codes}")


def _converse(stage: Stage) -> int:
    """Send all messages; return how many the killed session had received, but not acked."""
    unacked = 0
    for seq, sender in zip(range(1, MESSAGES + 1), cycle(SENDERS), strict=False):
        stage.send(f"message {seq}", sender)
        if seq == 1:
            stage.wait(lambda: all(stage.printed(uid)[0] for uid in PROCESSES))
        elif seq == KILLED_AFTER:
            stage.wait(lambda: stage.printed(KILLED) == [stage.msgids])
            stage.sessions.kill(KILLED)
            unacked = len(stage.chat.pull(KILLED, GID))
        elif seq == BACK_AFTER:
            stage.sessions.listen(KILLED)
        elif seq == TURNING_POINT:
            stage.leave(LEAVER)
            stage.chat.add_members(GID, [NEWCOMER])
    stage.chat.ack(LATE_READER, GID, stage.chat.pull(LATE_READER, GID)[LATE_READ - 1].msgid)
    return unacked


def _claim_messages(claims: Claims, stage: Stage, unacked: int) -> None:
    """Claim that every session received every message."""
    msgids, received = stage.msgids, stage.received
    claims.hold(
        received == dict.fromkeys(ONLINE, msgids) | {LEAVER: msgids[:TURNING_POINT]},
        "every online member had every message pushed to them, once and in order",
    )
    stage.wait(lambda: all(stage.printed(uid)[-1][-1:] == msgids[-1:] for uid in PROCESSES))
    first, second = stage.printed(KILLED)
    claims.hold(
        all(stage.printed(uid) == [msgids] for uid in (SENDER, FRIEND)),
        f"{SENDER}'s and {FRIEND}'s processes have printed every message, once and in order",
    )
    again = msgids[KILLED_AFTER - unacked :]
    claims.hold(
        first == msgids[:KILLED_AFTER] and second[-len(again) :] == again,
        f"{KILLED}, killed with {unacked} messages not acked, was shown these again, and then what came meanwhile",
    )
    claims.hold(list(stage.logged(KILLED)) == msgids, f"{KILLED} has all {MESSAGES} in the local database, each once")


def _claim_tallies(claims: Claims, stage: Stage) -> None:
    """Claim that tallies, names and unread counts are right."""
    chat = stage.chat
    is_right = stage.wait(lambda: tallies_hold(chat.status(GID, limit=0)))
    tallies = chat.status(GID, limit=0)
    shown = (tallies[0], tallies[TURNING_POINT - 1], tallies[-1])
    claims.hold(
        is_right,
        f"the tallies of all {len(tallies)} messages are those of a brute-force account; three of them:",
        *(f"message {t.message.seq} by {t.message.sender_uid}: {t.read} read it, {t.unread} did not" for t in shown),
    )
    status = chat.message_status(GID, stage.msgids[-1])
    claims.hold(
        ({reader.uid for reader in status.read_by}, set(status.unread_by)) == readers(status.message),
        f"the {len(status.unread_by)} who have not read the last message are known by name:",
        f"{', '.join(status.unread_by[:4])}, ... {status.unread_by[-1]}",
    )
    unread = {member.uid: member.unread for member in chat.members(GID)}
    expected = Counter(chain.from_iterable(readers(tally.message)[1] for tally in tallies))
    claims.hold(
        all(count == expected[uid] for uid, count in unread.items()),
        f"the unread counts of all {len(unread)} members are right; three of them:",
        ", ".join(f"{uid} {unread[uid]}" for uid in (LATE_READER, NEWCOMER, MEMBERS[-2])),
    )


def _claim_receipts(claims: Claims, stage: Stage) -> None:
    tallies = stage.tallies(SENDER)
    has_receipts = stage.wait(lambda: dict(stage.sessions.receipts(SENDER, GID)) == tallies)
    lines = stage.sessions.receipts(SENDER, GID)
    claims.hold(
        has_receipts,
        f"{SENDER}'s session was told who has read, without asking: in the end the tallies of `im status`",
        f"{sum(read for read, _ in tallies.values())} receipts made {len(lines)} lines in its digests; "
        f"the last: read {lines[-1][1][0] if lines else 0}",
    )
    claims.hold(stage.log_holds(SENDER), f"{SENDER}'s local database (`im log`) says the same")


def _claim_one_to_one(claims: Claims, stage: Stage) -> None:
    gid = gid_of(SENDER, FRIEND)
    question = stage.chat.send_direct(FRIEND, _QUESTION, sender_uid=SENDER)
    asked = stage.wait(lambda: _printed_texts(stage, FRIEND, gid) == [(_QUESTION, SENDER)])
    stage.chat.send_direct(SENDER, _ANSWER, sender_uid=FRIEND)
    answered = stage.wait(lambda: _printed_texts(stage, SENDER, gid) == [(_QUESTION, FRIEND), (_ANSWER, FRIEND)])
    confirmed = stage.wait(lambda: dict(stage.sessions.receipts(SENDER, gid)) == {question.msgid: (1, 0)})
    claims.hold(
        asked and answered and confirmed,
        f"one-to-one: {FRIEND} hears from {SENDER}, answers, and {SENDER} is told that {FRIEND} has read it",
    )


def _printed_texts(stage: Stage, uid: str, gid: str) -> list[tuple[str, str]]:
    return [(message["content"], message["peer"]) for message in stage.sessions.printed("message", uid, gid)[-1]]


def _claim_absent(claims: Claims, stage: Stage) -> None:
    tallies = stage.tallies(ABSENT)
    stage.wait(lambda: {r.msgid: (r.read, r.unread) for r in stage.chat.receipts(ABSENT)} == tallies)
    was_empty = not stage.logged(ABSENT)
    stage.sessions.run("pull", ABSENT)
    claims.hold(
        was_empty and list(stage.logged(ABSENT)) == stage.msgids and stage.log_holds(ABSENT),
        f"{ABSENT}, offline all along, has after one `im pull` all messages and the tallies of her own {len(tallies)}",
    )


def _claim_delivered(claims: Claims, chat: Chat, sent: Sequence[str]) -> None:
    """Claim that what has arrived is counted apart from what is read."""
    for msgid in sent[:ARRIVED]:
        chat.delivered(PUSHED_TO, GID, msgid)
    past_a_hole = chat.delivered(PUSHED_TO, GID, sent[ARRIVED + 1])
    only_arrived = [tally.delivered - tally.read for tally in chat.status(GID, limit=0)]
    claims.hold(
        only_arrived == [1] * ARRIVED + [0] * (MESSAGES - ARRIVED) and not past_a_hole.advanced,
        f"{PUSHED_TO}'s phone got {ARRIVED} messages by push notifications: delivered to one more than have read them,",
        "but not the one after a message that did not come",
    )


def _claim_bookmark(claims: Claims, chat: Chat, sent: Sequence[str]) -> None:
    """Claim that a user's bookmark is the user's own."""
    before = chat.status(GID, limit=0)
    chat.ack(PRIVATE, GID, private=True)
    [read] = chat.unread(PRIVATE)
    marked = chat.mark_unread(PRIVATE, GID, sent[-MARKED])
    claims.hold(
        (read.unread, marked.unread) == (0, MARKED) and chat.status(GID, limit=0) == before,
        f"{PRIVATE} has read all in private and marked the last {MARKED} unread: no tally and no name tells of it",
    )


def _is_stored(chat: Chat) -> bool:
    return any(worker.worker == "persist" and not worker.backlog for worker in worker_stats(chat.system.client))


def _claim_storage(claims: Claims, chat: Chat) -> None:
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
        moves = connection.execute(_MOVES, {"gid": GID}).all()
    acks = len({(start, to, uid) for start, to, uids in moves for uid, _ in movers_of(uids)})
    receipts = rows.pop("msg_acks")
    claims.hold(
        (rows["group_msgs"], rows["group_spans"]) == (MESSAGES, len({*MEMBERS, NEWCOMER})),
        f"SQL: {', '.join(f'{count} rows in {name}' for name, count in rows.items())}",
    )
    claims.hold(
        receipts == MESSAGES * (len(MEMBERS) - 1),
        f"SQL: {receipts} receipts in msg_acks, which is a view and stores none of them",
    )
    claims.hold(
        0 < acks < MESSAGES * len(ONLINE) / 2,
        f"SQL: {acks} acks, one for about {ACK_EVERY} messages of a member, in {rows['offset_moves']} rows",
    )


def _claim_sql(claims: Claims, chat: Chat) -> None:
    """Claim that the tallies of SQL are those of Redis, and that SQL knows the time of each reading."""
    with chat.system.database.connection() as connection:
        stored = {row[0]: tuple(row[1:]) for row in connection.execute(_STORED_TALLIES, {"gid": GID})}
    tallies = chat.status(GID, limit=0)
    live = {msgids.pack(t.message.msgid): (t.read, t.unread, t.delivered) for t in tallies}
    claims.hold(stored == live, f"the tallies of msg_acks are the same for all {len(stored)} messages")
    status = chat.message_status(GID, tallies[TURNING_POINT].message.msgid)
    times = [reader.read_at for reader in status.read_by if reader.read_at]
    claims.hold(
        len(times) == len(status.read_by) > 0,
        f"it is known when each of {len(times)} read message {TURNING_POINT + 1}, though few acked it by itself",
    )
