"""What a live session knows of its groups, and what follows. No I/O."""

from dataclasses import dataclass
from itertools import dropwhile
from typing import NamedTuple

from imcore import msgid as msgids
from imcore.model.values import Message
from imcore.operations.queries import MessagePage
from imcore.streams.calls.message_calls import PullResult


class ResumePoint(NamedTuple):
    """A position in a group: after which message (packed msgid), and its seq where that is known."""

    msgid: int
    seq: int | None = None


@dataclass(eq=False, slots=True)
class Cursor:
    """A place in one group, and how it goes forward.

    `msgid` (packed) and `seq` are those of the newest message handed over; without a msgid it is wherever the offset
    stands, and the seq is found by the first pull. While it is `behind`, messages come from pulls and pushes are left
    alone, for the next pull brings them too.
    """

    gid: str
    msgid: int | None = None
    seq: int | None = None
    behind: bool = True

    def pushed(self, msgid: int, seq: int) -> bool:
        """Take a pushed message; return whether it is the next one. A hole puts the feed behind."""
        if self.behind or self.seq is None:
            return False
        if seq == self.seq + 1:
            self.msgid, self.seq = msgid, seq
            return True
        self.behind = not self._has(msgid)
        return False

    def pulled(self, pulled: PullResult, page: MessagePage) -> list[Message]:
        """Take a page of a pull; return what is new in it. A page after which there is no more ends the being behind.

        Where messages have come between those that were handed over, since Redis had lost them, begin again at the
        offset: then `msgid` is None and nothing is new.
        """
        if self._has_missed(pulled, page):
            self.msgid = self.seq = None
            return []
        new = list(dropwhile(lambda message: self._has(msgids.position_of(message.msgid)), page.messages))
        if new:
            self.msgid, self.seq = msgids.position_of(new[-1].msgid), new[-1].seq
        elif not page.more:
            self.seq, self.msgid = pulled.head_seq, max(pulled.start, self.msgid or 0)
        self.behind = page.more
        return new

    def _has_missed(self, pulled: PullResult, page: MessagePage) -> bool:
        """Return whether seqs have grown: more messages lie before the place of this feed than it knows of."""
        if self.seq is None or pulled.start != self.msgid:
            return False
        return (page.messages[0].seq - 1 if page.messages else pulled.head_seq) > self.seq

    def _has(self, msgid: int) -> bool:
        # By msgid, which is never given twice: a server that lost its last second goes on with seqs that it had before.
        return self.msgid is not None and msgid <= self.msgid
