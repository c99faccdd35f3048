"""Queries for repair: the stored rows of groups, in order of key, with a page of them in memory.

Repair compares these rows with Redis, or puts them back there. Msgids and journal entries are packed integers.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Subquery, and_, case, delete, exists, func, literal, select, tuple_, union

from imcore.model.limits import ASKED_BY, GROUP_RECEIPTS
from imcore.model.rows import BookmarkRow, Head, MessageRow, SpanRow, WatermarkRow
from imcore.msgid import HIGHEST
from imcore.sql.bulk import WATERMARK, watermark_name
from imcore.sql.cells import (
    faults,
    has_msgid,
    has_text,
    int_of,
    is_among,
    is_msgid,
    is_recalled,
    msgid_of,
    suspect,
    text_of,
)
from imcore.sql.database import PAGE, PUT_META, Database
from imcore.sql.tables import BOOKMARKS, CHAT_GROUPS, GROUP_MSGS, GROUP_SPANS, META, OFFSET_MOVES, USER_SETTINGS
from imcore.util.batches import batches

_WATERMARK_NAME = re.compile(f"{WATERMARK}:[0-9]{{1,9}}:.+", re.ASCII | re.DOTALL)


class Light(NamedTuple):
    """A message without its text. `confirmed_read` and `confirmed_delivered` are the counts that its sender knows."""

    gid: str
    msgid: int
    seq: int
    sender_uid: str
    recalls: int | None
    confirmed_read: int
    confirmed_delivered: int


def gids(database: Database) -> Iterator[str]:
    page = [""]
    while page:  # not one stream: it would keep a transaction open while each group is handled
        query = select(CHAT_GROUPS.c.gid).where(CHAT_GROUPS.c.gid > page[-1]).order_by(CHAT_GROUPS.c.gid).limit(PAGE)
        page = _texts(gid for (gid,) in database.fetch(query))
        yield from page


def gids_of(database: Database, uid: str) -> list[str]:
    """Return the groups that a user is in, or was in."""
    c = GROUP_SPANS.c
    return _texts(gid for (gid,) in database.fetch(select(c.gid).distinct().where(c.uid == uid)))


def uids(database: Database) -> Iterator[str]:
    """Yield all present and past members of all groups, in order."""
    c = GROUP_SPANS.c
    for row in database.stream(select(c.uid).distinct().order_by(c.uid)):
        yield from _texts(row)


def count_groups(database: Database) -> int:
    count: int = database.fetch(select(func.count()).select_from(CHAT_GROUPS))[0][0]
    return count


def listed(database: Database, gids: Sequence[str]) -> set[str]:
    query = select(CHAT_GROUPS.c.gid).where(_in(database, CHAT_GROUPS.c.gid, gids))
    return {gid for (gid,) in database.fetch(query)}


def unlisted(database: Database) -> list[str]:
    """Return the gids of messages and spans that belong to no group: a worker died over their first entries."""
    missing = [
        select(rows.c.gid).where(~exists().where(CHAT_GROUPS.c.gid == rows.c.gid)).distinct()
        for rows in (GROUP_SPANS, GROUP_MSGS)
    ]
    return sorted(_texts(gid for (gid,) in database.fetch(union(*missing))))


def heads(database: Database, gids: Sequence[str], *, until: int = HIGHEST) -> dict[str, Head]:
    """Return the heads of groups as if the message `until` were the newest."""
    c = GROUP_MSGS.c
    columns = (c.gid, func.count(), func.max(c.seq), func.min(c.msgid), func.max(c.msgid))
    query = select(*columns).where(c.gid.in_(gids), has_msgid(), c.msgid <= until).group_by(c.gid)
    stored = {gid: Head(gid, *map(int_of, numbers)) for gid, *numbers in database.fetch(query)} if gids else {}
    return {gid: stored.get(gid, Head(gid)) for gid in gids}


def head(database: Database, gid: str, *, until: int = HIGHEST) -> Head:
    return heads(database, [gid], until=until)[gid]


def older_than(database: Database, gid: str, count: int) -> tuple[int, int] | None:
    """Return msgid and seq of the message before the newest `count`, None without one."""
    c = GROUP_MSGS.c
    query = select(c.msgid, c.seq).where(c.gid == gid, has_msgid()).order_by(c.msgid.desc()).offset(count).limit(1)
    return next(((int_of(msgid), int_of(seq)) for msgid, seq in database.fetch(query)), None)


def policies(database: Database, gids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the receipts and the asked_by of groups, by gid; the defaults for what somebody has written by hand."""
    c = CHAT_GROUPS.c
    rows = database.fetch(select(c.gid, c.receipts, c.asked_by).where(c.gid.in_(gids)))
    return {
        gid: (receipts if receipts in GROUP_RECEIPTS else "names", asked_by if asked_by in ASKED_BY else "sender")
        for gid, receipts, asked_by in rows
    }


