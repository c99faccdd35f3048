"""Erasures of users in SQL: which are under way, and their names and texts in stored rows.

A row of the table `erasures` comes first and goes last. Meanwhile whoever writes rows replaces the name in them (see
`Erasures` in `imcore.model.rows`), and whoever reads messages gets neither name nor text. All of this may be repeated.
What changes rows by the name makes sure in the same transaction that the erasure is still under way: afterwards the
name may be a new user's.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, text, tuple_, update

from imcore.errors import ErasuresChanged, TryAgain
from imcore.model.direct import pair_of
from imcore.model.rows import Batch, SpanRow
from imcore.sql import moves
from imcore.sql.bulk import ERASURES_QUERY, erasures_of
from imcore.sql.cells import int_of, text_of
from imcore.sql.database import Database
from imcore.sql.tables import (
    BOOKMARKS,
    CHAT_GROUPS,
    DELETED_GROUPS,
    ERASURES,
    GROUP_MSGS,
    GROUP_SPANS,
    OFFSET_MOVES,
    USER_SETTINGS,
)
from imcore.util.batches import batches

PAGE = 1000
"""The most rows that one transaction changes."""

_COUNT = ""
"""The uid and the gid of the row that counts."""


_SPAN_KEY = tuple_(GROUP_SPANS.c.gid, GROUP_SPANS.c.uid, GROUP_SPANS.c.joined_msgid)
_SPAN = [GROUP_SPANS.c[name] for name in SpanRow._fields]


def begin(database: Database, uid: str, alias: str) -> str:
    """Begin to erase a user, or go on with it; return the alias. From now on no reader gets name or texts."""
    return _begin(database, uid, {"": alias})[""]


def begin_chats(database: Database, uid: str, alias: str, new_gids: Mapping[str, str]) -> dict[str, str]:
    """Give one-to-one chats of a user new gids, by gid; return these: the same ones if this is repeated.

    Raise TryAgain if the erasure has ended.
    """
    return _begin(database, uid, new_gids, alias)


def end(database: Database, uid: str) -> None:
    """Note that nothing has the name any more."""
    with database.writing() as connection:
        _lock(database, connection)
        if connection.execute(delete(ERASURES).where(ERASURES.c.uid == uid)).rowcount:
            _count(connection)
    database.empty_log(always=True)


def check_count(connection: Connection, count: int) -> None:
    """Lock erasures until the transaction ends, so that none begins or ends meanwhile.

    Raise ErasuresChanged unless so many have begun or ended.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE erasures IN ROW SHARE MODE"))
    if erasures_of(connection.execute(text(ERASURES_QUERY))).count != count:
        raise ErasuresChanged("the erasure of a user has begun or ended: what is to be stored is read again")


@contextmanager
def _erasing(database: Database, uid: str, alias: str) -> Iterator[Connection]:
    """Begin a transaction in which a user is being erased. Raise TryAgain if that has ended."""
    with database.writing() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("LOCK TABLE erasures IN ROW SHARE MODE"))
        if erasures_of(connection.execute(text(ERASURES_QUERY))).uids.get(uid) != alias:
            raise _ended(uid)
        yield connection


def _begin(database: Database, uid: str, wanted: Mapping[str, str], alias: str | None = None) -> dict[str, str]:
    c = ERASURES.c
    with database.writing() as connection:
        _lock(database, connection)
        rows = connection.execute(select(c.gid, c.alias).where(c.uid == uid))
        known = {text_of(gid): text_of(alias) for gid, alias in rows}
        if alias is not None and known.get("") != alias:
            raise _ended(uid)
        new = [{"uid": uid, "gid": gid, "alias": value} for gid, value in wanted.items() if gid not in known]
        if new:
            connection.execute(insert(ERASURES), new)
            _count(connection)
    return {gid: known.get(gid, value) for gid, value in wanted.items()}


def _ended(uid: str) -> TryAgain:
    return TryAgain(f"another process has ended the erasure of {uid!r}, which is done")


def _lock(database: Database, connection: Connection) -> None:
    """Wait for all who write rows: they may still store names. Readers are not kept waiting. SQLite has one writer."""
    if database.dialect == "postgresql":
        connection.execute(text("LOCK TABLE erasures IN EXCLUSIVE MODE"))


def _count(connection: Connection) -> None:
    c = ERASURES.c
    row = and_(c.uid == _COUNT, c.gid == _COUNT)
    known = connection.execute(select(c.alias).where(row)).scalar()
    connection.execute(delete(ERASURES).where(row))
    connection.execute(insert(ERASURES).values(uid=_COUNT, gid=_COUNT, alias=str(int(known or 0) + 1)))


