"""Compares the system with the model: live from Redis, and again from SQL."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import NotAllowed
from imcore.model.values import Group, Member, Message, Tally, Unread
from imcore.sql.database import Database
from tests.helpers.plain_history import scroll_back, scroll_on
from tests.model.reference import Model, ModelGroup, ModelMessage


def compare_all(chat: Chat, model: Model, *, every: int = 1, page: int = 3) -> None:
    """Everything that can be asked of the live system; of all messages and users, or of each `every`-th one.

    `page`: how many messages a page of history has.
    """
    assert [group.gid for group in chat.groups()] == sorted(model.groups)
    for gid, group in model.groups.items():
        compare_group(chat, model, gid)
        compare_offsets(chat, model, gid)
        compare_names(chat, model, gid, group.messages[::-every])
        for uid in group.members()[::every]:
            compare_what_is_told(chat, model, gid, uid)
    for uid in model.uids()[::every]:
        compare_user(chat, model, uid)
        compare_inbox(chat, model, uid)
        for gid in model.groups_of(uid):
            visible = model.visible(uid, gid)
            assert [same_form(message) for message in scroll_back(chat, uid, gid, page)] == visible
            assert [same_form(message) for message in scroll_on(chat, uid, gid, page + 1)] == visible


def compare_group(chat: Chat, model: Model, gid: str) -> None:
    """A group, its members with their offsets and unread counts, and the tally of every message."""
    group = model.groups[gid]
    uids = group.members()
    assert chat.group(gid) == Group(gid, len(uids), group.newest, group.msgid(group.newest))
    assert list(chat.members(gid)) == [
        Member(gid, uid, group.msgid(group.current(uid).acked), model.unread_for_others(uid, gid), online=False)
        for uid in uids
    ]
    tallies = chat.status(gid, limit=0)
    assert [same_form(tally.message) for tally in tallies] == group.messages
    counts = [_tally(group, message) for message in group.messages]
    assert [(tally.read, tally.unread, tally.delivered) for tally in tallies] == counts


def compare_offsets(chat: Chat, model: Model, gid: str) -> None:
    """What any Redis tool sees: a consumer group for each member and no other, at the member's offset."""
    group, stream = model.groups[gid], chat.system.client.space.group(gid).stream
    infos = chat.system.client.driver.xinfo_groups(stream) if chat.system.client.driver.exists(stream) else []
    assert {info["name"].decode(): info["last-delivered-id"].decode() for info in infos} == {
        uid: group.msgid(group.current(uid).acked) or "0-0" for uid in group.members()
    }


def compare_names(chat: Chat, model: Model, gid: str, messages: Sequence[ModelMessage]) -> None:
    """Who has read each message and who has not."""
    group = model.groups[gid]
    for message in messages:
        receipts = group.receipts(message)
        status = chat.message_status(gid, message.msgid)
        assert same_form(status.message) == message
        assert chat.tally(gid, message.msgid) == Tally(gid, message.msgid, *_tally(group, message))
        assert [reader.uid for reader in status.read_by] == sorted(uid for uid, read in receipts.items() if read)
        assert list(status.unread_by) == sorted(uid for uid, read in receipts.items() if not read)
        arrived = group.deliveries(message).items()
        assert list(status.delivered_to) == sorted(uid for uid, has_arrived in arrived if has_arrived)


def _tally(group: ModelGroup, message: ModelMessage) -> tuple[int, int, int]:
    read = list(group.receipts(message).values())
    return sum(read), len(read) - sum(read), sum(group.deliveries(message).values())


def compare_read_times(chat: Chat, model: Model, gid: str, *, every: int = 1) -> None:
    """When messages were read, once `persist` has stored all: one time for each ack, in the order of the acks."""
    group = model.groups[gid]
    times: list[tuple[int, datetime]] = []
    for message in group.messages[::-every]:
        by_ack = group.read_by_ack(message)
        for reader in chat.message_status(gid, message.msgid).read_by:
            assert reader.read_at is not None
            assert reader.read_at >= msgids.time_of(message.msgid)
            times.append((by_ack[reader.uid], reader.read_at))
    of_ack = dict(times)
    assert all(of_ack[ack] == time for ack, time in times)
    assert sorted(of_ack.values()) == [of_ack[ack] for ack in sorted(of_ack)]


def compare_user(chat: Chat, model: Model, uid: str) -> None:
    """A user's groups, and what they have to pull and to read in them."""
    gids = model.groups_of(uid)
    assert chat.groups_of(uid) == gids
    assert [same_form(message) for message in chat.pull(uid)] == [m for gid in gids for m in model.pull(uid, gid)]
    assert chat.unread(uid) == [_unread(model, uid, gid) for gid in gids]