def users_without_receipts(database: Database) -> set[str]:
    """Return the uids of users whose receipts are off."""
    c = USER_SETTINGS.c
    return {uid for row in database.stream(select(c.uid).where(c.receipts == "off")) for uid in _texts(row)}


def spans(database: Database, gids: Sequence[str]) -> Iterator[SpanRow]:
    """Yield the spans of some groups, in order of gid, uid and joined_msgid."""
    c = GROUP_SPANS.c
    columns = (c.gid, c.uid, c.joined_msgid, c.left_msgid, c.changed, c.acked_msgid, c.delivered_msgid)
    query = select(*columns).where(_in(database, c.gid, gids)).order_by(c.gid, c.uid, c.joined_msgid)
    for gid, uid, joined, left, changed, acked, delivered in database.stream(query):
        ends = int_of(joined), _int_or_none(left), int_of(changed)
        yield SpanRow(gid, text_of(uid), *ends, int_of(acked), _int_or_none(delivered))


def bookmarks(database: Database, gids: Sequence[str]) -> Iterator[BookmarkRow]:
    """Yield the bookmarks of some groups, also those of earlier memberships, in order of gid and uid."""
    c = BOOKMARKS.c
    columns = (c.gid, c.uid, c.joined_msgid, c.private_msgid, c.mark_msgid, c.changed)
    query = select(*columns).where(_in(database, c.gid, gids)).order_by(c.gid, c.uid)
    for gid, uid, *cells in database.stream(query):
        yield BookmarkRow(gid, text_of(uid), *map(int_of, cells))


def messages(database: Database, gids: Sequence[str], *, after: int, until: int | None = None) -> Iterator[MessageRow]:
    """Yield the messages of some groups with after < msgid <= until, in order of gid and msgid."""
    c = GROUP_MSGS.c
    query = select(*database.reader.columns()).where(c.gid.in_(gids), c.msgid > after).order_by(c.gid, c.msgid)
    if until is not None:
        query = query.where(c.msgid <= until)
    yield from database.reader.rows(database.stream(query))


def light(database: Database, gids: Sequence[str], *, after: int = 0) -> Iterator[Light]:
    """Yield the messages of some groups after a msgid, without their texts, in order of gid and msgid."""
    c = GROUP_MSGS.c
    columns = (c.gid, c.msgid, c.seq, c.sender_uid, c.recalls, c.confirmed_read, c.confirmed_delivered)
    query = select(*columns).where(c.gid.in_(gids), c.msgid > after).order_by(c.gid, c.msgid)
    for gid, msgid, seq, sender_uid, recalls, *confirmed in database.stream(query):
        if is_msgid(msgid):
            read, delivered = map(int_of, confirmed)
            yield Light(gid, msgid, int_of(seq), text_of(sender_uid), _int_or_none(recalls), read, delivered)


