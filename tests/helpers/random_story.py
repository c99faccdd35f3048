"""Random steps by everybody, whatever they find."""

import random
from contextlib import suppress

from imcore import Chat
from imcore.errors import ImError

GIDS = ("#ubuntu", "群主")
UIDS = ("ann", "bob", "cy", "dee", "[red]eve")


class Story:
    """Random steps by everybody, and what they were told."""

    def __init__(self, chat: Chat, seed: int) -> None:
        self.chat = chat
        self.random = random.Random(seed)
        self.said: dict[tuple[str, str], str] = {}
        """Content by gid and msgid."""
        self.pulled: set[tuple[str, str, str]] = set()
        """Who has pulled what: gid, uid, msgid."""
        self.number = 0

    def begin(self) -> None:
        for gid in GIDS:
            self.chat.create_group(gid, UIDS[:3])
        self.play(15)

    def play(self, steps: int) -> None:
        for _ in range(steps):
            often = [self.send, self.send, self.send, self.ack, self.ack, self.arrive]
            step = self.random.choice(
                [*often, *often, self.read_in_private, self.mark, self.unmark, self.join, self.leave]
            )
            with suppress(ImError):
                step(self.random.choice(GIDS), self.random.choice(UIDS))

    def send(self, gid: str, uid: str) -> None:
        self.number += 1
        content = f"{self.number} {self.random.random()}"
        message = self.chat.send(gid, content, sender_uid=uid, client_msgid=f"c{self.number}{content}")
        self.said[gid, message.msgid] = content

    def ack(self, gid: str, uid: str) -> None:
        pulled = self.chat.pull(uid, gid)
        self.pulled.update((gid, uid, message.msgid) for message in pulled)
        if pulled:
            self.chat.ack(uid, gid, self.random.choice(pulled).msgid)

    def read_in_private(self, gid: str, uid: str) -> None:
        pulled = self.chat.pull(uid, gid)
        self.pulled.update((gid, uid, message.msgid) for message in pulled)
        if pulled:
            self.chat.ack(uid, gid, self.random.choice(pulled).msgid, private=True)

    def arrive(self, gid: str, uid: str) -> None:
        for message in self.chat.pull(uid, gid, limit=self.random.randint(1, 4)):
            self.chat.delivered(uid, gid, message.msgid)

    def mark(self, gid: str, uid: str) -> None:
        for tally in self.chat.status(gid, limit=self.random.randint(1, 8))[:1]:
            self.chat.mark_unread(uid, gid, tally.message.msgid)

    def unmark(self, gid: str, uid: str) -> None:
        self.chat.unmark(uid, gid)

    def join(self, gid: str, uid: str) -> None:
        self.chat.add_members(gid, [uid])

    def leave(self, gid: str, uid: str) -> None:
        self.chat.remove_members(gid, [uid])
