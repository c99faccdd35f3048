"""The steps that erase a user, group by group: `imcore.admin.erasure` takes all, a repair those of its group.

So whatever repairs a group while an erasure is under way, or was broken off, finds neither name nor text on any side:
in Redis they are hidden, SQL and the journal have the alias. Every step may be repeated. See `lua/erasure.lua`.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

from imcore import msgid as msgids
from imcore.errors import TryAgain
from imcore.model.direct import random_gid, says_names
from imcore.model.erased import is_alias
from imcore.model.rows import Batch, SpanRow
from imcore.repair import locks, window
from imcore.sql import erasures, queries
from imcore.streams.calls import erasure_calls, group_calls, journal_calls
from imcore.streams.calls.call import Call
from imcore.streams.calls.erasure_calls import DeadPage, Erased, Leaver
from imcore.streams.calls.repair_calls import GroupLock
from imcore.streams.calls.rewrite_calls import REWRITE
from imcore.streams.client import CHUNK
from imcore.streams.consumers import KINDS
from imcore.streams.events import Acked, BookmarksSet, Delivered, Sent, SpanBegun, SpanEnded
from imcore.streams.keys import SEPARATOR, GroupKeys, span_key
from imcore.system import System
from imcore.util.batches import batches, grouped

GROUPS_AT_ONCE = 100
"""The groups that are locked together. Nothing else happens under these locks."""

SPANS_AT_ONCE = 200
"""The closed spans that one call renames: the server does nothing else meanwhile."""

_TRIES = 20


@dataclass(slots=True)
class Backlog:
    """The spans and messages of a user that no worker has stored: the journals or dead letters have them."""

    spans: dict[str, set[int]] = field(default_factory=dict)
    """By gid, where spans of the user began."""
    sent: dict[str, int] = field(default_factory=dict)
    """By gid, from where on messages (packed) may be the user's."""