def own_unread(database: Database, gids: Sequence[str], *, until: int | None = None) -> Iterator[tuple[str, str, int]]:
    """Yield gid, uid and msgid of each message (up to `until`) that its sender has not acked, or has marked unread.

    None is recalled.
    """
    m, s, b = GROUP_MSGS.c, GROUP_SPANS.c, BOOKMARKS.c
    marked = and_(b.gid == s.gid, b.uid == s.uid, b.joined_msgid == s.joined_msgid)
    is_behind = and_(b.mark_msgid >= s.joined_msgid, b.mark_msgid > 0, b.mark_msgid < s.acked_msgid)
    floor = case((is_behind, b.mark_msgid), else_=s.acked_msgid)
    spans = GROUP_SPANS.outerjoin(BOOKMARKS, marked)
    own = and_(s.gid == m.gid, s.uid == m.sender_uid, s.left_msgid.is_(None), floor < m.msgid)
    lowest = select(func.min(floor)).select_from(spans).where(_in(database, s.gid, gids), s.left_msgid.is_(None))
    query = select(m.gid, m.sender_uid, m.msgid).select_from(GROUP_MSGS.join(spans, own))
    is_own = m.recalls.is_(None), ~is_recalled()
    query = query.where(_in(database, m.gid, gids), m.msgid > lowest.scalar_subquery(), *is_own)
    if until is not None:
        query = query.where(m.msgid <= until)
    for gid, uid, msgid in database.stream(query.order_by(m.gid, m.msgid)):
        if is_msgid(msgid):
            yield gid, text_of(uid), msgid


def own_after(database: Database, gid: str, uid: str, *, after: int, until: int) -> list[int]:
    """Return the messages of a user with after < msgid <= until; none that is recalled."""
    m = GROUP_MSGS.c
    query = select(m.msgid).where(m.gid == gid, m.sender_uid == uid, m.msgid > after, m.msgid <= until)
    query = query.where(m.recalls.is_(None), ~is_recalled()).order_by(m.msgid)
    return [msgid for (msgid,) in database.fetch(query) if is_msgid(msgid)]


def newest_own(
    database: Database, gid: str, uids: Sequence[str], *, after: int, until: int
) -> dict[tuple[str, int | None], int]:
    """Return the newest message with after < msgid <= until of some users of a group, by uid and span."""
    c = GROUP_MSGS.c
    query = select(c.sender_uid, c.span, func.max(c.msgid)).where(c.gid == gid, c.msgid > after, c.msgid <= until)
    queries = (query.where(c.sender_uid.in_(batch)).group_by(c.sender_uid, c.span) for batch in batches(uids, PAGE))
    return {(uid, span): int_of(msgid) for query in queries for uid, span, msgid in database.fetch(query)}


