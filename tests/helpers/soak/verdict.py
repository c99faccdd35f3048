"""The state that must be there in the end, built from the answers to the talkers, in the form of the brute-force model.

Messages are what SQL holds, once that was compared with the answers to the talkers. A guest's spans are those of SQL,
once each has been found to begin and end where the guest came and went. Offsets are those of the last acks.
"""

import random
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from tests.helpers.soak.diary import Diary, Turn
from tests.helpers.soak.script import Scene
from tests.model.reference import ModelGroup, ModelMessage, ModelSpan

Local = list[tuple[str, str | None, str, str | None]]
"""A local database, a line a message: gid, msgid, content, and its state if it is one's own."""


class Written(NamedTuple):
    """A message that was put into a listener's outbox."""

    gid: str
    uid: str
    client_msgid: str
    content: str


class Stay(NamedTuple):
    """A membership as a talker knows it: how the guest came (None: from the beginning) and went (None: not yet)."""

    came: Turn | None
    went: Turn | None

    def fits(self, span: ModelSpan) -> bool:
        """Whether it may be this span."""
        from_first, from_last = _bounds(self.came, 0)
        began = from_first <= span.joined <= from_last
        if self.went is None or span.left is None:
            return began and self.went is None and span.left is None
        first, last = _bounds(self.went, 0)
        return began and first <= span.left <= last

    @property
    def may_be_empty(self) -> bool:
        """Whether perhaps no message was sent during it: then no system keeps it."""
        return self.went is not None and self.went.earliest <= _bounds(self.came, 0)[1]


def group_as_told(
    chat: Chat, scene: Scene, listeners: Collection[str], diaries: Sequence[Diary], written: Sequence[Written]
) -> ModelGroup:
    """The group, with the offsets that the members have now, after everything is stored."""
    messages = _messages(chat, scene.gid)
    _hold_to_what_was_told(scene, messages, diaries, written)
    seqs = {message.msgid: message.seq for message in messages}
    group = ModelGroup(messages, _spans(chat, scene.gid, seqs))
    _hold_to_stays(group, scene, diaries, listeners)
    return group


def ack_once_more(chat: Chat, gid: str, group: ModelGroup, listeners: Collection[str], chance: random.Random) -> None:
    """Let every member ack some message for the last time; only listeners have acked all by themselves."""
    for span in group.spans:
        if span.left is None:
            span.acked = group.newest if span.uid in listeners else chance.randint(span.acked, group.newest)
            if span.acked and span.uid not in listeners:
                ack = chat.ack(span.uid, gid, group.msgid(span.acked))
                assert ack.last_ack_msgid == group.msgid(span.acked), ack


def local_as_due(groups: dict[str, ModelGroup], uid: str) -> Local:
    """What a listener's local database has to hold: everything, once and in order, and the tallies of their own."""
    due = [
        (gid, message.msgid, message.content, _state(group, message) if message.sender_uid == uid else None)
        for gid, group in groups.items()
        for message in group.messages
    ]
    return sorted(due, key=lambda line: (msgids.pack(line[1]), line[0]))


def compare_view(chat: Chat, gid: str, group: ModelGroup) -> None:
    """The tallies that `msg_acks` gives. Its rows are too many to compare each with the model."""
    query = text(
        "SELECT msgid, count(*), sum(CASE WHEN if_ack THEN 1 ELSE 0 END) FROM msg_acks WHERE gid = :gid GROUP BY msgid"
    )
    with chat.system.database.connection() as connection:
        view_counts = {
            msgids.unpack(msgid): (read, total - read) for msgid, total, read in connection.execute(query, {"gid": gid})
        }
    tallies = {message.msgid: tally(group, message) for message in group.messages}
    assert view_counts == {msgid: counts for msgid, counts in tallies.items() if sum(counts)}


def tally(group: ModelGroup, message: ModelMessage) -> tuple[int, int]:
    """The numbers of those who have read a message, and of those who have not."""
    receipts = list(group.receipts(message).values())
    return sum(receipts), len(receipts) - sum(receipts)


def _state(group: ModelGroup, message: ModelMessage) -> str:
    read, unread = tally(group, message)
    if not read:
        return "stored"
    return f"read {read}/{read + unread}" if unread else "read by all"


def _messages(chat: Chat, gid: str) -> list[ModelMessage]:
    query = "SELECT msgid, seq, sender_uid, content, client_msgid FROM group_msgs WHERE gid = :gid ORDER BY msgid"
    return [ModelMessage(msgids.unpack(msgid), *values) for msgid, *values in _rows(chat, query, gid)]


def _spans(chat: Chat, gid: str, seqs: dict[str, int]) -> list[ModelSpan]:
    query = (
        "SELECT uid, joined_msgid, left_msgid, acked_msgid FROM group_spans"
        " WHERE gid = :gid AND (left_msgid IS NULL OR left_msgid > joined_msgid) ORDER BY uid, joined_msgid"
    )

    def seq_at(packed: int) -> int:
        return seqs[msgids.unpack(packed)] if packed else 0

    return [
        ModelSpan(uid, seq_at(joined), None if left is None else seq_at(left), seq_at(acked))
        for uid, joined, left, acked in _rows(chat, query, gid)
    ]


