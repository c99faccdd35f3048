"""The second act of the demo: live sessions that are processes, what they are told, and what they keep."""

import time
from collections.abc import Callable
from pathlib import Path

from imcore.chat import Chat
from imcore.cli.demo import story
from imcore.cli.demo.claims import Claims
from imcore.cli.demo.sessions import Sessions
from imcore.device.local_database import LocalDatabase, path_of
from imcore.gateway.fanout import NewMessage
from imcore.gateway.gateway import Gateway
from imcore.model.direct import gid_of
from imcore.model.values import Message, MessageTally

GID = "live"
SENDER, KILLED, FRIEND, ABSENT = "ann", "bob", "cy", "dora"
PROCESSES = (SENDER, KILLED, FRIEND)
HOST = story.ONLINE[0]
MEMBERS = (*PROCESSES, ABSENT, *story.ONLINE)
MESSAGES = 41
KILLED_AFTER = 15
BACK_AFTER = 30

_PATIENCE_S = 10
_QUESTION, _ANSWER = "Are you coming?", "On my way"


def begin(chat: Chat, sessions: Sessions) -> None:
    """Make the group, and start the sessions."""
    chat.create_group(GID, MEMBERS)
    for uid in PROCESSES:
        sessions.start(uid)


def tell(claims: Claims, chat: Chat, sessions: Sessions) -> None:
    """Let it happen, and claim what came of it."""
    claims.chapter(
        f"Live: {', '.join(PROCESSES)}, each with a process (`im listen`), beside a gateway of {len(story.ONLINE)}",
        f"{HOST} says hello, {SENDER} and {ABSENT} write {MESSAGES - 1} messages; {ABSENT} is never online",
        f"{KILLED}'s process is killed (SIGKILL) after message {KILLED_AFTER}, and started again after {BACK_AFTER}",
    )
    with chat.gateway(ack_every=story.ACK_EVERY, ack_interval_s=0.2) as gateway:
        act = _Act(chat, gateway, sessions)
        unacked = act.converse()
        _claim_messages(claims, act, unacked)
        _claim_receipts(claims, act)
        _claim_one_to_one(claims, act)
        _claim_absent(claims, act)
    codes = sessions.stop()
    claims.hold(not any(codes.values()), f"the sessions ended in order: {codes}")


