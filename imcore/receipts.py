"""Receipts as the sender sees them: which of their messages' tallies changed, until they confirm it."""

import sys
from collections.abc import Iterator, Sequence
from itertools import islice

from imcore import msgid as msgids
from imcore.history import History
from imcore.limits import check_receipt
from imcore.streams import receipt_calls
from imcore.streams.link import CHUNK, Link
from imcore.streams.receipt_calls import Mark
from imcore.values import Receipt

_PAGE = 500


class Receipts:
    """Reads and confirms what the worker `receipts` has marked."""

    def __init__(self, link: Link, history: History) -> None:
        self._link = link
        self._history = history

    def pending(self, uid: str, *, limit: int | None = None) -> list[Receipt]:
        """Return the tallies, as they are now, of the user's messages that changed since they were confirmed."""
        marks = islice(self._marks(uid), None if limit is None else min(limit, sys.maxsize))
        by_gid: dict[str, list[Mark]] = {}
        for mark in marks:
            by_gid.setdefault(mark.gid, []).append(mark)
        return [receipt for gid in sorted(by_gid) for receipt in self._receipts(gid, by_gid[gid])]

    def confirm(self, uid: str, receipts: Sequence[Receipt]) -> int:
        """Confirm receipts; return how many of them had still been marked. Raise InvalidInput."""
        for receipt in receipts:
            check_receipt(receipt)
        return sum(self._link.run_many(receipt_calls.confirm(self._link.space, uid, receipts)))

    def _marks(self, uid: str) -> Iterator[Mark]:
        space = self._link.space
        first_pages = self._link.run_many(
            [receipt_calls.dirty(space, p, uid, after=0, count=_PAGE) for p in range(space.partitions)]
        )
        for partition, first in enumerate(first_pages):
            page = first
            while page:
                yield from page
                if len(page) < _PAGE:
                    break
                page = self._link.run(receipt_calls.dirty(space, partition, uid, after=page[-1].version, count=_PAGE))

    def _receipts(self, gid: str, marks: list[Mark]) -> list[Receipt]:
        marks.sort(key=lambda mark: mark.msgid)
        found: list[Receipt] = []
        for i in range(0, len(marks), CHUNK):
            some = marks[i : i + CHUNK]
            counts = self._history.tallies(gid, [mark.msgid for mark in some])
            found += [
                Receipt(gid, msgids.unpack(mark.msgid), *count, mark.version)
                for mark, count in zip(some, counts, strict=True)
            ]
        return found