# What there is of a user.


def gids_of(database: Database, names: Sequence[str]) -> set[str]:
    """Return the groups that a user, who may have several names, is or was in, or has written in."""
    queries = (
        select(table.c.gid).distinct().where(name.in_(names))
        for table, name in (
            (GROUP_SPANS, GROUP_SPANS.c.uid),
            (GROUP_MSGS, GROUP_MSGS.c.sender_uid),
            (BOOKMARKS, BOOKMARKS.c.uid),
        )
    )
    return {text_of(gid) for query in queries for (gid,) in database.fetch(query)}


def written_in(database: Database, names: Sequence[str]) -> set[str]:
    """Return the groups in which a user has written."""
    query = select(GROUP_MSGS.c.gid).distinct().where(GROUP_MSGS.c.sender_uid.in_(names))
    return {text_of(gid) for (gid,) in database.fetch(query)}


def beginnings(database: Database, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield gid and joined_msgid of each span of a user."""
    c = GROUP_SPANS.c
    for gid, joined in database.stream(select(c.gid, c.joined_msgid).where(c.uid.in_(names))):
        yield text_of(gid), int_of(joined)


def count_messages(database: Database, names: Sequence[str]) -> int:
    """Return how many messages of a user are stored, without tombstones."""
    c = GROUP_MSGS.c
    query = select(func.count()).select_from(GROUP_MSGS).where(c.sender_uid.in_(names), c.recalls.is_(None))
    count: int = database.fetch(query)[0][0]
    return count


# What is changed. Each returns how many rows it has changed; PAGE of them are followed by others.


def rename_members(database: Database, uid: str, alias: str, gid: str | None = None) -> None:
    """Let spans have the alias, and drop bookmarks: of all groups, or of one. The user's settings go."""
    c = GROUP_SPANS.c
    wanted = and_(c.uid == uid, c.gid == gid) if gid is not None else c.uid == uid
    while rows := _written_spans(database, wanted):  # with the alias, merged with the rows that have it already
        with _erasing(database, uid, alias) as connection:
            for row in rows:
                connection.execute(delete(GROUP_SPANS).where(tuple_(*row[:3]) == _SPAN_KEY))
    b = BOOKMARKS.c
    own = and_(b.uid == uid, b.gid == gid) if gid is not None else b.uid == uid
    with _erasing(database, uid, alias) as connection:
        connection.execute(delete(USER_SETTINGS).where(USER_SETTINGS.c.uid == uid))
        connection.execute(delete(BOOKMARKS).where(own))


def _written_spans(database: Database, wanted: ColumnElement[bool], gid: str | None = None) -> list[SpanRow]:
    """Write a page of spans once more, with this gid and without names of erased users; return what they were."""
    while True:
        known = database.erasures().count
        rows = [SpanRow(*row) for row in database.fetch(select(*_SPAN).where(wanted).limit(PAGE))]
        with suppress(ErasuresChanged):
            database.write(Batch(spans=[row._replace(gid=gid or row.gid) for row in rows], erasures=known))
            return rows


def deleted_chats(database: Database, uid: str) -> list[str]:
    """Return the deleted one-to-one chats of a user whose gids say the names."""
    gids = (text_of(gid) for (gid,) in database.stream(select(DELETED_GROUPS.c.gid).where(DELETED_GROUPS.c.is_done)))
    return [gid for gid in gids if uid in (pair_of(gid) or ())]


def forget_deleted(database: Database, gids: Sequence[str]) -> None:
    """Forget deletions, once no journal entry is about these groups."""
    with database.writing() as connection:
        for batch in batches(gids, PAGE):
            connection.execute(delete(DELETED_GROUPS).where(DELETED_GROUPS.c.gid.in_(batch)))


def open_spans(database: Database, alias: str) -> list[SpanRow]:
    """Return the spans of an erased user that SQL does not know to have ended."""
    c = GROUP_SPANS.c
    return [SpanRow(*row) for row in database.fetch(select(*_SPAN).where(c.uid == alias, c.left_msgid.is_(None)))]


def empty_messages(database: Database, uid: str, alias: str, gid: str | None = None) -> Iterator[int]:
    """Remove names and texts of a user's messages, of all groups or of one; yield how many, page by page."""
    c = GROUP_MSGS.c
    wanted = and_(c.sender_uid == uid, c.gid == gid) if gid is not None else c.sender_uid == uid
    page = select(c.gid, c.msgid).where(wanted).limit(PAGE)
    values = {"sender_uid": alias, "client_msgid": None, "meta": None, "content": ""}
    changed = PAGE
    while changed == PAGE:
        with _erasing(database, uid, alias) as connection:
            keys = connection.execute(page).all()
            for gid_of_page in {key[0] for key in keys}:
                msgids = [msgid for key_gid, msgid in keys if key_gid == gid_of_page]
                connection.execute(update(GROUP_MSGS).where(c.gid == gid_of_page, c.msgid.in_(msgids)).values(values))
        changed = len(keys)
        yield changed


def rename_moves(database: Database, uid: str, alias: str, gids: Sequence[str]) -> Iterator[int]:
    """Replace the name in the read times of some groups; yield how many rows were looked at, page by page."""
    key = tuple(OFFSET_MOVES.primary_key)
    for gid in gids:
        after: Sequence[Any] = ()
        while True:
            query = select(*key, OFFSET_MOVES.c.uids).where(OFFSET_MOVES.c.gid == gid).order_by(*key).limit(PAGE)
            rows = database.fetch(query.where(tuple_(*key) > tuple_(*after)) if after else query)
            changed = [row[:-1] for row in rows if moves.names(row[-1], uid)]
            for batch in batches(changed, PAGE):
                with _erasing(database, uid, alias) as connection:
                    for row_key in batch:
                        _rename_cell(connection, row_key, uid, alias)
            yield len(rows)
            if len(rows) < PAGE:
                break
            after = rows[-1][:-1]


def _rename_cell(connection: Connection, key: Sequence[Any], uid: str, alias: str) -> None:
    c = OFFSET_MOVES.c
    here = tuple_(*OFFSET_MOVES.primary_key) == tuple_(*key)
    now = connection.execute(select(c.uids).where(here).with_for_update()).scalar()  # workers may add lines
    if now is not None:
        connection.execute(update(OFFSET_MOVES).where(here).values(uids=moves.renamed(now, uid, alias)))


def rename_group(database: Database, uid: str, alias: str, gid: str, new_gid: str) -> None:
    """Let all rows of a one-to-one chat of a user have another gid. Rows that have it already get what is new."""
    _rename_messages(database, uid, alias, gid, new_gid)
    while rows := _written_spans(database, GROUP_SPANS.c.gid == gid, gid=new_gid):
        with _erasing(database, uid, alias) as connection:
            for row in rows:
                connection.execute(delete(GROUP_SPANS).where(tuple_(*row[:3]) == _SPAN_KEY))
    names = {"gid": gid, "new_gid": new_gid}
    with _erasing(database, uid, alias) as connection:
        for statement in _RENAMES:
            connection.execute(text(statement), names)
        for table in (OFFSET_MOVES, BOOKMARKS, CHAT_GROUPS):
            connection.execute(delete(table).where(table.c.gid == gid))


_RENAMES = (
    f"""INSERT INTO offset_moves (gid, reach, msgid, entry, start, uids)
    SELECT :new_gid, reach, msgid, entry, start, uids FROM offset_moves WHERE gid = :gid
    ON CONFLICT (gid, reach, msgid, entry, start) DO UPDATE SET {moves.ADD_LINE}""",  # noqa: S608 (our own words)
    """INSERT INTO bookmarks (gid, uid, joined_msgid, private_msgid, mark_msgid, changed)
    SELECT :new_gid, uid, joined_msgid, private_msgid, mark_msgid, changed FROM bookmarks WHERE gid = :gid
    ON CONFLICT (gid, uid) DO NOTHING""",
    """INSERT INTO chat_groups (gid, created_at, receipts, asked_by, policy_changed)
    SELECT :new_gid, created_at, receipts, asked_by, policy_changed FROM chat_groups WHERE gid = :gid
    ON CONFLICT (gid) DO NOTHING""",
)


def _rename_messages(database: Database, uid: str, alias: str, gid: str, new_gid: str) -> None:
    c, twin = GROUP_MSGS.c, GROUP_MSGS.alias()
    doubled = select(twin.c.msgid).where(twin.c.gid == new_gid)
    with _erasing(database, uid, alias) as connection:
        connection.execute(delete(GROUP_MSGS).where(c.gid == gid, c.msgid.in_(doubled)))
    page = select(c.msgid).where(c.gid == gid).limit(PAGE)
    changed = PAGE
    while changed == PAGE:
        with _erasing(database, uid, alias) as connection:
            msgids = [msgid for (msgid,) in connection.execute(page)]
            connection.execute(update(GROUP_MSGS).where(c.gid == gid, c.msgid.in_(msgids)).values(gid=new_gid))
        changed = len(msgids)