class Erasure:
    """One erasure. The caller of its steps has the locks of the partitions: nobody stores or repairs anything there."""

    def __init__(self, system: System, uid: str, alias: str) -> None:
        self._system = system
        self._client = system.client
        self._database = system.database
        self.uid = uid
        self.alias = alias
        self.names = (uid, alias)
        """Either one, as far as the erasure has come."""

    # Redis.

    def hide(self, gids: Iterable[str], closed: Mapping[str, Iterable[int]]) -> dict[str, str]:
        """Let the user leave groups, and hide what they wrote there; return what the groups are called now, by gid.

        `closed` has the beginnings of closed spans. A one-to-one chat gets another gid. Raise TryAgain if somebody else
        repairs a group all the time.
        """
        now: dict[str, str] = {}
        for batch in batches(sorted(gids), GROUPS_AT_ONCE):
            now.update(self._hide_some(batch, closed))
        return now

    def _hide_some(self, gids: Sequence[str], closed: Mapping[str, Iterable[int]]) -> dict[str, str]:
        new_gids = self.new_gids(gids)  # before the locks, which end soon
        broken = self._broken(gids)
        parted = grouped((gid in broken, gid) for gid in gids)
        for is_broken, some in parted.items():
            # A repair that somebody has died over still has to be done. Each step here leaves the group as it is to be.
            taken = locks.take(self._system, some, kind="" if is_broken else REWRITE)
            try:
                self._hide_locked(taken, new_gids, closed)
            finally:
                locks.give_back(self._system, taken, done=not is_broken)
        for gid, new_gid in new_gids.items():
            self._rename_receipts(gid, new_gid)
        return {gid: new_gids.get(gid, gid) for gid in gids}

    def _hide_locked(
        self, taken: Sequence[GroupLock], new_gids: Mapping[str, str], closed: Mapping[str, Iterable[int]]
    ) -> None:
        for lock in taken:
            self._hide_chat(lock, new_gids.get(lock.k.gid), closed.get(lock.k.gid, ()))
        groups = [lock for lock in taken if lock.k.gid not in new_gids]
        self._client.call_many([call for lock in groups for call in self._calls(lock, closed.get(lock.k.gid, ()))])

    def _broken(self, gids: Sequence[str]) -> set[str]:
        partitions = set(map(self._partition_of, gids))
        return {gid for partition in partitions for gid in window.unfinished(self._system, partition)}

    def new_gids(self, gids: Iterable[str]) -> dict[str, str]:
        """Give the one-to-one chats among some groups other gids; return these by gid. A new one stays as it is."""
        known = self._database.erasures().gids
        named = [gid for gid in gids if says_names(gid)]
        new = {gid: known.get(gid) or self._random_gid(gid) for gid in named}
        return erasures.begin_chats(self._database, *self.names, new) if new else {}

    def _calls(self, lock: GroupLock, closed: Iterable[int]) -> Iterator[Call[bool]]:
        for part in batches(sorted({0, *closed}), SPANS_AT_ONCE):  # from 0 on: the members at the creation
            yield erasure_calls.erase(lock, Leaver(self.uid, self.alias, part))

    def _hide_chat(self, lock: GroupLock, new_gid: str | None, closed: Iterable[int]) -> None:
        """Let the user leave a one-to-one chat, which has another gid from then on."""
        if new_gid is None:
            return
        gid, space = lock.k.gid, self._client.space
        leaver, rebuilt = Leaver(self.uid, self.alias, sorted({0, *closed})), space.rebuilt(self._partition_of(gid))
        for _ in range(_TRIES):
            others = [uid for uid in self._members(gid) if uid != self.uid]
            call = erasure_calls.erase_chat(lock, leaver, space.group(new_gid), others, rebuilt)
            if self._client.call(call) != erasure_calls.CHANGED:
                return
        raise TryAgain(f"the members of {gid!r} change too fast to erase a user there")

    def _rename_receipts(self, gid: str, new_gid: str) -> None:
        k = self._client.space.group(gid)
        for uid in self._members(new_gid):
            self._paged(lambda cursor, uid=uid: erasure_calls.rename_receipts(k, uid, new_gid, cursor))

    def _members(self, gid: str) -> list[str]:
        spans = self._client.call(group_calls.some_spans(self._client.space, gid, group_calls.PAGE))
        return [span for span in spans if SEPARATOR not in span]

    def _random_gid(self, gid: str) -> str:
        """Return another gid of the same partition."""
        wanted = self._partition_of(gid)
        return next(new for _ in count() if self._partition_of(new := random_gid()) == wanted)

    def clean_journal(self, partition: int, gids: Mapping[str, str]) -> None:
        """Let no entry of a journal name the user, nor a gid that has changed: entries that are done go."""
        space, erased = self._client.space, Erased(*self.names, gids)
        cut = self._client.call(erasure_calls.cut_journal(space, partition, erased), repeatable=False)
        while self._client.call(journal_calls.trim_journal(space, partition, KINDS)):
            pass  # entries that are done go the quick way
        while cut and self._client.call(erasure_calls.clean_journal(space, partition, cut, erased)):
            pass

    def clean_dead_letters(self, partition: int, gids: Mapping[str, str], others: Sequence[str]) -> None:
        """Let no dead letter name the user, nor have a reason that may."""
        erased, page = Erased(*self.names, gids, others), DeadPage()
        while True:
            page = self._client.call(erasure_calls.clean_dead_letters(self._client.space, partition, page, erased))
            if not page.after:
                return
            if page.after == erasure_calls.AGAIN:
                page = DeadPage()

    def is_in_stream(self, k: GroupKeys) -> bool:
        """Return whether the stream of a group has a message of the user: nothing else may know it any more."""
        after = "-"
        while after not in {"", erasure_calls.FOUND}:
            first = after if after == "-" else f"({after}"
            after = self._client.call(erasure_calls.writes(k, self.uid, first))
        return after == erasure_calls.FOUND

    def drop_client_msgids(self, k: GroupKeys) -> None:
        for table in (k.idempotency_newer, k.idempotency_older):  # in this order: a rotation moves the newer one
            self._paged(lambda cursor, table=table: erasure_calls.drop_client_msgids(table, self.uid, cursor))

    def _paged(self, page: Any) -> None:
        cursor = ""
        while cursor != "0":
            cursor = self._client.call(page(cursor or "0"))

    def _partition_of(self, gid: str) -> int:
        return self._client.space.partition_of(gid)

    # What there is.

    def backlog(self, partitions: Iterable[int]) -> Backlog:
        found = Backlog()
        for partition in partitions:
            for entry in chain(window.undone(self._client, partition), window.dead(self._client, partition)):
                event = entry.event
                if isinstance(event, Sent):
                    found.sent[event.gid] = min(event.first, found.sent.get(event.gid, event.first))
                elif isinstance(event, SpanBegun | SpanEnded | Acked | Delivered | BookmarksSet):
                    for joined in self._spans_in(event):
                        found.spans.setdefault(event.gid, set()).add(joined)
        return found

    def _spans_in(self, event: SpanBegun | SpanEnded | Acked | Delivered | BookmarksSet) -> Iterator[int]:
        if isinstance(event, SpanBegun | SpanEnded):
            if event.uid in self.names:
                yield event.joined
            return
        for each in event.bookmarks if isinstance(event, BookmarksSet) else event.moves:
            if not set(self.names).isdisjoint(each.uids):
                yield each.joined

    def unstored_messages(self, backlog: Backlog, moved: Mapping[str, str]) -> dict[str, list[int]]:
        """Return the messages (packed) of the user that may not be stored, by gid; none for a group with tombstones.

        `moved` are the gids that the journals do not know yet, by the former ones.
        """
        own: dict[str, list[int]] = {}
        for former, first in backlog.sent.items():
            gid = moved.get(former, former)
            for row, _ in window.live(self._client, gid, first=msgids.unpack(first)):
                if row.sender_uid in self.names:
                    own.setdefault(gid, []).extend([row.msgid] if row.recalls is None else [])
        return own

    # SQL.

    def store_groups(self, gids: Mapping[str, str]) -> None:
        """Let spans in SQL have the alias, and an end, and one-to-one chats their new gids."""
        erasures.rename_members(self._database, *self.names)
        for gid, new_gid in gids.items():
            erasures.rename_group(self._database, *self.names, gid, new_gid)
        self._close_spans()

    def _close_spans(self) -> None:
        """Let spans in SQL end, as the journal says later: Redis may lose that, and the user would come back."""
        for batch in batches(erasures.open_spans(self._database, self.alias), CHUNK):
            keys = [self._client.space.group(row.gid) for row in batch]
            exist = self._client.query_many([("EXISTS", k.meta) for k in keys])
            spans = [span_key(self.alias, row.joined_msgid) for row in batch]
            ends = self._client.query_many([("ZSCORE", k.left, span) for k, span in zip(keys, spans, strict=True)])
            rows = [self._closed(*each) for each in zip(batch, exist, ends, strict=True)]
            self._database.write(Batch(spans=rows))

    def _closed(self, row: SpanRow, exists: int, end: float | None) -> SpanRow:
        """Return a span with its end in Redis, which keeps no empty ones; with all messages in SQL if Redis is lost."""
        left = queries.head(self._database, row.gid).newest if end is None and not exists else int(end or 0)
        return row._replace(left_msgid=max(left, row.joined_msgid), changed=row.changed + 1)

    def settle(self, gid: str) -> str:
        """Take all steps for one group whose repair begins; return its gid."""
        client, partition = self._client, self._partition_of(gid)
        client.call(erasure_calls.begin(client.space, partition, self.uid, self.alias))
        backlog = self.backlog([partition])
        stored = grouped(erasures.beginnings(self._database, self.names))
        closed = {gid: {*stored.get(gid, ()), *backlog.spans.get(gid, ())}}
        is_concerned = bool(closed[gid]) or self._has_written(gid, backlog)
        now = self.hide([gid], closed)[gid] if is_concerned else gid
        changed = {gid: now} if now != gid else {}
        if backlog.spans or changed:
            self.clean_journal(partition, self._database.erasures().gids)
        for name in (gid, now):
            erasures.rename_members(self._database, *self.names, name)
            for _ in erasures.empty_messages(self._database, self.uid, self.alias, name):
                pass
        for old, new in changed.items():
            erasures.rename_group(self._database, *self.names, old, new)
        self._close_spans()
        return now

    def _has_written(self, gid: str, backlog: Backlog) -> bool:
        is_member = self._client.query("ZSCORE", self._client.space.group(gid).acked, self.uid) is not None
        own = Backlog(sent={gid: backlog.sent[gid]} if gid in backlog.sent else {})
        return is_member or gid in erasures.gids_of(self._database, self.names) or bool(self.unstored_messages(own, {}))


