"""Whom a user knows their one-to-one chats by: the other, instead of a gid that only programs can read."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from imcore.cli.names import DIRECT
from imcore.cli.output import Record
from imcore.errors import ImError
from imcore.model.direct import gid_of, is_direct, pair_of, peer_of

if TYPE_CHECKING:
    from imcore.chat import Chat


class Peers:
    """The one-to-one chats of one user."""

    def __init__(self, uid: str, known: Callable[[str], Iterable[str]]) -> None:
        """Take a function that returns who may be in the chat of a gid, for a gid that does not say it."""
        self._uid = uid
        self._known = known
        self._found: dict[str, str | None] = {}

    def named(self, record: Record) -> Record:
        """Return the object of something in a group; if that is one-to-one, with the other as `peer`."""
        peer = self._of(str(record["gid"]))
        return record if peer is None else {**record, "peer": peer}

    def _of(self, gid: str) -> str | None:
        if not is_direct(gid):
            return None
        if self._found.get(gid) is None:  # who is not known now may be later
            self._found[gid] = peer_of(gid, self._uid, self._known(gid))
        return self._found[gid]


def chat_called(gid: str, uid: str) -> str:
    """Return the gid of what a user may call as tables show it: `dm:bob` for the chat with bob. Raise InvalidInput."""
    peer = peer_called(gid)
    return gid if peer is None else gid_of(peer, uid)


def peer_called(gid: str) -> str | None:
    """Return with whom the chat is that a user calls `dm:bob`, as tables show it; None for what is a gid."""
    is_called = gid.startswith(DIRECT) and pair_of(gid) is None
    return gid.removeprefix(DIRECT) if is_called else None


def peers_at(chat: "Chat", uid: str) -> Peers:
    """Return what the server knows: who the members are. While it is away a gid stays as it is."""

    def members(gid: str) -> Iterator[str]:
        try:
            yield from (member.uid for member in chat.members(gid))
        except ImError:
            return

    return Peers(uid, members)
