"""Live sessions as real processes: everybody has everything once and in order, and every tally is right, whatever
is killed and whenever."""

import os
import random
import time

from imcore import Chat
from imcore.device.local_database import LocalDatabase, path_of
from imcore.errors import LocalDatabaseError
from imcore.msgid import pack
from tests.helpers.commands import END_S, Listening, events_in
from tests.helpers.deadline import wait_until
from tests.helpers.live_stack import Stack

UIDS = ["ann", "bob", "cyd"]
GIDS = ["team", "群主"]
ROUNDS = int(os.environ.get("IM_LIVE_ROUNDS", "8"))
"""How many times something is killed; for a long run set IM_LIVE_ROUNDS."""
SEED = int(os.environ.get("IM_LIVE_SEED", time.time_ns() % 1_000_000))


class Talk:
    """People who talk while their sessions, their connections, the worker and the server are killed."""

    def __init__(self, stack: Stack, chance: random.Random) -> None:
        self.stack, self.chance = stack, chance
        self.said = 0
        for gid in GIDS:
            stack.chat.create_group(gid, [*UIDS, "eve"])
        self.sessions = {uid: self.listen(uid) for uid in UIDS}
        self.worker = stack.work()
        wait_until(lambda: all(self.has_begun(uid) for uid in UIDS), timeout_s=END_S)

    def listen(self, uid: str) -> Listening:
        return self.stack.listen(uid, "--ack-every", "3", "--ack-interval", self.chance.choice(["0.1", "1"]))

    def has_begun(self, uid: str) -> bool:
        path = path_of(self.stack.folder, uid)
        try:
            with LocalDatabase(path, uid, read_only=True) as local:
                return local.begun
        except LocalDatabaseError:
            return False

    def go_on(self) -> None:
        """Send messages while something is killed."""
        heard = self.heard
        self.say()
        dangers = {self.kill_a_session: 4, self.kill_the_worker: 2, self.kill_connections: 3, self.kill_the_server: 1}
        [danger] = self.chance.choices(list(dangers), list(dangers.values()))
        danger()
        match self.chance.randrange(4):
            case 0:
                wait_until(lambda: self.heard != heard, timeout_s=END_S)
            case 1:
                self.settle()

    def settle(self) -> None:
        """Wait until everybody has everything, with the tallies of the server."""
        wait_until(lambda: all(self.stack.log(uid) == due(self.stack.chat, uid) for uid in UIDS), timeout_s=END_S)

    def has_read_all(self, uid: str) -> bool:
        return not any(each.unread for each in self.stack.chat.unread(uid))

    @property
    def heard(self) -> int:
        return sum(len(session.events) for session in self.sessions.values())

    def say(self) -> None:
        for _ in range(self.chance.randrange(1, 6)):
            gid, uid = self.chance.choice(GIDS), self.chance.choice(UIDS)
            self.stack.chat.send(gid, str(self.said), sender_uid=uid, client_msgid=str(self.said))
            self.said += 1

    def kill_a_session(self) -> None:
        uid = self.chance.choice(UIDS)
        self.sessions[uid].kill()
        self.say()
        self.sessions[uid] = self.listen(uid)

    def kill_the_worker(self) -> None:
        self.worker.kill()
        self.say()
        self.worker = self.stack.work()

    def kill_connections(self) -> None:
        self.stack.kill_connections(self.chance)
        self.say()

    def kill_the_server(self) -> None:
        self.stack.restart_server()
        self.say()


def test_whatever_is_killed_everybody_has_everything_once_and_every_tally_is_right(stack: Stack) -> None:
    # Given
    print("IM_LIVE_SEED", SEED)
    talk = Talk(stack, random.Random(SEED))
    # When
    for _ in range(ROUNDS):
        talk.go_on()
    # Then everybody has everything once, in order, and the tallies of the server once all is read
    wait_until(lambda: all(talk.has_read_all(uid) for uid in UIDS), timeout_s=END_S)
    talk.settle()
    assert sorted(int(text) for _, _, text, _ in stack.log("ann")) == list(range(talk.said))
    for session in talk.sessions.values():
        assert session.end() == 0
        assert "Traceback" not in session.errors

    # And so say the commands: all have read all, but for eve
    statuses = [line for gid in GIDS for line in stack.im.json("status", gid, "--limit", "0")]
    statuses.sort(key=lambda line: (pack(line["msgid"]), line["gid"]))
    assert {(line["read"], line["unread"]) for line in statuses} == {(2, 1)}
    for uid in UIDS:
        assert [(line["msgid"], line["state"]) for line in stack.im.json("log", uid)] == [
            (line["msgid"], "read 2/3" if line["sender_uid"] == uid else None) for line in statuses
        ]
        # And so was it shown: by each session once and in order, and nothing is missing
        shown = set()
        for path in (stack.folder / "sessions" / uid).glob("*.out"):
            printed = [(event["gid"], event["msgid"]) for event in events_in(path) if event["event"] == "message"]
            for gid in GIDS:
                msgids = [(len(msgid), msgid) for where, msgid in printed if where == gid]
                assert msgids == sorted(set(msgids))
            shown.update(printed)
        assert shown == {(line["gid"], line["msgid"]) for line in statuses}


def due(chat: Chat, uid: str) -> list[tuple[str, str | None, str, str | None]]:
    """The messages that a user must have in the end, by the server."""
    tallies = [(gid, each) for gid in GIDS for each in chat.status(gid, limit=0)]
    return [
        (
            gid,
            each.message.msgid,
            each.message.content,
            f"read {each.read}/{each.read + each.unread}" if each.message.sender_uid == uid else None,
        )
        for gid, each in sorted(tallies, key=lambda pair: (pack(pair[1].message.msgid), pair[0]))
    ]