def compare_what_is_told(chat: Chat, model: Model, gid: str, by: str) -> None:
    """What a member is told about readers."""
    group = model.groups[gid]
    if group.receipts_policy == "off":
        with pytest.raises(NotAllowed):
            chat.status(gid, by=by)
        return
    asked = [message for message in group.messages if model.may_ask(gid, by, message)]
    assert [tally.message.msgid for tally in chat.status(gid, limit=0, by=by)] == [m.msgid for m in asked]
    for message in asked[-2:]:
        status = chat.message_status(gid, message.msgid, by=by)
        assert (status.read, status.unread, status.delivered) == _tally(group, message)
        assert status.has_names == model.knows_names(gid, by)


def compare_inbox(chat: Chat, model: Model, uid: str) -> None:
    """A user's inbox, page by page, with the totals of each page."""
    expected = model.inbox(uid)
    unread = [line[1] for line in expected]
    assert _inbox(chat, uid, unread, 2, unread_only=False) == expected
    assert _inbox(chat, uid, unread, 1, unread_only=True) == [line for line in expected if line[1]]


def _inbox(chat: Chat, uid: str, unread: list[int], limit: int, *, unread_only: bool) -> list[Any]:
    lines: list[Any] = []
    after: str | None = None
    while True:
        page = chat.inbox(uid, limit=limit, after=after, unread_only=unread_only)
        assert (page.groups, page.unread_groups, page.unread) == (
            len(unread),
            len(list(filter(None, unread))),
            sum(unread),
        )
        for entry in page.entries:
            message = same_form(entry.message) if entry.message else None
            lines.append((entry.gid, entry.unread, entry.marked, entry.first_unread_msgid, message))
        if page.next is None:
            return lines
        assert len(page.entries) == limit
        after = page.next


def _unread(model: Model, uid: str, gid: str) -> Unread:
    group = model.groups[gid]
    span = group.current(uid)
    positions = group.msgid(group.newest), group.msgid(span.acked)
    return Unread(gid, model.unread(uid, gid), *positions, marked=span.mark is not None)


def compare_sql(database: Database, model: Model) -> None:
    """The tables and views that other programs read, once `persist` has stored all that happened."""
    with database.connection() as connection:
        messages = connection.execute(text("SELECT gid, msgid, sender_uid, content, meta FROM group_msgs"))
        assert sorted(((*row[:4], json.loads(row[4] or "null")) for row in messages), key=str) == sorted(
            (
                (gid, msgids.pack(m.msgid), m.sender_uid, m.content, m.meta)
                for gid, g in model.groups.items()
                for m in g.messages
            ),
            key=str,
        )
        members = connection.execute(text("SELECT gid, uid, last_ack_msgid, last_delivered_msgid FROM group_users"))
        assert sorted(map(tuple, members), key=str) == sorted(_members(model), key=str)
        bookmarks = connection.execute(
            text(
                "SELECT gid, uid, private_msgid, mark_msgid FROM bookmarks "
                "JOIN group_users USING (gid, uid, joined_msgid) WHERE private_msgid > 0 OR mark_msgid > 0"
            )
        )
        assert sorted(map(tuple, bookmarks)) == sorted(_bookmarks(model))
        acks = connection.execute(text("SELECT gid, msgid, sender_uid, recv_uid, if_ack, if_delivered FROM msg_acks"))
        # Lists, so that a receipt that is there twice is seen
        assert sorted((*row[:4], bool(row[4]), bool(row[5])) for row in acks) == sorted(_receipts(model))


def same_form(message: Message) -> ModelMessage:
    """A message of the system in the model's form."""
    return ModelMessage(
        message.msgid,
        message.seq,
        message.sender_uid,
        message.content,
        message.client_msgid,
        message.recalled,
        message.recalls,
        None if message.meta is None else dict(message.meta),
    )


def _members(model: Model) -> list[tuple[str, str, int | None, int | None]]:
    rows = []
    for gid, group in model.groups.items():
        for uid in group.members():
            span = group.current(uid)
            offset, arrived = (
                msgids.pack(msgid) if (msgid := group.msgid(seq)) else None for seq in (span.acked, span.delivered)
            )
            rows.append((gid, uid, offset, arrived))
    return rows


def _bookmarks(model: Model) -> list[tuple[str, str, int, int]]:
    """Those that say anything: read in private past the offset, or a mark, as the position just before its message."""
    rows = []
    for gid, group in model.groups.items():
        for uid in group.members():
            span = group.current(uid)
            private = msgids.pack(group.messages[span.private - 1].msgid) if span.private > span.acked else 0
            mark = 0 if span.mark is None else msgids.pack(group.messages[span.mark].msgid) - 1
            if private or mark:
                rows.append((gid, uid, private, mark))
    return rows


def _receipts(model: Model) -> list[tuple[str, int, str, str, bool, bool]]:
    rows = []
    for gid, group in model.groups.items():
        for message in group.messages:
            arrived = group.deliveries(message)
            facts = gid, msgids.pack(message.msgid), message.sender_uid
            rows += [(*facts, uid, read, arrived[uid]) for uid, read in group.receipts(message).items()]
    return rows
