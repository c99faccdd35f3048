"""A brute-force account of one group: who was a member when, who read how far, and what must follow from it. No I/O."""

from collections.abc import Iterable
from dataclasses import dataclass

from imcore.model.values import Message, MessageStatus, MessageTally

_FOR_EVER = 10**9


@dataclass(slots=True)
class _Membership:
    """All three are seqs: the last message before they joined, the last before they left, the last that they read."""

    joined: int = 0
    left: int = _FOR_EVER
    acked: int = 0


class Oracle:
    """Notes what happens in a group, and knows what every answer must be."""

    def __init__(self, uids: Iterable[str]) -> None:
        self.messages: list[Message] = []
        self._members = {uid: _Membership() for uid in uids}

    @property
    def msgids(self) -> list[str]:
        return [message.msgid for message in self.messages]

    @property
    def memberships(self) -> int:
        return len(self._members)

    def sent(self, message: Message) -> None:
        self.messages.append(message)

    def joined(self, uid: str) -> None:
        self._members[uid] = _Membership(joined=len(self.messages))

    def left(self, uid: str) -> None:
        """A member leaves, who has read all so far."""
        self._members[uid].left = self._members[uid].acked = len(self.messages)

    def acked(self, uids: Iterable[str], seq: int | None = None) -> None:
        """Members have read up to a message, or all. Those who have left stay where they were."""
        for uid in uids:
            member = self._members[uid]
            member.acked = min(member.left, len(self.messages) if seq is None else seq)

    def readers(self, message: Message) -> tuple[set[str], set[str]]:
        """Return who must have read a message, and who must not have."""
        recipients = {
            uid: member
            for uid, member in self._members.items()
            if member.joined < message.seq <= member.left and uid != message.sender_uid
        }
        read = {uid for uid, member in recipients.items() if member.acked >= message.seq}
        return read, set(recipients) - read

    def has_tallies(self, tallies: Iterable[MessageTally]) -> bool:
        """Whether these are the right tallies of all messages, in their order."""
        expected = [(message.msgid, *map(len, self.readers(message))) for message in self.messages]
        return [(tally.message.msgid, tally.read, tally.unread) for tally in tallies] == expected

    def has_names(self, status: MessageStatus) -> bool:
        """Whether readers and the others are named rightly."""
        return ({reader.uid for reader in status.read_by}, set(status.unread_by)) == self.readers(status.message)

    def unread_of(self, uid: str) -> int:
        """Return how many messages a member must have left to read; own ones do not count."""
        member = self._members[uid]
        start = max(member.acked, member.joined)
        return sum(message.seq > start and message.sender_uid != uid for message in self.messages)