def recalls(database: Database, gids: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Yield the gid and msgid of each tombstone of some groups, with the message that it recalls."""
    c = GROUP_MSGS.c
    query = select(c.gid, c.msgid, c.recalls).where(_in(database, c.gid, gids), c.recalls.is_not(None))
    for gid, tombstone, recalled in database.stream(query):
        if is_msgid(tombstone) and is_msgid(recalled):
            yield gid, tombstone, recalled


def recalled_with_text(database: Database, gids: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield gid and msgid of the recalled messages of some groups whose texts are still stored."""
    m, tombstone = GROUP_MSGS.c, GROUP_MSGS.alias()
    recalled = and_(tombstone.c.gid == m.gid, tombstone.c.recalls == m.msgid)
    query = select(m.gid, m.msgid).join_from(tombstone, GROUP_MSGS, recalled)
    query = query.where(_in(database, m.gid, gids), has_text())
    for gid, msgid in database.stream(query.order_by(m.gid, m.msgid)):
        yield gid, int_of(msgid)


def out_of_order(database: Database, gid: str, until: int) -> list[int]:
    """Return the messages of a group up to `until` whose seq is not their place in it, a page of them at most."""
    c = GROUP_MSGS.c
    numbered = _numbered(c.gid == gid, c.msgid <= until)
    query = select(numbered.c.msgid).where(numbered.c.seq != numbered.c.place).order_by(numbered.c.msgid)
    return [int_of(msgid) for (msgid,) in database.fetch(query.limit(PAGE))]


def with_gaps(database: Database, gids: Sequence[str]) -> list[str]:
    """Return the groups among these whose seqs are not 1, 2, 3, ... in the order of their messages."""
    numbered = _numbered(GROUP_MSGS.c.gid.in_(gids), has_msgid())
    query = select(numbered.c.gid).where(numbered.c.seq != numbered.c.place).distinct()
    return sorted(gid for (gid,) in database.fetch(query))


def with_client_msgid(database: Database, gids: Sequence[str], *, after: int) -> Iterator[MessageRow]:
    """Yield the messages of some groups after a msgid that have a client_msgid, without their texts."""
    c = GROUP_MSGS.c
    query = select(*database.reader.columns(text=lambda _: literal("")))
    query = query.where(c.gid.in_(gids), c.msgid > after, c.client_msgid.is_not(None))
    yield from database.reader.rows(database.stream(query.order_by(c.gid, c.msgid)))


def unreadable(database: Database, gids: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    """Yield gid, msgid and field name (of MessageRow) of each unreadable cell of the messages of some groups."""
    c = GROUP_MSGS.c
    columns = database.reader.columns(text=lambda column: func.substr(column, 1, 1))  # only its type matters
    query = select(*columns).where(_in(database, c.gid, gids), suspect(database.dialect))
    for row in database.stream(query.order_by(c.gid, c.msgid)):
        for name in faults(row):
            yield row[0], msgid_of(row[1]), "sent_at_ms" if name == "sent_at" else name


def newest_change(database: Database, *, until: int) -> int:
    """Return the newest journal entry up to `until` (packed) that a span or a bookmark records."""
    columns = GROUP_SPANS.c.changed, BOOKMARKS.c.changed
    newest = (database.fetch(select(func.max(each)).where(each <= until))[0][0] for each in columns)
    return max(entry if is_msgid(entry) else 0 for entry in newest)


def watermarks(database: Database) -> dict[tuple[int, str], int]:
    """Return the last stored journal entry by partition and consumer."""
    facts = database.fetch(select(META.c.name, META.c.value).where(META.c.name.like(f"{WATERMARK}:%")))
    return dict(_watermark(name, value) for name, value in facts if _WATERMARK_NAME.fullmatch(name))


def replace_watermarks(database: Database, rows: Iterable[WatermarkRow], gone: Iterable[tuple[int, str]]) -> None:
    """Store watermarks and delete others (by partition and consumer), in one transaction."""
    with database.writing() as connection:
        for row in rows:
            name = watermark_name(row.partition, row.consumer)
            connection.execute(PUT_META, {"name": name, "value": str(row.entry)})
        names = [watermark_name(partition, consumer) for partition, consumer in gone]
        connection.execute(delete(META).where(META.c.name.in_(names)))


def forget_moves(database: Database, before: int, limit: int) -> int:
    """Delete at most `limit` rows of offset_moves with entries older than `before`; return the number of rows."""
    key = tuple(OFFSET_MOVES.primary_key)
    oldest = select(*key).where(OFFSET_MOVES.c.entry < before).limit(limit)
    with database.writing() as connection:
        return connection.execute(delete(OFFSET_MOVES).where(tuple_(*key).in_(oldest))).rowcount


def _watermark(name: str, value: object) -> tuple[tuple[int, str], int]:
    """Return partition, consumer and entry of a watermark. The entry is 0 if somebody has written another value."""
    _, partition, consumer = name.split(":", 2)
    text = text_of(value)
    return (int(partition), consumer), int(text) if text.isascii() and text.isdigit() else 0


def _texts(cells: Iterable[object]) -> list[str]:
    """Return the texts among some cells: SQLite stores anything as a name."""
    return [cell for cell in cells if isinstance(cell, str)]


def _in(database: Database, column: ColumnElement[str], gids: Sequence[str]) -> ColumnElement[bool]:
    return is_among(column, gids, database.dialect)


def _int_or_none(cell: object) -> int | None:
    return None if cell is None else int_of(cell)


def _numbered(*conditions: ColumnElement[bool]) -> Subquery:
    """Return gid, msgid, seq and `place`, from 1, of the messages that meet the conditions."""
    c = GROUP_MSGS.c
    place = func.row_number().over(partition_by=c.gid, order_by=c.msgid).label("place")
    return select(c.gid, c.msgid, c.seq, place).where(*conditions).subquery()
