"""Rows of the database as workers write and readers get them: plain tuples of packed msgids and milliseconds.

Every row has a key. Rows of one key merge to the same row in any order and any number of times. So batches may overlap,
and no writer needs to know what has been written before.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

NO_TIME = 1 << 62
"""`MessageRow.sent_at_ms` of a stored time that cannot be read. It is never written."""


class MessageRow(NamedTuple):
    """A message. Key: gid and msgid. `span` is the joined_msgid of the sender's span, None for an admin who has none.

    A message that `recalls` another one (its msgid) removes that one's content and meta. `recalled` is only read, never
    written, like a `sent_at_ms` of NO_TIME. `meta` is a JSON object as text.
    """

    gid: str
    msgid: int
    seq: int
    sender_uid: str
    span: int | None
    content: str
    client_msgid: str | None
    sent_at_ms: int | None
    recalls: int | None = None
    recalled: bool = False
    meta: str | None = None

    def without_text(self) -> "MessageRow":
        """Return the row of a recalled message: without content and meta."""
        return self._replace(content="", meta=None)


class Head(NamedTuple):
    """The number of messages of a group, its highest seq, and its oldest and newest msgid; zeros without messages."""

    gid: str
    messages: int = 0
    last_seq: int = 0
    oldest: int = 0
    newest: int = 0


class SpanRow(NamedTuple):
    """A membership (joined_msgid, left_msgid]. Key: gid, uid and joined_msgid.

    `left_msgid` is None while it lasts. `changed` is the version of `left_msgid`: the packed id of its journal entry, 0
    if unknown. `acked_msgid` is the offset within the span, 0 before the first message.
    """

    gid: str
    uid: str
    joined_msgid: int
    left_msgid: int | None
    changed: int
    acked_msgid: int


class MoveRow(NamedTuple):
    """Offsets moved from `start` to `msgid`, by the journal's `entry` (packed id). Key: all but the uids.

    Rows of one key have the same uids.
    """

    gid: str
    msgid: int
    start: int
    entry: int
    uids: tuple[str, ...]


class GroupRow(NamedTuple):
    """A group exists since `created_ms`. Key: gid."""

    gid: str
    created_ms: int


class ConfirmRow(NamedTuple):
    """The sender has confirmed how many have read a message. Ignored for a message that is not stored."""

    gid: str
    msgid: int
    read: int


class WatermarkRow(NamedTuple):
    """A consumer has stored a partition's journal up to `entry` (packed id), or is about to. Key: both of these."""

    partition: int
    consumer: str
    entry: int


@dataclass(slots=True)
class Batch:
    """The rows of one transaction; any list may have a key more than once."""

    groups: list[GroupRow] = field(default_factory=list)
    messages: list[MessageRow] = field(default_factory=list)
    spans: list[SpanRow] = field(default_factory=list)
    moves: list[MoveRow] = field(default_factory=list)
    confirms: list[ConfirmRow] = field(default_factory=list)
    marks: list[WatermarkRow] = field(default_factory=list)
    known_deletions: Mapping[str, int] | None = None
    """The deletions of groups of these rows that the writer knows: a packed entry by gid. Nothing is written if there
    are others by now. None: the writer has made sure of that in another way."""

    def __len__(self) -> int:
        return sum(len(rows) for each in fields(self) if isinstance(rows := getattr(self, each.name), list))

    @property
    def gids(self) -> list[str]:
        gids = [row.gid for row in self.groups] + [row.gid for row in self.messages]
        return sorted({*gids, *(row.gid for row in self.spans), *(row.gid for row in self.moves)})

    def merged(self) -> "Batch":
        """Return the same with every key once, in order of key: so writers never deadlock."""
        return Batch(
            groups=_merge(self.groups, 1, min),
            messages=_merge(self.messages, 2, max),
            spans=_merge(self.spans, 3, merged_span),
            moves=_merge(self.moves, 4, max),
            confirms=_merge(self.confirms, 2, max),
            marks=_merge(self.marks, 2, max),
            known_deletions=self.known_deletions,
        )


def merged_span(one: SpanRow, other: SpanRow) -> SpanRow:
    """Return two rows of one span merged: the newer end, the further offset. `bulk` does the same in SQL."""
    newer = max(one, other, key=_version)
    return newer._replace(acked_msgid=max(one.acked_msgid, other.acked_msgid))


def _version(span: SpanRow) -> tuple[int, int]:
    return span.changed, -1 if span.left_msgid is None else span.left_msgid


_Row = TypeVar("_Row", bound=tuple[Any, ...])


def _merge(rows: Iterable[_Row], key_width: int, merge: Callable[[_Row, _Row], _Row]) -> list[_Row]:
    by_key: dict[tuple[Any, ...], _Row] = {}
    for row in rows:
        key = row[:key_width]
        known = by_key.get(key)
        by_key[key] = row if known is None else merge(known, row)
    return [by_key[key] for key in sorted(by_key)]
