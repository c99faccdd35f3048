"""What SQL holds of groups, in order of key, little by little: for those who compare it with Redis or put it back."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Select, and_, delete, exists, func, literal, select, text, tuple_, union

from imcore.model.rows import MessageRow, SpanRow, WatermarkRow
from imcore.sql.bulk import MARK, watermark_name
from imcore.sql.cells import faults, has_msgid, is_msgid, message_columns, msgid_of, text_of, unlikely, whole
from imcore.sql.database import Database
from imcore.sql.tables import GROUP_MSGS, GROUP_SPANS, META, OFFSET_MOVES, Stored

PAGE = 1000

_MARK_NAME = re.compile(f"{MARK}:[0-9]{{1,9}}:.+", re.ASCII | re.DOTALL)
_GROUPS = Stored.metadata.tables["chat_groups"]


class Head(NamedTuple):
    """How many messages of a group there are, and from where to where. Zeros for a group without any."""

    gid: str
    messages: int = 0
    last_seq: int = 0
    oldest: int = 0
    newest: int = 0


class Light(NamedTuple):
    """A message without what was said. `confirmed_read` is how many readers its sender knows of."""

    gid: str
    msgid: int
    seq: int
    sender_uid: str
    recalls: int | None
    confirmed_read: int


def gids(database: Database) -> Iterator[str]:
    """Yield the gids of all groups, in order."""
    after = ""
    while True:
        query = select(_GROUPS.c.gid).where(_GROUPS.c.gid > after).order_by(_GROUPS.c.gid).limit(PAGE)
        with database.connection() as connection:
            page = list(connection.scalars(query))
        names = _names(page)
        yield from names
        if len(page) < PAGE or not names:
            return
        after = names[-1]


def uids(database: Database) -> Iterator[str]:
    """Yield all who have ever been a member of a group, in order."""
    c = GROUP_SPANS.c
    for row in _streamed(database, select(c.uid).distinct().order_by(c.uid)):
        yield from _names(row)


def count_groups(database: Database) -> int:
    """Return how many groups there are."""
    with database.connection() as connection:
        return connection.scalars(select(func.count()).select_from(_GROUPS)).one()


def listed(database: Database, some: Sequence[str]) -> set[str]:
    """Return those of some gids that are of groups."""
    with database.connection() as connection:
        return set(connection.scalars(select(_GROUPS.c.gid).where(_GROUPS.c.gid.in_(some))))


def unlisted(database: Database) -> list[str]:
    """Return the gids that messages and spans name, of groups that are none: a worker died over their first entries."""
    known = exists().where(_GROUPS.c.gid == GROUP_SPANS.c.gid)
    also_known = exists().where(_GROUPS.c.gid == GROUP_MSGS.c.gid)
    query = union(
        select(GROUP_SPANS.c.gid).where(~known).distinct(), select(GROUP_MSGS.c.gid).where(~also_known).distinct()
    )
    with database.connection() as connection:
        return sorted(_names(connection.scalars(query)))


def heads(database: Database, some: Sequence[str]) -> dict[str, Head]:
    """Return the heads of some groups, which are given in order; those without messages too."""
    c = GROUP_MSGS.c
    found = {gid: Head(gid) for gid in some}
    if some:
        query = select(c.gid, *_head_columns()).where(c.gid.in_(some), has_msgid()).group_by(c.gid)
        with database.connection() as connection:
            found.update((row[0], Head(row[0], *map(whole, row[1:]))) for row in connection.execute(query))
    return found


def head(database: Database, gid: str, *, until: int) -> Head:
    """Return the head of a group as it was when the message `until` was the newest."""
    c = GROUP_MSGS.c
    query = select(*_head_columns()).where(c.gid == gid, has_msgid())
    with database.connection() as connection:
        numbers = connection.execute(query.where(c.msgid <= until)).one()
    return Head(gid, *(0 if number is None else whole(number) for number in numbers))


def older_than(database: Database, gid: str, count: int) -> tuple[int, int] | None:
    """Return msgid and seq of the newest message that is not among the newest so many; None if they are fewer."""
    c = GROUP_MSGS.c
    query = select(c.msgid, c.seq).where(c.gid == gid, has_msgid()).order_by(c.msgid.desc()).offset(count).limit(1)
    with database.connection() as connection:
        row = connection.execute(query).first()
        return (whole(row[0]), whole(row[1])) if row else None


def spans(database: Database, some: Sequence[str]) -> Iterator[SpanRow]:
    """Yield the spans of some groups, in order of gid, uid and beginning."""
    c = GROUP_SPANS.c
    query = select(c.gid, c.uid, c.joined_msgid, c.left_msgid, c.changed, c.acked_msgid).where(c.gid.in_(some))
    for gid, uid, joined, left, changed, acked in _streamed(database, query.order_by(c.gid, c.uid, c.joined_msgid)):
        end = None if left is None else whole(left)
        yield SpanRow(gid, text_of(uid), whole(joined), end, whole(changed), whole(acked))


def messages(database: Database, some: Sequence[str], *, after: int, until: int | None = None) -> Iterator[MessageRow]:
    """Yield the messages of some groups with after < msgid <= until, in order of gid and msgid."""
    c = GROUP_MSGS.c
    query = select(*message_columns()).where(c.gid.in_(some), c.msgid > after).order_by(c.gid, c.msgid)
    if until is not None:
        query = query.where(c.msgid <= until)
    yield from database.reader.rows(_streamed(database, query))


def light(database: Database, some: Sequence[str], *, after: int = 0) -> Iterator[Light]:
    """Yield the messages of some groups after a msgid, without what was said, in order of gid and msgid."""
    c = GROUP_MSGS.c
    columns = (c.gid, c.msgid, c.seq, c.sender_uid, c.recalls, c.confirmed_read)
    query = select(*columns).where(c.gid.in_(some), c.msgid > after).order_by(c.gid, c.msgid)
    for row in _streamed(database, query):
        gid, msgid, seq, sender_uid, recalls, confirmed_read = row
        tombstone = None if recalls is None else whole(recalls)
        if is_msgid(msgid):
            yield Light(gid, msgid, whole(seq), text_of(sender_uid), tombstone, whole(confirmed_read))


def own_unread(database: Database, some: Sequence[str], *, until: int | None = None) -> Iterator[tuple[str, str, int]]:
    """Yield gid, uid and msgid of each message (up to `until`) that a member of some groups sent past their offset.

    Recalled messages and tombstones are left out: they are never unread.
    """
    m, s = GROUP_MSGS.c, GROUP_SPANS.c
    own = and_(s.gid == m.gid, s.uid == m.sender_uid, s.left_msgid.is_(None), s.acked_msgid < m.msgid)
    lowest = select(func.min(s.acked_msgid)).where(s.gid.in_(some), s.left_msgid.is_(None)).scalar_subquery()
    tombstone = GROUP_MSGS.alias()
    recalled = exists().where(tombstone.c.gid == m.gid, tombstone.c.recalls == m.msgid)
    query = select(m.gid, m.sender_uid, m.msgid).join_from(GROUP_MSGS, GROUP_SPANS, own)
    query = query.where(m.gid.in_(some), m.msgid > lowest, m.recalls.is_(None), ~recalled).order_by(m.gid, m.msgid)
    if until is not None:
        query = query.where(m.msgid <= until)
    for gid, uid, msgid in _streamed(database, query):
        if is_msgid(msgid):
            yield gid, text_of(uid), msgid


def newest_own(
    database: Database, gid: str, some: Sequence[str], *, after: int, until: int
) -> dict[tuple[str, int | None], int]:
    """Return the newest message (packed) with after < msgid <= until by some users of a group, by uid and span."""
    c = GROUP_MSGS.c
    query = select(c.sender_uid, c.span, func.max(c.msgid)).where(c.gid == gid, c.msgid > after, c.msgid <= until)
    found: dict[tuple[str, int | None], int] = {}
    with database.connection() as connection:
        for i in range(0, len(some), PAGE):
            page = query.where(c.sender_uid.in_(some[i : i + PAGE])).group_by(c.sender_uid, c.span)
            found.update(((row[0], row[1]), whole(row[2])) for row in connection.execute(page))
    return found


def recalls(database: Database, gid: str) -> Iterator[tuple[int, int]]:
    """Yield each tombstone of a group with the message that it recalls (both packed)."""
    c = GROUP_MSGS.c
    for msgid, recalled in _streamed(database, select(c.msgid, c.recalls).where(c.gid == gid, c.recalls.is_not(None))):
        if is_msgid(msgid) and is_msgid(recalled):
            yield msgid, recalled


def recalled_with_text(database: Database, gid: str) -> list[int]:
    """Return the recalled messages (packed) of a group whose text is still there."""
    m, tombstone = GROUP_MSGS.c, GROUP_MSGS.alias()
    recalled = and_(tombstone.c.gid == m.gid, tombstone.c.recalls == m.msgid)
    query = select(m.msgid).join_from(tombstone, GROUP_MSGS, recalled).where(m.gid == gid, m.content != "")
    with database.connection() as connection:
        return sorted(map(whole, connection.scalars(query)))


def out_of_order(database: Database, gid: str, until: int) -> list[int]:
    """Return the messages (packed) of a group up to one whose seqs are not their places in it."""
    c = GROUP_MSGS.c
    place = func.row_number().over(order_by=c.msgid).label("place")
    numbered = select(c.msgid, c.seq, place).where(c.gid == gid, c.msgid <= until).subquery()
    query = select(numbered.c.msgid).where(numbered.c.seq != numbered.c.place).order_by(numbered.c.msgid)
    with database.connection() as connection:
        return [whole(msgid) for msgid in connection.scalars(query.limit(PAGE))]


def seqs(database: Database, gid: str, some: Iterable[int]) -> dict[int, int]:
    """Return the seqs of some messages (packed) of a group, as far as they are stored."""
    c = GROUP_MSGS.c
    wanted = sorted(set(some))
    found: dict[int, int] = {}
    with database.connection() as connection:
        for i in range(0, len(wanted), PAGE):
            query = select(c.msgid, c.seq).where(c.gid == gid, c.msgid.in_(wanted[i : i + PAGE]))
            found.update((row[0], whole(row[1])) for row in connection.execute(query))
    return found


def with_client_msgid(database: Database, some: Sequence[str], *, after: int) -> Iterator[MessageRow]:
    """Yield the messages of some groups after a msgid that carry a client_msgid, without what was said."""
    c = GROUP_MSGS.c
    query = select(*message_columns(content=literal("")))
    query = query.where(c.gid.in_(some), c.msgid > after, c.client_msgid.is_not(None))
    yield from database.reader.rows(_streamed(database, query.order_by(c.gid, c.msgid)))


def unreadable(database: Database, gid: str) -> Iterator[tuple[int, str]]:
    """Yield what of a group's messages cannot be read: the msgid (packed), and the name of the field of MessageRow."""
    c = GROUP_MSGS.c
    start = func.substr(c.content, 1, 1)  # its kind is what matters
    with database.connection() as connection:
        query = select(*message_columns(content=start)).where(c.gid == gid, unlikely(connection.dialect.name))
        for row in connection.execute(query.order_by(c.msgid), execution_options={"yield_per": PAGE}):
            for name in faults(row):
                yield msgid_of(row[1]), "sent_at_ms" if name == "sent_at" else name