def under_way(system: System) -> list[Erasure]:
    """Return the erasures that have begun and not ended."""
    return [Erasure(system, *names) for names in system.database.erasures().uids.items()]


def settle(system: System, gid: str) -> str:
    """Take the steps of all erasures for a group, whose partition the caller has locked; return its gid then."""
    for erasure in under_way(system):
        gid = erasure.settle(gid)
    return gid


def settle_stored(system: System) -> None:
    """Let SQL have no name and no text of users who are being erased: a rebuild brings back what it has."""
    database, space = system.database, system.client.space
    for erasure in under_way(system):
        for partition in range(space.partitions):
            system.client.call(erasure_calls.begin(space, partition, erasure.uid, erasure.alias))
        erasure.new_gids(erasures.gids_of(database, erasure.names))
        erasure.store_groups(database.erasures().gids)
        for _ in erasures.empty_messages(database, erasure.uid, erasure.alias):
            pass


def restore_latest(k: GroupKeys, spans: Iterable[SpanRow]) -> list[Call[int]]:
    """Return calls that let a group that is new in Redis name a latest erasure: devices look there once more."""
    if not any(is_alias(span.uid) for span in spans):
        return []
    return [Call("", (), ("HSETNX", k.meta, "last_erasure", secrets.token_hex(8)), int, k.gid, writes=True)]
