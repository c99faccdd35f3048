"""Names messages by client_msgids that are unique in a file."""

from array import array
from itertools import chain, count

from imcore.model.values import Message

_SMALLEST = 1024


class ClientMsgids:
    """The client_msgids of a file about one group.

    A message without one is named by its msgid. So is a message whose client_msgid an earlier message has: two senders
    may use the same, and so may one sender after a day.
    """

    def __init__(self) -> None:
        self._given = NameSet()
        self.renamed = 0
        """The number of messages whose own client_msgid an earlier message has."""

    def of(self, message: Message) -> str:
        """Return the client_msgid of the next message."""
        if message.client_msgid and self._given.add(message.client_msgid):
            return message.client_msgid
        self.renamed += bool(message.client_msgid)
        names = chain([message.msgid], (f"{message.msgid}~{number}" for number in count(2)))
        return next(name for name in names if self._given.add(name))


class NameSet:
    """A set of names in 16 bytes for each or less: it keeps hashes of 64 bits, at most half of its places taken.

    Among a million names one is taken for another with a chance of 1 to 30 million.
    """

    def __init__(self) -> None:
        self._places = array("q", bytes(8 * _SMALLEST))
        self._count = 0

    def add(self, name: str) -> bool:
        """Add a name; return False if it is there already."""
        if not self._put(hash(name) or 1):  # 0 is an empty place
            return False
        self._count += 1
        if 2 * self._count > len(self._places):
            taken, self._places = self._places, array("q", bytes(16 * len(self._places)))
            for each in filter(None, taken):
                self._put(each)
        return True

    def _put(self, number: int) -> bool:
        places, last = self._places, len(self._places) - 1
        at = number & last
        while places[at]:
            if places[at] == number:
                return False
            at = (at + 1) & last
        places[at] = number
        return True
