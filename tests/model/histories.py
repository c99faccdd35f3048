"""Random histories: a state machine that plays each step on a Chat and on the model, and compares the two."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import ImError, InvalidInput
from imcore.model.values import Draft, Message
from tests.helpers.plain_history import PlainPage, page_of, plain_page
from tests.model.compare import compare_all, compare_group, compare_inbox, compare_names, compare_user, same_form
from tests.model.reference import Model, ModelGroup, ModelMessage

GIDS = ("#ubuntu", "{0}", "群主")
UIDS = ("a:b", "[red]eve[/red]", "o'neil", "群主", "{0}")
MALFORMED = (
    *("", "0", "0-0", "1-", "$", "+", "-1-0", "1767225600000", "1767225600000-0-0"),
    *("\uff11-\uff10", "99999999999999-0"),
)
AHEAD = (1, 2, msgids.first_at(msgids.EPOCH_MS + 1))
"""The next counters of the same millisecond, and the next millisecond (packed)."""

_gid = st.sampled_from(GIDS)
_uid = st.sampled_from(UIDS)
_uids = st.lists(_uid, max_size=4)
_content = st.sampled_from(["hi", "two\nlines", "\x1b[2J", "👍🏽", "x" * 200])
_client_msgid = st.none() | st.sampled_from(["1", "2", "c 3"])
_meta = st.none() | st.sampled_from([{}, {"kind": "image", "re\x1f": [1, None, {"群": "\x1e"}]}, {"x": "y" * 300}])
_back = st.integers(0, 12)
_where = st.sampled_from(["newest", "before", "after", "around", "first_unread"])

STEPS: dict[str, tuple[int, tuple[st.SearchStrategy[Any], ...]]] = {
    "create_group": (1, (_gid, _uids)),
    "join": (3, (_gid, _uids)),
    "leave": (3, (_gid, _uids)),
    "leave_and_return": (2, (_gid, _uid)),
    "send": (4, (_gid, _uid, _content, _client_msgid, _meta)),
    "send_again": (3, (_gid, _back)),
    "send_direct": (1, (_uid, _uid, _content, _client_msgid, _meta)),
    "ack_direct": (1, (_uid, _uid)),
    "talk": (4, (_gid, st.integers(1, 4))),
    "send_many": (2, (_gid, _uid, st.integers(2, 4))),
    "ack": (8, (_gid, _uid, _back)),
    "ack_all": (2, (_gid, _uid)),
    "ack_in_private": (3, (_gid, _uid, _back)),
    "arrive": (6, (_gid, _uid, _back)),
    "arrive_in_order": (4, (_gid, _uid, st.integers(1, 4))),
    "mark": (3, (_gid, _uid, _back)),
    "mark_and_ack_before": (2, (_gid, _uid, st.integers(0, 2))),
    "unmark": (1, (_gid, _uid)),
    "set_policy": (1, (_gid, st.sampled_from(["names", "counts", "off"]), st.sampled_from(["sender", "members"]))),
    "set_receipts": (1, (_uid, st.booleans())),
    "recall": (2, (_gid, _uid, _back, st.booleans())),
    "ack_of_no_message": (1, (_gid, _uid, st.integers(0, 3), _gid, st.sampled_from(AHEAD))),
    "ack_malformed": (1, (_gid, _uid, st.sampled_from(MALFORMED))),
    "pull": (1, (_gid, _uid, st.integers(1, 4))),
    "page": (4, (_gid, _uid, _where, _back, st.integers(-1, 1), st.integers(1, 7))),
    "newest": (1, (_gid, st.integers(1, 4))),
    "ask_for_a_message": (1, (_gid, _gid, st.integers(0, 3))),
}
"""How often each step is taken, and what it is given."""


def one_of(steps: dict[str, tuple[int, tuple[st.SearchStrategy[Any], ...]]]) -> st.SearchStrategy[tuple[Any, ...]]:
    """A step: its name and what it is given.

    This instead of a rule for each: of many rules Hypothesis leaves out some at random in each history, and a history
    without sends or without acks says little.
    """
    names = [name for name, (weight, _) in steps.items() for _ in range(weight)]
    return st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), *steps[name][1]))


class Histories(RuleBasedStateMachine):
    """Steps anybody could take, wrong ones too. What a step touched is compared after it; all of it at the end.

    Of the inboxes, whose pages take as many calls as all the rest, one is compared after each step: the users take
    turns.
    """

    def __init__(self, open_chat: Callable[[], Chat]) -> None:
        super().__init__()
        self.chat = open_chat()
        self.model = Model()
        self.direct: dict[frozenset[str], str] = {}
        self.touched: set[str] = set()
        self.turns = count()

    def teardown(self) -> None:
        try:
            compare_all(self.chat, self.model)
        finally:
            self.chat.close()

    @initialize()
    def begin(self) -> None:
        """Two groups, one of them with something said in it, so that most steps have something to work on."""
        self.create_group(GIDS[0], UIDS[:3])
        self.create_group(GIDS[1], UIDS[1:])
        self.talk(GIDS[0], 3)

    @rule(step=one_of(STEPS))
    def take(self, step: tuple[Any, ...]) -> None:
        name, *arguments = step
        getattr(self, name)(*arguments)

    @invariant()
    def what_was_touched_agrees(self) -> None:
        for gid in self.touched & self.model.groups.keys():
            compare_group(self.chat, self.model, gid)
            # The oldest, which newer spans must not disturb, and the newest; all of them at the end
            messages = self.model.groups[gid].messages
            compare_names(self.chat, self.model, gid, messages[:2] + messages[2:][-2:])
        uids = self.model.uids() if self.touched else []
        for uid in uids:
            compare_user(self.chat, self.model, uid)
        if uids:
            compare_inbox(self.chat, self.model, uids[next(self.turns) % len(uids)])
        self.touched.clear()

    def create_group(self, gid: str, uids: Sequence[str]) -> None:
        self.both(gid, lambda: self.chat.create_group(gid, uids), lambda: self.model.create_group(gid, uids))

    def join(self, gid: str, uids: Sequence[str]) -> None:
        self.both(gid, lambda: self.chat.add_members(gid, uids), lambda: self.model.add_members(gid, uids))

    def leave(self, gid: str, uids: Sequence[str]) -> None:
        self.both(gid, lambda: self.chat.remove_members(gid, uids), lambda: self.model.remove_members(gid, uids))

    def leave_and_return(self, gid: str, uid: str) -> None:
        self.leave(gid, [uid])
        self.join(gid, [uid])

    def send(
        self, gid: str, uid: str, content: str, client_msgid: str | None, meta: dict[str, Any] | None = None
    ) -> None:
        """A send by anybody: refused, or a repeat of an earlier one, or a new message."""

        def system() -> Message:
            return self.chat.send(gid, content, sender_uid=uid, client_msgid=client_msgid, meta=meta)

        refused = refusal(lambda: self.model.group(gid).current(uid))
        if refused and not self.model.stored(gid, uid, client_msgid):
            self.touched.add(gid)
            assert refusal(system) == refused
        else:
            self.said(system(), gid, uid, content, client_msgid, meta)

    def send_again(self, gid: str, back: int) -> None:
        """Repeat an earlier send, as one who got no answer does; the sender may have left meanwhile."""
        repeatable = [message for message in self.model.groups.get(gid, ModelGroup()).messages if message.client_msgid]
        if repeatable:
            message = repeatable[-1 - back % len(repeatable)]
            self.send(gid, message.sender_uid, "said again", message.client_msgid)

    def send_direct(
        self, uid: str, to: str, content: str, client_msgid: str | None, meta: dict[str, Any] | None
    ) -> None:
        """The chat of two users is one and the same whoever of them writes, and no other group."""
        message = self.chat.send_direct(to, content, sender_uid=uid, client_msgid=client_msgid, meta=meta)
        gid = self.direct.setdefault(frozenset((uid, to)), message.gid)
        assert len({*self.direct.values(), *GIDS}) == len(self.direct) + len(GIDS)
        self.model.create_group(gid, {uid, to})
        self.said(message, gid, uid, content, client_msgid, meta)

    def said(
        self,
        message: Message,
        gid: str,
        uid: str,
        content: str,
        client_msgid: str | None,
        meta: dict[str, Any] | None,
    ) -> None:
        """Compare the answer of a send with the model, which takes the msgid of a new message from it."""
        self.touched.add(gid)
        assert message.gid == gid
        newest = self.message(gid, 0)
        expected = self.model.stored(gid, uid, client_msgid)
        if expected is None:
            expected = self.model.send(gid, uid, content, client_msgid, message.msgid, meta)
            assert newest is None or msgids.pack(newest.msgid) < msgids.pack(message.msgid)
        assert same_form(message) == expected
        assert message.recipients == len(self.model.groups[gid].receipts(expected))

    def ack_direct(self, uid: str, other: str) -> None:
        gid = self.direct.get(frozenset((uid, other)))
        if gid:
            self.confirm(gid, uid, None)

    def talk(self, gid: str, times: int) -> None:
        """The members send messages in turn; nobody else has pulled any of them yet."""
        group = self.model.groups.get(gid, ModelGroup())
        members = group.members()
        for number in range(times if members else 0):
            self.send(gid, members[number % len(members)], "spoken", f"after {group.newest}")

    def send_many(self, gid: str, uid: str, count: int) -> None:
        """Several messages in one call: mostly of one millisecond, with ids next to each other."""
        if refusal(lambda: self.model.group(gid).current(uid)):
            return
        for sent in self.chat.send_many(gid, [Draft(uid, "of many")] * count):
            assert isinstance(sent, Message)
            self.said(sent, gid, uid, "of many", None, None)

    def ack(self, gid: str, uid: str, back: int) -> None:
        """Ack the message that is this many before the newest; where there is none, ack the newest."""
        message = self.message(gid, back)
        self.confirm(gid, uid, message.msgid if message else None)

    def recall(self, gid: str, uid: str, back: int, admin: bool) -> None:
        """Recall the message that is this many before the newest: by its sender, a stranger or an administrator."""
        message = self.message(gid, back)
        if message is None:
            return
        self.touched.add(gid)

        def system() -> Message:
            return self.chat.recall(gid, message.msgid, by=uid, admin=admin)

        refused = refusal(lambda: self.model.check_recall(gid, message.msgid, uid, admin=admin))
        if refused:
            assert refusal(system) == refused
        elif self.model.check_recall(gid, message.msgid, uid, admin=admin):
            tombstone = system()
            assert same_form(tombstone) == self.model.recall(gid, message.msgid, uid, tombstone.msgid)
        else:
            assert same_form(system()) == message

    def ack_all(self, gid: str, uid: str) -> None:
        self.confirm(gid, uid, None)

    def ack_of_no_message(self, gid: str, uid: str, back: int, other: str, ahead: int) -> None:
        """A msgid of another group, or just after that of a message. By chance a message may have it all the same."""
        message = self.message(other, back)
        if message:
            near = msgids.unpack(msgids.pack(message.msgid) + ahead)
            self.confirm(gid, uid, near if gid == other else message.msgid)

    def ack_malformed(self, gid: str, uid: str, msgid: str) -> None:
        self.touched.add(gid)
        assert refusal(lambda: self.chat.ack(uid, gid, msgid)) is InvalidInput

    def pull(self, gid: str, uid: str, limit: int) -> None:
        self.both(
            gid,
            lambda: [same_form(message) for message in self.chat.pull(uid, gid, limit=limit)],
            lambda: self.model.pull(uid, gid, limit),
        )

    def page(self, gid: str, uid: str, where: str, back: int, beside: int, limit: int) -> None:
        """A page of history, at or beside a message of the group, or where there is none."""
        message = self.message(gid, back)
        cursor = msgids.unpack(msgids.pack(message.msgid) + beside) if message else "1767225600000-0"
        at: dict[str, Any] = {where: True if where == "first_unread" else cursor} if where != "newest" else {}

        def system() -> PlainPage[ModelMessage]:
            messages, older, newer = page_of(self.chat, uid, gid, limit, **at)
            return list(map(same_form, messages)), older, newer

        def model() -> PlainPage[ModelMessage]:
            visible = self.model.visible(uid, gid)
            if where != "first_unread":
                return plain_page(visible, limit, **at)
            unread = self.model.unread_messages(uid, gid)
            return plain_page(visible, limit, around=unread[0].msgid) if unread else plain_page(visible, limit)

        self.both(gid, system, model)

    def newest(self, gid: str, limit: int) -> None:
        self.both(
            gid,
            lambda: [same_form(tally.message) for tally in self.chat.status(gid, limit=limit)],
            lambda: self.model.group(gid).messages[-limit:],
        )

    def ask_for_a_message(self, gid: str, other: str, back: int) -> None:
        message = self.message(other, back)
        if message:
            self.both(
                gid,
                lambda: same_form(self.chat.message_status(gid, message.msgid).message),
                lambda: self.model.group(gid).with_msgid(message.msgid),
            )

    def confirm(self, gid: str, uid: str, msgid: str | None) -> None:
        def system() -> tuple[str | None, bool]:
            ack = self.chat.ack(uid, gid, msgid)
            assert (ack.gid, ack.uid) == (gid, uid)
            return ack.last_ack_msgid, ack.advanced

        self.both(gid, system, lambda: self.model.ack(gid, uid, msgid))

    def ack_in_private(self, gid: str, uid: str, back: int) -> None:
        message = self.message(gid, back)
        msgid = message.msgid if message else None

        def system() -> tuple[str | None, bool]:
            ack = self.chat.ack(uid, gid, msgid, private=True)
            return ack.last_ack_msgid, ack.advanced

        self.both(gid, system, lambda: self.model.ack_in_private(gid, uid, msgid))

    def arrive(self, gid: str, uid: str, back: int) -> None:
        """One message comes to a client, perhaps past others that have not."""
        message = self.message(gid, back)
        if message:
            self.arrived(gid, uid, message.msgid)

    def arrive_in_order(self, gid: str, uid: str, times: int) -> None:
        """The next messages come to a client."""
        group = self.model.groups.get(gid, ModelGroup())
        if uid in group.members():
            delivered = group.current(uid).delivered
            for message in group.messages[delivered : delivered + times]:
                self.arrived(gid, uid, message.msgid)

    def arrived(self, gid: str, uid: str, msgid: str) -> None:
        def system() -> tuple[str | None, bool]:
            delivery = self.chat.delivered(uid, gid, msgid)
            return delivery.last_delivered_msgid, delivery.advanced

        self.both(gid, system, lambda: self.model.delivered(gid, uid, msgid))

    def mark(self, gid: str, uid: str, back: int) -> None:
        message = self.message(gid, back)
        if message:
            self.both(
                gid,
                lambda: self.chat.mark_unread(uid, gid, message.msgid).unread,
                lambda: self.model.mark_unread(gid, uid, message.msgid),
            )

    def mark_and_ack_before(self, gid: str, uid: str, back: int) -> None:
        """An ack of the message before the marked one leaves the mark, of whatever milliseconds they are."""
        self.mark(gid, uid, back)
        self.ack(gid, uid, back + 1)

    def unmark(self, gid: str, uid: str) -> None:
        self.both(gid, lambda: self.chat.unmark(uid, gid).unread, lambda: self.model.unmark(gid, uid))

    def set_policy(self, gid: str, receipts: str, asked_by: str) -> None:
        def model() -> None:
            group = self.model.group(gid)
            group.receipts_policy, group.asked_by = receipts, asked_by

        self.both(gid, lambda: self.chat.set_group(gid, receipts=receipts, asked_by=asked_by), model)

    def set_receipts(self, uid: str, on: bool) -> None:
        self.chat.set_user(uid, receipts=on)
        (self.model.receipts_off.discard if on else self.model.receipts_off.add)(uid)

    def message(self, gid: str, back: int) -> ModelMessage | None:
        """The message that is this many before the newest, if there is one."""
        messages = self.model.groups.get(gid, ModelGroup()).messages
        return messages[-1 - back] if back < len(messages) else None

    def both(self, gid: str, system: Callable[[], object], model: Callable[[], object]) -> None:
        """Take a step on both: both refuse it in the same way, or both answer the same, if the model answers at all."""
        self.touched.add(gid)
        expected: object = None

        def remembered() -> None:
            nonlocal expected
            expected = model()

        refused = refusal(remembered)
        if refused:
            refused_too = refusal(system)
            assert refused_too == refused, f"the model: {refused}, the system: {refused_too}"
            return
        answer = system()
        assert expected is None or answer == expected, f"the model: {expected}, the system: {answer}"


def refusal(step: Callable[[], object]) -> type[ImError] | None:
    """The class of the error that a step raises, None if it succeeds."""
    try:
        step()
    except ImError as error:
        return type(error)
    return None
