"""The members of a group whose events are replayed, from its creation on."""

from imcore.chat import Chat
from imcore.errors import GroupExists, InvalidInput, UnknownGroup
from imcore.model.direct import is_direct, is_hashed, peer_of, says_names
from imcore.operations import creation
from imcore.streams.calls import group_calls
from imcore.streams.keys import uid_of

_MOST_OF_DIRECT = 2


class GroupMembers:
    """The members of one group. The gid of a one-to-one chat says who they are, and nobody leaves.

    But after one of the two was erased the gid names nobody: then any two users may be in it, and leave.
    """

    def __init__(self, chat: Chat, gid: str) -> None:
        self._chat = chat
        self._gid = gid
        self._count: int | None = None
        self._first_of_direct = ""
        """The user of a one-to-one chat who joined first, if the gid does not name the users."""

    def set(self, uid: str, is_member: bool) -> int:
        """Let a user join or leave the group, and create it if it does not exist.

        Return how many users joined, or -1 if one left. Raise InvalidInput if a one-to-one chat allows neither.
        """
        if says_names(self._gid):
            return self._join_direct(uid) if is_member else self._refuse_leaver()
        before = self.create()
        client = self._chat.system.client
        if is_member and is_direct(self._gid):
            self._check_room(uid)
        change = group_calls.add_members if is_member else group_calls.remove_members
        self._count = client.call(change(client.space, self._gid, [uid])).members
        return (self._count > before) - (self._count < before)

    def create(self) -> int:
        """Create the group if it does not exist, unless a join creates it. Return the number of its members."""
        if self._count is None:
            try:
                self._count = 0 if says_names(self._gid) else self._create([])
            except GroupExists:
                self._count = self._chat.group(self._gid).members
        return self._count

    def _create(self, uids: list[str]) -> int:
        return self._chat.performer.perform(creation.create(self._gid, uids)).members

    def _join_direct(self, uid: str) -> int:
        """Create a one-to-one chat. If its gid does not name the users, the second one who joins creates it."""
        peer = peer_of(self._gid, uid, [uid, self._first_of_direct or uid])
        if peer is None and is_hashed(self._gid) and self._first_of_direct in {"", uid}:
            self._first_of_direct = uid
            return 0
        if peer is None:
            raise InvalidInput(f"the one-to-one chat {self._gid!r} is not one of {uid!r}")
        try:
            self._chat.group(self._gid)
        except UnknownGroup:
            return self._create(sorted({uid, peer}))
        return 0

    def _refuse_leaver(self) -> int:
        raise InvalidInput(f"nobody leaves the one-to-one chat {self._gid!r}")

    def _check_room(self, uid: str) -> None:
        """Raise InvalidInput if two others are or were in a one-to-one chat."""
        client = self._chat.system.client
        spans = client.call(group_calls.some_spans(client.space, self._gid, group_calls.PAGE))
        if len({uid, *map(uid_of, spans)}) > _MOST_OF_DIRECT:
            raise InvalidInput(f"the one-to-one chat {self._gid!r} has two other users than {uid!r}")