def newest_change(database: Database) -> int:
    """Return the highest id (packed) of a journal entry that any span tells of."""
    with database.connection() as connection:
        return whole(connection.scalar(select(func.max(GROUP_SPANS.c.changed))) or 0)


def watermarks(database: Database) -> dict[tuple[int, str], int]:
    """Return up to where each consumer of each partition's journal has stored: packed ids."""
    with database.connection() as connection:
        found = connection.execute(select(META.c.name, META.c.value).where(META.c.name.like(f"{MARK}:%")))
        return dict(_mark(name, value) for name, value in found if _MARK_NAME.fullmatch(name))


def replace_watermarks(database: Database, rows: Iterable[WatermarkRow], gone: Iterable[tuple[int, str]]) -> None:
    """Store marks and drop others (partition and consumer of each), in one transaction."""
    put = text(
        "INSERT INTO imcore_meta (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = :value"
    )
    with database.writing() as connection:
        for row in rows:
            connection.execute(put, {"name": watermark_name(row.partition, row.consumer), "value": str(row.entry)})
        names = [watermark_name(*place) for place in gone]
        connection.execute(delete(META).where(META.c.name.in_(names)))


def forget_moves(database: Database, before: int, limit: int) -> int:
    """Delete at most so many rows of moves of offsets that are told by journal entries before this one (packed)."""
    key = tuple(OFFSET_MOVES.primary_key)
    some = select(*key).where(OFFSET_MOVES.c.entry < before).limit(limit)
    with database.writing() as connection:
        return connection.execute(delete(OFFSET_MOVES).where(tuple_(*key).in_(some))).rowcount