def _rows(chat: Chat, query: str, gid: str) -> Sequence[Any]:
    with chat.system.database.connection() as connection:
        return connection.execute(text(query), {"gid": gid}).all()


def _hold_to_what_was_told(
    scene: Scene, messages: Sequence[ModelMessage], diaries: Sequence[Diary], written: Sequence[Written]
) -> None:
    """Check that seqs are dense, no message is there twice or unsent, and all confirmed ones are in order."""
    assert [message.seq for message in messages] == list(range(1, len(messages) + 1))
    stored = {(message.sender_uid, message.client_msgid): message for message in messages}
    assert len(stored) == len(messages), "a message is there twice"
    contents = {(line.uid, line.client_msgid): line.content for line in scene.lines}
    said = {(each.uid, each.client_msgid) for diary in diaries for each in diary.said if each.gid == scene.gid}
    expected = {(uid, cid): contents[uid, cid.partition(".")[2]] for uid, cid in said}
    queued = {(each.uid, each.client_msgid): each.content for each in written if each.gid == scene.gid}
    assert {key: message.content for key, message in stored.items() if key not in queued}.items() <= expected.items()
    assert {key: stored[key].content for key in queued if key in stored} == queued, "the outbox lost a message"
    for diary in diaries:
        confirmed = [
            (diary.answers[each.gid, each.client_msgid], stored.get((each.uid, each.client_msgid)))
            for each in diary.said
            if each.gid == scene.gid and (each.gid, each.client_msgid) in diary.answers
        ]
        for answer, message in confirmed:
            assert message is not None, f"lost: {answer}"
            assert (message.msgid, message.seq) == answer
        assert sorted(confirmed, key=lambda each: each[0].seq) == confirmed


def _hold_to_stays(group: ModelGroup, scene: Scene, diaries: Sequence[Diary], listeners: Collection[str]) -> None:
    """Each span is where its guest came and went, with an offset that the guest's acks allow."""
    seqs = {message.msgid: message.seq for message in group.messages}
    stays = _stays({*scene.speakers, *scene.guests, *listeners}, scene.gid, diaries)
    assert {span.uid for span in group.spans} <= stays.keys()
    attempts, answers = _acks(scene.gid, diaries, seqs)
    for message in group.messages:
        attempts.setdefault(message.sender_uid, []).append(message.seq)  # who is caught up stays caught up
    for uid, uid_stays in stays.items():
        spans = [span for span in group.spans if span.uid == uid]
        for stay in uid_stays:
            if spans and stay.fits(spans[0]):
                span = spans.pop(0)
                if uid not in listeners:  # who ack by sessions
                    _hold_to_acks(span, stay, seqs, attempts.get(uid, []), answers.get(uid, []))
            else:
                assert stay.may_be_empty, f"{scene.gid} {uid}: {stay} is not {spans[:1]}"
        assert not spans, f"{scene.gid} {uid}: nobody knows of {spans}"


def _hold_to_acks(
    span: ModelSpan, stay: Stay, seqs: dict[str, int], attempts: Sequence[int], answers: Sequence[int]
) -> None:
    if stay.came:
        assert span.joined == _seq_of(stay.came.position, seqs)
    if stay.went:
        assert span.acked == _seq_of(stay.went.position, seqs)
        return
    assert max([span.joined, *answers]) <= span.acked, f"{span} is behind what was confirmed"
    assert span.acked <= max([span.joined, *attempts]), f"{span} is past all that was acked"


def _stays(uids: Collection[str], gid: str, diaries: Sequence[Diary]) -> dict[str, list[Stay]]:
    turns = [turn for diary in diaries for turn in diary.turns if turn.gid == gid]
    stays = {}
    for uid in uids:
        ends = [None, *(turn for turn in turns if turn.uid == uid), None]
        stays[uid] = [Stay(came, went) for came, went in zip(ends[::2], ends[1::2], strict=False)]
    return stays


def _acks(
    gid: str, diaries: Sequence[Diary], seqs: dict[str, int]
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """The seqs that were acked, and those that were answered, by uid."""
    attempts: dict[str, list[int]] = {}
    answers: dict[str, list[int]] = {}
    for diary in diaries:
        for by_uid, noted in ((attempts, diary.acking), (answers, diary.acked)):
            for where, uid, msgid in noted:
                if where == gid:
                    by_uid.setdefault(uid, []).append(_seq_of(msgid, seqs))
    return attempts, answers


def _seq_of(msgid: str | None, seqs: dict[str, int]) -> int:
    return seqs[msgid] if msgid else 0


def _bounds(turn: Turn | None, default: int) -> tuple[int, int]:
    if turn is None:
        return default, default
    assert turn.latest is not None
    return turn.earliest, turn.latest
