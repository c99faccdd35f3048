"""The part of `Chat` about who has read what: read status, receipts, and the policies that say who is told."""

from collections.abc import Iterable, Sequence

from imcore.model.values import GroupPolicy, MessageStatus, MessageTally, Receipt, Tally, UserPolicy, Why
from imcore.operations import policies, sessions, tallies, user_policies, why
from imcore.operations.performer import Performer


class ReadStatus:
    """Questions of operators see all. `by` is a user who asks: they are told what the group's policy lets them know.

    Then each method raises NotMember for one who is not in the group, and NotAllowed for what the policy withholds.
    """

    performer: Performer

    def status(self, gid: str, *, limit: int = 20, by: str | None = None) -> list[MessageTally]:
        """Return the tallies of the newest messages (0: of all), oldest first.

        `by` a user: only of those of them about which this user may ask. Raise NotMember, NotAllowed.
        """
        return self.performer.perform(tallies.status(gid, limit=limit, by=by))

    def tally(self, gid: str, msgid: str, *, by: str | None = None) -> Tally:
        """Return how many have read a message and how many have not. Raise UnknownMessage, NotMember, NotAllowed."""
        return self.performer.perform(tallies.tally(gid, msgid, by))

    def tallies(self, gid: str, msgids: Iterable[str], *, by: str | None = None) -> list[Tally]:
        """Return how many have read each of these messages and how many have not.

        Unknown msgids are left out, and those about which the user `by` may not ask. Raise NotMember, NotAllowed.
        """
        return self.performer.perform(tallies.tallies(gid, msgids, by))

    def message_status(self, gid: str, msgid: str, *, by: str | None = None) -> MessageStatus:
        """Return who has read a message, and when, and who has not. Raise UnknownMessage, NotMember, NotAllowed.

        The times are None before a worker has stored any, and while the database is away, which is logged as a warning.
        There are no names if the user `by` is told numbers only: by the group's policy, or because their own receipts
        are off.
        """
        return self.performer.perform(tallies.message_status(gid, msgid, by))

    def why(self, gid: str, msgid: str, uid: str, *, by: str | None = None) -> Why:
        """Return why a user has not read a message, or that they have, in one word. Raise UnknownMessage.

        A user `by` who may not know names is refused: NotAllowed.
        """
        return self.performer.perform(why.why(gid, msgid, uid, by))

    def receipts(self, uid: str, *, limit: int | None = None) -> list[Receipt]:
        """Return the tallies of the user's own messages that changed since they were confirmed, by gid and age.

        They come again until `confirm_receipts` confirms them. Those of a group whose receipts are off wait.
        """
        return self.performer.perform(sessions.receipts(uid, limit=limit))

    def confirm_receipts(self, uid: str, receipts: Sequence[Receipt]) -> int:
        """Confirm receipts. A receipt that changed again meanwhile stays. Return how many are confirmed."""
        return self.performer.perform(sessions.confirm_receipts(uid, receipts))

    def set_group(self, gid: str, *, receipts: str | None = None, asked_by: str | None = None) -> GroupPolicy:
        """Set what members of a group are told about readers; None leaves it as it is. Return the policy then.

        `receipts`: `names` (the default), `counts` or `off` (nothing). `asked_by`, who may ask about a message: its
        `sender` (the default) or all `members`. Operators are told all. Raise InvalidInput.
        """
        return self.performer.perform(policies.set_group(gid, receipts, asked_by))

    def group_policy(self, gid: str) -> GroupPolicy:
        """Return what members of a group are told about readers."""
        return self.performer.perform(policies.group_policy(gid))

    def set_user(self, uid: str, *, receipts: bool | str) -> UserPolicy:
        """Set whether others are told what a user reads: `on` (True, the default) or `off` (False).

        While it is off, each ack of the user is private and others count their messages as unread; and the user is told
        numbers only. What was read before stays read. A user need not be in a group. Raise InvalidInput.
        """
        return self.performer.perform(user_policies.set_user(uid, receipts))

    def user_policy(self, uid: str) -> UserPolicy:
        """Return whether others are told what a user reads."""
        return self.performer.perform(user_policies.user_policy(uid))