def with_gaps(database: Database, some: Sequence[str]) -> list[str]:
    """Return those of some groups whose seqs are not 1, 2, 3, ... in the order of the messages."""
    c = GROUP_MSGS.c
    place = func.row_number().over(partition_by=c.gid, order_by=c.msgid).label("place")
    numbered = select(c.gid, c.seq, place).where(c.gid.in_(some), has_msgid()).subquery()
    with database.connection() as connection:
        query = select(numbered.c.gid).where(numbered.c.seq != numbered.c.place).distinct()
        return sorted(connection.scalars(query))


def _mark(name: str, value: object) -> tuple[tuple[int, str], int]:
    """Return whose mark this is, and where it is: before all, where somebody has written what is no number."""
    _, partition, consumer = name.split(":", 2)
    text = text_of(value)
    return (int(partition), consumer), int(text) if text.isascii() and text.isdigit() else 0


def _names(values: Iterable[object]) -> list[str]:
    """Return those of some names that are texts: SQLite takes anything else, too."""
    return [value for value in values if isinstance(value, str)]


def _head_columns() -> tuple[Any, ...]:
    c = GROUP_MSGS.c
    return func.count(), func.max(c.seq), func.min(c.msgid), func.max(c.msgid)


def _streamed(database: Database, query: Select[Any]) -> Iterator[Sequence[Any]]:
    """Yield what a query finds, as it finds it: however much that is, a page of it is in memory."""
    with database.connection() as connection, connection.execute(query, execution_options={"yield_per": PAGE}) as rows:
        yield from rows
