"""One-to-one chats by the name of the other user, the peer, instead of a gid that only programs can read."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from imcore.cli.names import DIRECT
from imcore.cli.output import Record
from imcore.errors import ImError
from imcore.model.direct import gid_of, is_direct, pair_of, peer_of

if TYPE_CHECKING:
    from imcore.chat import Chat


class Peers:
    """The peers of one user's one-to-one chats."""

    def __init__(self, uid: str, members: Callable[[str], Iterable[str]]) -> None:
        """Take a function that returns the members of a chat, for a gid that does not name them."""
        self._uid = uid
        self._members = members
        self._peers: dict[str, str | None] = {}

    def with_peer(self, record: Record) -> Record:
        """Return an object about a group; if the group is a one-to-one chat, with the other user as `peer`."""
        peer = self._peer(str(record["gid"]))
        return record if peer is None else {**record, "peer": peer}

    def _peer(self, gid: str) -> str | None:
        if is_direct(gid) and self._peers.get(gid) is None:  # an unknown peer may be known later
            self._peers[gid] = peer_of(gid, self._uid, self._members(gid))
        return self._peers.get(gid)


def to_gid(text: str, uid: str) -> str:
    """Return the gid that a user means by a gid or by `dm:bob`, the chat with bob. Raise InvalidInput."""
    peer = peer_in(text)
    return text if peer is None else gid_of(peer, uid)


def peer_in(text: str) -> str | None:
    """Return the peer in a chat's name as tables show it, `dm:bob`; None for a gid."""
    is_direct_name = text.startswith(DIRECT) and pair_of(text) is None
    return text.removeprefix(DIRECT) if is_direct_name else None


def peers_at(chat: "Chat", uid: str) -> Peers:
    """Return a user's peers as the server knows them. While it is away a gid stays as it is."""

    def members(gid: str) -> Iterator[str]:
        try:
            yield from (member.uid for member in chat.members(gid))
        except ImError:
            return

    return Peers(uid, members)
