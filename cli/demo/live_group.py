"""The second act of the demo: live sessions that are processes, their events, and their local databases."""

from collections.abc import Mapping

from imcore.chat import Chat
from imcore.cli.demo.claims import Claims
from imcore.cli.demo.large_group import ACK_EVERY
from imcore.cli.demo.stage import ONLINE, ListenProcesses, Stage
from imcore.device.local_database import LocalDatabase, path_of
from imcore.model.direct import gid_of

GID = "live"
SENDER, KILLED, FRIEND, ABSENT, HOST = "ann", "bob", "cy", "dora", "eve"
PROCESSES = (SENDER, KILLED, FRIEND)
MEMBERS = (*PROCESSES, ABSENT, HOST, *ONLINE)
MESSAGES = 41
KILLED_AFTER = 15
BACK_AFTER = 30

_QUESTION, _ANSWER = "Are you coming?", "On my way"


def begin(chat: Chat, sessions: ListenProcesses) -> None:
    """Make the group, and start the sessions."""
    chat.create_group(GID, MEMBERS)
    for uid in PROCESSES:
        sessions.listen(uid)


def play(claims: Claims, chat: Chat, sessions: ListenProcesses) -> None:
    claims.chapter(
        f"Live: {', '.join(PROCESSES)}, each with a process (`im listen`), beside a gateway of {len(ONLINE)}",
        f"{HOST} says hello and leaves, {SENDER} and {ABSENT} write {MESSAGES - 1} messages; {ABSENT} is never online",
        f"{KILLED}'s process is killed (SIGKILL) after message {KILLED_AFTER}, and started again after {BACK_AFTER}",
    )
    with chat.gateway(ack_every=ACK_EVERY, ack_interval_s=0.2) as gateway:
        stage = Stage(chat, gateway, sessions, GID, MEMBERS)
        unacked = _converse(stage)
        stage.oracle.acked(uid for uid in MEMBERS if uid not in {ABSENT, HOST})
        _claim_messages(claims, stage, unacked)
        _claim_receipts(claims, stage)
        _claim_one_to_one(claims, stage)
        _claim_absent(claims, stage)
    codes = sessions.stop()
    claims.hold(not any(codes.values()), f"the sessions ended in order: {codes}")


def _converse(stage: Stage) -> int:
    """Send all messages; return how many the killed session had received, but not acked."""
    unacked = 0
    stage.send("hello", HOST)
    stage.leave(HOST)
    stage.wait(lambda: all([*stage.received.values(), *(_printed(stage, uid)[0] for uid in PROCESSES)]))
    for seq in range(2, MESSAGES + 1):
        stage.send(f"message {seq}", ABSENT if seq % 2 else SENDER)
        stage.poll(0)
        if seq == KILLED_AFTER:
            stage.wait(lambda: _printed(stage, KILLED) == [stage.oracle.msgids])
            stage.sessions.kill(KILLED)
            unacked = len(stage.chat.pull(KILLED, GID))
        if seq == BACK_AFTER:
            stage.sessions.listen(KILLED)
    return unacked


def _printed(stage: Stage, uid: str) -> list[list[str]]:
    """Return the msgids that a user has printed: a list for each session, in their order."""
    return [[message["msgid"] for message in messages] for messages in stage.sessions.messages(uid, GID)]


def _logged(stage: Stage, uid: str) -> Mapping[str | None, str | None]:
    """Return the state of each message in a user's local database, as `im log` has it; None for others' messages."""
    path = path_of(stage.chat.system.settings.data_dir, uid)
    if not path.exists():
        return {}
    with LocalDatabase(path, uid, read_only=True) as local:
        return {line.msgid: line.state for line in local.log(GID)}


def _tallies(stage: Stage, uid: str) -> dict[str, tuple[int, int]]:
    """Return the live tallies of a user's messages: `im status`."""
    tallies = stage.chat.status(GID, limit=0)
    return {t.message.msgid: (t.read, t.unread) for t in tallies if t.message.sender_uid == uid}


def _log_holds(stage: Stage, uid: str) -> bool:
    """Wait until a local database has the tallies of `im status` for all of a user's own messages, and no others."""
    states = {
        msgid: "read by all" if not unread else f"read {read}/{read + unread}"
        for msgid, (read, unread) in _tallies(stage, uid).items()
    }
    return stage.wait(lambda: {msgid: state for msgid, state in _logged(stage, uid).items() if state} == states)


def _claim_messages(claims: Claims, stage: Stage, unacked: int) -> None:
    msgids, received = stage.oracle.msgids, stage.received
    came = stage.wait(lambda: all(_printed(stage, uid)[-1][-1:] == msgids[-1:] for uid in PROCESSES))
    came = came and stage.wait(lambda: all(len(arrived) >= MESSAGES for arrived in received.values()))
    first, second = _printed(stage, KILLED)
    others = [*received.values(), *(_printed(stage, uid)[0] for uid in PROCESSES if uid != KILLED)]
    claims.hold(
        came and all(arrived == msgids for arrived in others),
        f"each of {len(others)} sessions was handed every message, once and in order",
    )
    again = msgids[KILLED_AFTER - unacked :]
    claims.hold(
        first == msgids[:KILLED_AFTER] and second[-len(again) :] == again,
        f"{KILLED}, killed with {unacked} messages not acked, was shown these again, and then what came meanwhile",
    )
    claims.hold(list(_logged(stage, KILLED)) == msgids, f"{KILLED} has all {MESSAGES} in the local database, each once")


def _claim_receipts(claims: Claims, stage: Stage) -> None:
    acked = stage.wait(lambda: stage.oracle.has_tallies(stage.chat.status(GID, limit=0)))
    tallies = _tallies(stage, SENDER)
    claims.hold(acked, f"all but {ABSENT} have read all: the tallies of all {MESSAGES} messages say so")
    has_receipts = stage.wait(lambda: dict(stage.sessions.receipts(SENDER, GID)) == tallies)
    lines = stage.sessions.receipts(SENDER, GID)
    claims.hold(
        has_receipts,
        f"{SENDER}'s session was told who has read, without asking: in the end the tallies of `im status`",
        f"{sum(read for read, _ in tallies.values())} receipts made {len(lines)} lines in its digests; "
        f"the last: read {lines[-1][1][0] if lines else 0}",
    )
    claims.hold(_log_holds(stage, SENDER), f"{SENDER}'s local database (`im log`) says the same")


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
    return [(message["content"], message["peer"]) for message in stage.sessions.messages(uid, gid)[-1]]


def _claim_absent(claims: Claims, stage: Stage) -> None:
    tallies = _tallies(stage, ABSENT)
    stage.wait(lambda: {r.msgid: (r.read, r.unread) for r in stage.chat.receipts(ABSENT)} == tallies)
    was_empty = not _logged(stage, ABSENT)
    stage.sessions.run("pull", ABSENT)
    claims.hold(
        was_empty and list(_logged(stage, ABSENT)) == stage.oracle.msgids and _log_holds(stage, ABSENT),
        f"{ABSENT}, offline all along, has after one `im pull` all messages and the tallies of her own {len(tallies)}",
    )
