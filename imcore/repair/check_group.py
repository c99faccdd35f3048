"""Whether whole groups are alike in Redis and in SQL, while the system runs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from imcore.errors import ConfigurationError, ImError, TryAgain
from imcore.repair.check_members import MemberAudit
from imcore.repair.check_messages import GroupMeta, MessageAudit, metas_of
from imcore.repair.diff import MISSING, THERE, Difference
from imcore.repair.journal_window import PAGE, JournalWindow
from imcore.sql import queries
from imcore.streams.calls.repair_calls import NEVER
from imcore.streams.journal import one_line
from imcore.system import System

ROUNDS = 10
"""How often a group is looked at again where it has just changed."""


UNREADABLE = (ImError, ValueError, TypeError, IndexError, KeyError, OverflowError)
"""What comes of data that somebody has written by hand."""


def differences(system: System, gids: Sequence[str], *, after: int | None = None) -> dict[str, list[Difference]]:
    """Return what differs in each of some groups, and is not explained by what happened while both sides were read.

    With `after` (packed), older messages are left out, but for the newest page that SQL has. What differed each time
    anew, in a group that changes all the time, is `unsure`. A group that cannot be read differs in that. Raise
    RedisUnavailable, DatabaseUnavailable, ConfigurationError.
    """
    try:
        return _differences(system, gids, after)
    except (TryAgain, ConfigurationError):
        raise
    except UNREADABLE as error:
        if len(gids) == 1:
            return {gids[0]: [Difference("data", f"cannot be read: {one_line(str(error))}", "not compared", "stored")]}
    return {gid: found for one in gids for gid, found in differences(system, [one], after=after).items()}


def _differences(system: System, gids: Sequence[str], after: int | None) -> dict[str, list[Difference]]:
    found: dict[str, dict[str, Difference]] = {gid: {} for gid in gids}
    doubtful: dict[str, Counter[Difference]] = {gid: Counter() for gid in gids}
    again = list(gids)
    for _ in range(ROUNDS):
        window = JournalWindow(system, again)
        seen = _Look(system, window, again, after).suspicions()
        touched = window.touched()
        again = []
        for gid, suspicions in seen.items():
            doubts = [suspicion for suspicion in suspicions if suspicion.explained_by(touched[gid])]
            found[gid].update((each.what, each) for each in suspicions if each not in doubts)
            doubtful[gid].update(doubts)
            if doubts:
                again.append(gid)
        if not again:
            break
    for gid in again:
        always = (replace(each, unsure=True) for each, times in doubtful[gid].items() if times == ROUNDS)
        found[gid].update((each.what, each) for each in always if each.what not in found[gid])
    return {gid: list(suspicions.values()) for gid, suspicions in found.items()}


class _Look:
    """One look at some groups."""

    def __init__(self, system: System, window: JournalWindow, gids: Sequence[str], after: int | None) -> None:
        self._system = system
        self._client = system.client
        self._window = window
        self._gids = gids
        self._after = after

    def suspicions(self) -> dict[str, list[Difference]]:
        """Return what differs in each group, but for what is trimmed meanwhile."""
        stored_gids = queries.listed(self._system.database, self._gids)
        keys = [self._client.space.group(gid) for gid in self._gids]
        listed = self._client.query_many([("SISMEMBER", k.groups, k.gid) for k in keys])
        metas = metas_of(self._client, self._gids)
        found = {
            gid: [*self._of_group(gid, metas[gid], gid in stored_gids, bool(is_listed))]
            for gid, is_listed in zip(self._gids, listed, strict=True)
        }
        now = metas_of(self._client, self._gids)
        return {gid: [s for s in each if not _trimmed(s, metas[gid], now[gid])] for gid, each in found.items()}

    def _of_group(self, gid: str, meta: GroupMeta, is_stored: bool, is_listed: bool) -> Iterator[Difference]:
        pending = self._window.pending[gid]
        if not meta.exists:
            if is_stored or self._has_rows(gid):
                yield Difference("group", MISSING, THERE, "group")
            elif is_listed:
                yield Difference("name in the list of all groups", THERE, MISSING, "group")
            return
        if not is_stored and pending.created_ms is None:
            yield Difference("group", THERE, MISSING, "group")
        if not is_listed:
            yield Difference("group in the list of all", MISSING, THERE, "group")
        members = MemberAudit(self._system, gid, pending)
        if self._after is None:
            messages = MessageAudit(self._system, gid, pending)
            yield from messages.suspicions(meta)
            yield from members.suspicions(meta, messages)
        else:
            after = min(self._after, self._before_newest(gid))
            yield from MessageAudit(self._system, gid, pending, after=after).suspicions(meta)
            yield from members.suspicions(meta, None)

    def _has_rows(self, gid: str) -> bool:
        """Return whether SQL has anything of a group that it does not list."""
        database = self._system.database
        return bool(queries.head(database, gid, until=NEVER).messages) or any(queries.spans(database, [gid]))

    def _before_newest(self, gid: str) -> int:
        """Return the message before the newest page that SQL has."""
        newest = self._system.database.messages_before(gid, NEVER, limit=PAGE)
        return newest[0].msgid - 1 if newest else 0


def oldest_of(found: Sequence[Difference]) -> int | None:
    """Return the oldest message (packed) that differs, None if none does.

    If tallies alone do, one of these: what was said then tells which span has the wrong end on both sides.
    """
    about = {"message"} if any(s.depends != "tally" for s in found) else {"tally"}
    return min((s.msgid for s in found if s.depends in about and s.msgid), default=None)


def _trimmed(suspicion: Difference, before: GroupMeta, now: GroupMeta) -> bool:
    """Return whether a suspicion is about what has been trimmed meanwhile."""
    concerned = suspicion.depends in {"head", "trim", "own"} or 0 < suspicion.msgid <= now.trimmed
    return now.trimmed > before.trimmed and concerned