class _Act:
    """Everybody who takes part, and what was said."""

    def __init__(self, chat: Chat, gateway: Gateway, sessions: Sessions) -> None:
        self.chat = chat
        self.sessions = sessions
        self.messages: list[Message] = []
        self.arrived: dict[str, list[str]] = {uid: [] for uid in story.ONLINE}
        self._gateway = gateway
        story.settle(gateway, [gateway.open(uid) for uid in story.ONLINE], GID)

    @property
    def msgids(self) -> list[str]:
        """What everybody must have."""
        return [message.msgid for message in self.messages]

    def converse(self) -> int:
        """Let all be said; return how many messages the killed one had, but had not acked."""
        unacked = 0
        self._say("hello", HOST)
        # What they write before their sessions have begun counts as read, and need not come to them.
        self.wait(lambda: all(self.printed(uid)[0] for uid in PROCESSES))
        for seq in range(2, MESSAGES + 1):
            self._say(f"message {seq}", ABSENT if seq % 2 else SENDER)
            if seq == KILLED_AFTER:
                self.wait(lambda: self.printed(KILLED) == [self.msgids])
                self.sessions.kill(KILLED)
                unacked = len(self.chat.pull(KILLED, GID))
            if seq == BACK_AFTER:
                self.sessions.start(KILLED)
        return unacked

    def _say(self, content: str, sender_uid: str) -> None:
        self.messages.append(self.chat.send(GID, content, sender_uid=sender_uid))
        self._go_on(0)

    def printed(self, uid: str) -> list[list[str]]:
        """Return the messages that each of a user's sessions, one after the other, has printed."""
        return [[message["msgid"] for message in messages] for messages in self.sessions.messages(uid, GID)]

    def kept(self, uid: str) -> dict[str | None, str | None]:
        """Return the messages in a user's local database, in its order, and the state of own ones: `im log`."""
        with LocalDatabase(self.local_path(uid), uid, read_only=True) as local:
            return {line.msgid: line.state for line in local.log(GID)}

    def local_path(self, uid: str) -> Path:
        """Return where a user's local database is."""
        return path_of(self.chat.system.settings.data_dir, uid)

    def tallies(self, sender_uid: str) -> dict[str, tuple[int, int]]:
        """Return the live tallies of a user's messages: `im status`."""
        own = [each for each in self.chat.status(GID, limit=0) if each.message.sender_uid == sender_uid]
        return {each.message.msgid: (each.read, each.unread) for each in own}

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Let the sessions go on until the condition holds; return whether it did within a few seconds."""
        give_up = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > give_up:
                return False
            self._go_on(0.01)
        return True

    def _go_on(self, timeout_s: float) -> None:
        self.sessions.hear(timeout_s)
        for event in self._gateway.poll(timeout_s):
            if isinstance(event, NewMessage) and event.message.gid == GID:
                for session in event.sessions:
                    self.arrived[session.uid].append(event.message.msgid)


def _claim_messages(claims: Claims, act: _Act, unacked: int) -> None:
    msgids = act.msgids
    came = act.wait(lambda: all(act.printed(uid)[-1][-1:] == msgids[-1:] for uid in PROCESSES))
    came = came and act.wait(lambda: all(len(arrived) >= MESSAGES for arrived in act.arrived.values()))
    first, second = act.printed(KILLED)
    others = [*act.arrived.values(), *(act.printed(uid)[0] for uid in PROCESSES if uid != KILLED)]
    claims.hold(
        came and all(arrived == msgids for arrived in others),
        f"each of {len(others)} sessions was handed every message, once and in order",
    )
    again = msgids[KILLED_AFTER - unacked :]
    claims.hold(
        first == msgids[:KILLED_AFTER] and second[-len(again) :] == again,
        f"{KILLED}, killed with {unacked} messages not acked, was shown these again, and then what came meanwhile",
    )
    claims.hold(list(act.kept(KILLED)) == msgids, f"{KILLED} has all {MESSAGES} in the local database, each once")


def _claim_receipts(claims: Claims, act: _Act) -> None:
    acked = act.wait(lambda: all(map(_tally_holds, act.chat.status(GID, limit=0))))
    tallies = act.tallies(SENDER)
    read = sum(read for read, _ in tallies.values())
    claims.hold(acked, f"all but {ABSENT} have read all: the tallies of all {MESSAGES} messages say so")
    told = act.wait(lambda: dict(act.sessions.receipts(SENDER, GID)) == tallies)
    lines = act.sessions.receipts(SENDER, GID)
    claims.hold(
        told,
        f"{SENDER}'s session was told who has read, without asking: in the end the tallies of `im status`",
        f"{read} receipts made {len(lines)} lines in its digests; the last: read {lines[-1][1][0] if lines else 0}",
    )
    claims.hold(_log_holds(act, SENDER), f"{SENDER}'s local database (`im log`) says the same")


def _claim_one_to_one(claims: Claims, act: _Act) -> None:
    gid = gid_of(SENDER, FRIEND)
    question = act.chat.send_direct(FRIEND, _QUESTION, sender_uid=SENDER)
    asked = act.wait(lambda: _heard(act, FRIEND, gid) == [(_QUESTION, SENDER)])
    act.chat.send_direct(SENDER, _ANSWER, sender_uid=FRIEND)
    answered = act.wait(lambda: _heard(act, SENDER, gid) == [(_QUESTION, FRIEND), (_ANSWER, FRIEND)])
    told = act.wait(lambda: dict(act.sessions.receipts(SENDER, gid)) == {question.msgid: (1, 0)})
    claims.hold(
        asked and answered and told,
        f"one-to-one: {FRIEND} hears from {SENDER}, answers, and {SENDER} is told that {FRIEND} has read it",
    )


def _heard(act: _Act, uid: str, gid: str) -> list[tuple[str, str]]:
    return [(message["content"], message["peer"]) for message in act.sessions.messages(uid, gid)[-1]]


def _claim_absent(claims: Claims, act: _Act) -> None:
    tallies = act.tallies(ABSENT)
    act.wait(lambda: {r.msgid: (r.read, r.unread) for r in act.chat.receipts(ABSENT)} == tallies)
    fresh = not act.local_path(ABSENT).exists()
    act.sessions.run("pull", ABSENT)
    claims.hold(
        fresh and list(act.kept(ABSENT)) == act.msgids and _log_holds(act, ABSENT),
        f"{ABSENT}, offline all along, has after one `im pull` all messages and the tallies of her own {len(tallies)}",
    )


def _tally_holds(tally: MessageTally) -> bool:
    """Whether all but the absent one have read a message, the sender aside."""
    unread = {ABSENT} - {tally.message.sender_uid}
    return (tally.read, tally.unread) == (len(MEMBERS) - 1 - len(unread), len(unread))


def _log_holds(act: _Act, uid: str) -> bool:
    """Whether a local database comes to show a user's own messages, and no others, as `im status` has them now."""
    tallies = act.tallies(uid)
    states = {
        msgid: "read by all" if not unread else f"read {read}/{read + unread}"
        for msgid, (read, unread) in tallies.items()
    }
    return act.wait(lambda: {msgid: state for msgid, state in act.kept(uid).items() if state} == states)
