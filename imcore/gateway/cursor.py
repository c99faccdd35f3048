"""The position of sessions in a group, and where it goes next. No I/O."""

from dataclasses import dataclass
from itertools import dropwhile
from typing import NamedTuple

from imcore import msgid as msgids
from imcore.model.values import Message
from imcore.operations.queries import MessagePage
from imcore.streams.calls.message_calls import HandedMessage, PullResult


class ResumePoint(NamedTuple):
    """A session resumes a group after this message (packed msgid). The seq is None if it is unknown.

    If the server does not have the message that was `handed`, it has lost messages that the session was handed.
    """

    msgid: int
    seq: int | None = None
    handed: HandedMessage | None = None


@dataclass(eq=False, slots=True)
class Cursor:
    """The position of sessions in one group.

    `msgid` (packed) and `seq` are those of the newest message handed over. Without a msgid the cursor begins at the
    user's ack offset, and the first pull finds the seq. While it is `behind`, it gets messages from pulls and ignores
    pushes: the next pull returns these messages too. That pull leaves out all but the newest `most`.

    `process` names the server's process that gave all this; "" if nothing was handed over that it could have lost. What
    another process pushes is not taken: a primary that was stopped may wake up and push what is thrown away.
    """

    gid: str
    msgid: int | None = None
    seq: int | None = None
    most: int | None = None
    behind: bool = True
    process: str = ""
    proof: int | None = None
    """The packed msgid that `handed` has; None: `msgid`."""
    is_pushed: bool = False
    """Whether the newest message was pushed: then `process` has stored it, too."""

    @property
    def handed(self) -> HandedMessage | None:
        msgid = self.proof or self.msgid
        return HandedMessage(msgid, self.process, self.is_pushed) if msgid and self.process else None

    @property
    def resume_point(self) -> ResumePoint | None:
        """The point at which its sessions would resume; None for the user's ack offset."""
        return None if self.msgid is None else ResumePoint(self.msgid, self.seq, self.handed)

    @property
    def point(self) -> tuple[object, ...]:
        """Cursors that are behind at the same point get the same messages from a pull."""
        return self.msgid, self.seq, self.most, self.process, self.proof

    def pushed(self, msgid: int, seq: int, process: str) -> bool:
        """Take a pushed message; return whether it is the next one.

        After a gap in the seqs, or from another process of the server, the cursor is behind.
        """
        if self.behind or self.seq is None:
            return False
        if seq == self.seq + 1 and process == self.process:
            self.msgid, self.seq, self.proof, self.is_pushed = msgid, seq, None, True
            return True
        self.behind = process != self.process or not self._has(msgid)
        return False

    def pulled(self, pulled: PullResult, page: MessagePage) -> list[Message]:
        """Handle a page of a pull; return its new messages. After the last page the cursor is not behind any more.

        If messages that Redis had lost came back before this point, the cursor returns to the offset: `msgid` is None.
        """
        self.most, self.process, self.is_pushed = None, pulled.process, False
        if self._has_missed(pulled, page):
            self.msgid = self.seq = self.proof = None
            return []
        new = list(dropwhile(lambda message: self._has(msgids.position_of(message.msgid)), page.messages))
        if new:
            self.msgid, self.seq, self.proof = msgids.position_of(new[-1].msgid), new[-1].seq, None
        elif not page.more:
            self.seq, self.msgid = pulled.head_seq, max(pulled.start, self.msgid or 0)
        self.behind = page.more
        return new

    def _has_missed(self, pulled: PullResult, page: MessagePage) -> bool:
        """Return whether seqs have grown: then the group has more messages before this point than were handed over."""
        if self.seq is None or pulled.start != self.msgid:
            return False
        return (page.messages[0].seq - 1 if page.messages else pulled.head_seq) > self.seq

    def _has(self, msgid: int) -> bool:
        # A msgid is never given twice, but a server that lost its last second gives the same seqs again.
        return self.msgid is not None and msgid <= self.msgid
