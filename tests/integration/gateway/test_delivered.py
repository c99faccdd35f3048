"""Delivered: what clients confirm to have counts, as far back as nothing is missing, and nothing else does."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from imcore import Chat, Message, Session
from imcore import msgid as msgids
from imcore.errors import InvalidInput
from imcore.gateway.options import SessionOptions
from imcore.gateway.request import StartMode
from imcore.settings import Settings
from tests.helpers.gateways import Audience, Requests
from tests.helpers.talk import leave_to_sql, offset, say, say_many
from tests.helpers.workers import deliver_receipts

UIDS = ["ann", "bob", "cyd"]
CLIENT: SessionOptions = {"acks": "client", "ack_interval_s": 0.02}


@pytest.fixture
def redis_url(valkey: str) -> str:
    """One server: what is asked here does not depend on the kind of server."""
    return valkey


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, receipt_window_ms=0, block_ms=10)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("team", UIDS)
    return chat


def has(chat: Chat, message: Message) -> tuple[str, ...]:
    return chat.message_status("team", message.msgid).delivered_to


def heard(audience: Audience, session: Session, count: int) -> None:
    audience.until(lambda: len(audience.messages[session]) >= count)


def confirm(audience: Audience, session: Session, message: Message) -> None:
    audience.gateway.delivered(session, "team", message.msgid)
    audience.settled()


def test_what_a_client_has_is_delivered_and_not_read(chat: Chat, other: Chat) -> None:
    # Given messages that were handed over, and not confirmed
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        bob, cyd = gateway.open("bob"), gateway.open("cyd")
        first, second, third = say(other, "1", "2", "3")
        heard(audience, bob, 3)
        audience.settled()
        assert has(other, first) == ()

        # When one client confirms some, in any order
        gateway.delivered(bob, "team", second.msgid)
        confirm(audience, bob, first)

        # Then these have arrived, and nobody has read them
        assert has(other, first) == has(other, second) == ("bob",)
        assert has(other, third) == ()
        assert offset(other, "bob") is None
        tally = other.tally("team", second.msgid)
        assert (tally.read, tally.unread, tally.delivered) == (0, 2, 1)
        assert has(other, first) == ("bob",)
        assert cyd.whole_after == bob.whole_after == {}


def test_many_clients_that_confirm_one_message_are_one_call(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        sessions = [gateway.open(uid) for uid in ("bob", "cyd", "cyd")]
        [message] = say(other, "1")
        for session in sessions:
            heard(audience, session, 1)
        requests = Requests(chat, monkeypatch)
        for session in sessions:
            gateway.delivered(session, "team", message.msgid)
        audience.settled()
        assert (requests.calls["im_delivered"], requests.calls["im_ack"]) == (1, 0)
        assert has(other, message) == ("bob", "cyd")


def test_an_ack_spares_the_deliveries_that_it_includes(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        bob, cyd = gateway.open("bob"), gateway.open("cyd")
        first, second = say(other, "1", "2")
        heard(audience, bob, 2)
        heard(audience, cyd, 2)
        requests = Requests(chat, monkeypatch)
        # When both have all of it, and one has read it
        for session in (bob, cyd):
            gateway.delivered(session, "team", first.msgid)
            gateway.delivered(session, "team", second.msgid)
        gateway.received(bob, "team", second.msgid)
        audience.settled()
        # Then one of them needs a delivery
        assert (requests.calls["im_delivered"], requests.calls["im_ack"]) == (1, 1)
        assert has(other, second) == ("bob", "cyd")
        # And without that one none is sent
        [third] = say(other, "3")
        heard(audience, bob, 3)
        requests.clear()
        gateway.delivered(bob, "team", third.msgid)
        gateway.received(bob, "team", third.msgid)
        audience.settled()
        assert (requests.calls["im_delivered"], requests.calls["im_ack"]) == (0, 1)
        assert has(other, third) == ("bob",)


def test_a_delivery_is_sent_though_the_ack_that_includes_it_is_refused_or_private(chat: Chat, other: Chat) -> None:
    """Whether somebody reads whose receipts are off must not show in what is delivered."""
    space = other.system.client.space
    other.system.client.query("SADD", space.group("team").for_ack[-1], "cyd")
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        bob, cyd = gateway.open("bob"), gateway.open("cyd")
        [message] = say(other, "1")
        heard(audience, bob, 1)
        heard(audience, cyd, 1)
        bogus = msgids.unpack(msgids.pack(message.msgid) + 8192 * 3_600_000)
        gateway.delivered(bob, "team", message.msgid)
        gateway.received(bob, "team", bogus)
        gateway.delivered(cyd, "team", message.msgid)
        gateway.received(cyd, "team", message.msgid)
        audience.until(lambda: has(other, message) == ("bob", "cyd"))
        assert other.tally("team", message.msgid).read == 0
        assert (bob.acks_privately, cyd.acks_privately) == (False, True)


def test_the_same_at_the_end_of_a_session(chat: Chat, other: Chat) -> None:
    space = other.system.client.space
    other.system.client.query("SADD", space.group("team").for_ack[-1], "cyd")
    with chat.gateway(acks="client", ack_interval_s=3600) as gateway:
        audience = Audience(gateway)
        cyd = gateway.open("cyd")
        [message] = say(other, "1")
        heard(audience, cyd, 1)
        gateway.delivered(cyd, "team", message.msgid)
        gateway.received(cyd, "team", message.msgid)
        gateway.end(cyd)
    assert has(other, message) == ("cyd",)


# What was left out.


def test_what_a_live_session_skips_is_missing_until_history_covers_it(chat: Chat, other: Chat) -> None:
    # Given two messages that a session skips, and one that it gets
    first, second = say(other, "1", "2")
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", start="live")
        [third] = say(other, "3")
        heard(audience, bob, 1)
        # When it confirms what it has got
        confirm(audience, bob, third)
        assert has(other, first) == has(other, third) == ()
        # And is given only a part of the rest
        page = other.history("bob", "team", before=third.msgid, limit=1)
        assert [each.msgid for each in page.messages] == [second.msgid]
        gateway.fetched(bob, "team", page, before=third.msgid)
        confirm(audience, bob, third)
        assert has(other, third) == ()
        # And then all of it
        gateway.fetched(bob, "team", other.history("bob", "team", before=second.msgid, limit=1), before=second.msgid)
        assert has(other, third) == (), "nothing has arrived that was not confirmed since"
        confirm(audience, bob, third)
        assert has(other, first) == has(other, second) == has(other, third) == ("bob",)


def test_a_page_that_ends_where_the_user_has_read_is_enough(chat: Chat, other: Chat) -> None:
    read, own, missing = say(other, "1")[0], say(other, "own", sender="bob")[0], say(other, "2")[0]
    other.ack("bob", "team", read.msgid)
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", start="live")
        [newest] = say(other, "3")
        heard(audience, bob, 1)
        page = other.history("bob", "team", around=missing.msgid, limit=1)
        assert page.older
        gateway.fetched(bob, "team", page)
        confirm(audience, bob, newest)
        assert "bob" in has(other, missing)
        assert "bob" in has(other, newest)
        assert own.sender_uid == "bob"


def test_a_page_that_does_not_touch_covers_nothing(chat: Chat, other: Chat) -> None:
    first, _, _ = say(other, "1", "2", "3")
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", start="live")
        [newest] = say(other, "4")
        heard(audience, bob, 1)
        gateway.fetched(bob, "team", other.history("bob", "team", around=first.msgid, limit=2))
        confirm(audience, bob, newest)
        assert has(other, first) == has(other, newest) == ()


def test_a_gap_is_missing_until_an_ack_covers_it(chat: Chat, other: Chat) -> None:
    # Given a session that is handed the newest two of what it misses
    first, *_ = say(other, "1", "2", "3", "4")
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", most=2)
        audience.settled()
        assert audience.heard(bob) == ["3", "4"]
        confirm(audience, bob, audience.messages[bob][-1])
        assert has(other, first) == ()
        # When another device reads up to the gap's end
        other.ack("bob", "team", audience.messages[bob][0].msgid)
        confirm(audience, bob, audience.messages[bob][-1])
        assert has(other, audience.messages[bob][-1]) == ("bob",)


def test_after_a_pause_and_a_lost_subscription_nothing_is_missing(chat: Chat, other: Chat) -> None:
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        say(other, "1")
        heard(audience, bob, 1)
        gateway.pause(bob)
        audience.poll()
        say(other, "2")
        gateway.resume(bob)
        heard(audience, bob, 2)
        confirm(audience, bob, audience.messages[bob][-1])
        assert has(other, audience.messages[bob][0]) == has(other, audience.messages[bob][1]) == ("bob",)


HIDDEN: tuple[Callable[[Chat, str, str, Sequence[str]], object], ...] = (
    lambda chat, uid, gid, sent: chat.ack(uid, gid, sent[2], private=True),
    lambda chat, uid, gid, sent: chat.ack(uid, gid, sent[4], private=True),
    lambda chat, uid, gid, sent: chat.mark_unread(uid, gid, sent[1]),
    lambda chat, uid, gid, sent: chat.mark_unread(uid, gid, sent[3]),
)
"""What the readers do for themselves in one of two groups that are alike."""
AFTER = (None, 0, 3, 5)
"""The number of messages up to which a session begins; None: where `start` says."""
WAYS = ("delivered", "private", "delivered and private")
"""What clients confirm."""


@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize("start", ["unread", "live", "join"])
def test_what_is_delivered_does_not_show_what_was_read_in_private(
    chat: Chat, other: Chat, start: StartMode, most: int | None
) -> None:
    # Given pairs of groups that are alike, but that the readers have read some in private, or marked, in one of each
    other.set_user("cyd", receipts=False)
    kinds = [
        (f"{number}", hidden, after, way)
        for number, (hidden, after, way) in enumerate(itertools.product(HIDDEN, AFTER, WAYS))
    ]
    points: dict[str, str] = {}
    for name, hidden, after, _ in kinds:
        for gid in (f"plain {name}", f"private {name}"):
            other.create_group(gid, UIDS)
            sent = say_many(other, 5, gid=gid)
            for uid in ("bob", "cyd"):
                other.ack(uid, gid, sent[0])
                if gid.startswith("private"):
                    hidden(other, uid, gid, sent)
            if after is not None:
                points[gid] = sent[after - 1] if after else "0-0"
    # When their clients, which begin alike, confirm what comes next
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        sessions = [gateway.open(uid, start=start, after=points, most=most) for uid in ("bob", "cyd")]
        audience.settled()
        newest = {
            gid: other.send(gid, "newest", sender_uid="ann").msgid for gid in other.groups_of("ann") if gid != "team"
        }
        audience.settled()
        for session, (name, _, _, way) in itertools.product(sessions, kinds):
            for gid in (f"plain {name}", f"private {name}"):
                if "delivered" in way:
                    gateway.delivered(session, gid, newest[gid])
                if "private" in way:
                    gateway.received(session, gid, newest[gid], private=True)
        audience.settled()
    deliver_receipts(other)
    # Then everything that others can see of the two groups is the same
    seen = {gid: what_others_see(other, gid) for gid in newest}
    assert {name: seen[f"private {name}"] for name, *_ in kinds} == {name: seen[f"plain {name}"] for name, *_ in kinds}
    assert any("bob" in names for messages in seen.values() for names, *_ in messages)


def what_others_see(chat: Chat, gid: str) -> list[object]:
    changed = [receipt for receipt in chat.receipts("ann") if receipt.gid == gid]
    places = {tally.message.msgid: tally.message.seq for tally in chat.status(gid, limit=0)}
    receipts = [(places[each.msgid], each.read, each.unread, each.delivered) for each in changed]
    messages = [chat.message_status(gid, msgid) for msgid in places]
    return [(each.delivered_to, each.unread_by, each.delivered, receipts) for each in messages]


def test_who_joins_later_has_all_since_the_join(chat: Chat, other: Chat) -> None:
    other.create_group("late", ["ann"])
    other.send("late", "0", sender_uid="ann")
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", start="live")
        audience.settled()
        other.add_members("late", ["bob"])
        sent = other.send("late", "1", sender_uid="ann")
        heard(audience, bob, 1)
        gateway.delivered(bob, "late", sent.msgid)
        audience.settled()
    assert other.message_status("late", sent.msgid).delivered_to == ("bob",)


# What is not taken.


def test_what_was_not_handed_over_is_ignored(chat: Chat, other: Chat) -> None:
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        [first] = say(other, "1")
        heard(audience, bob, 1)
        future = msgids.unpack(msgids.pack(first.msgid) + 8192 * 3_600_000)
        gateway.delivered(bob, "team", future)
        gateway.delivered(bob, "other", first.msgid)
        gateway.delivered(bob, "team", "1577836800000-1")
        audience.settled()
        assert has(other, first) == ()
        [second] = say(other, "2")  # it is handed over later than it is confirmed
        gateway.delivered(bob, "team", second.msgid)
        assert has(other, second) == ()
        gateway.end(bob)
        gateway.delivered(bob, "team", first.msgid)
        audience.poll()
        assert has(other, first) == ()


def test_only_a_gateway_whose_clients_ack_takes_deliveries(chat: Chat) -> None:
    with chat.gateway() as gateway:
        bob = gateway.open("bob")
        with pytest.raises(InvalidInput, match='acks="client"'):
            gateway.delivered(bob, "team", "1577836800000-1")
    with chat.gateway(acks="client") as gateway:
        bob = gateway.open("bob")
        with pytest.raises(InvalidInput, match="HistoryPage"):
            gateway.fetched(bob, "team", [])  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            gateway.delivered(bob, "team", "soon")


def test_what_redis_has_trimmed_is_delivered_too(chat: Chat, other: Chat) -> None:
    with chat.gateway(**CLIENT) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        first, second = say(other, "1", "2")
        heard(audience, bob, 2)
        leave_to_sql(other, second.msgid)
        confirm(audience, bob, first)
        audience.until(lambda: has(other, first) == ("bob",))
        assert has(other, second) == ()
