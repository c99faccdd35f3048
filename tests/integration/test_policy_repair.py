"""Policies after Redis was lost, was set back, or was changed by hand: SQL has what was chosen last."""

from typing import Any

import pytest

from imcore import Chat, GroupPolicy
from imcore.repair import policies
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.repair.watermarks import reconcile
from imcore.streams.calls import policy_calls
from tests.helpers.talk import say
from tests.helpers.workers import run_workers, store

GID = "team"


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group(GID, ["ann", "bob"])
    chat.create_group("other", ["ann", "bob"])
    chat.set_group(GID, receipts="counts", asked_by="members")
    chat.set_user("bob", receipts="off")
    store(chat)
    return chat


def every(chat: Chat) -> range:
    return range(chat.system.client.space.partitions)


def kept(chat: Chat, uid: str) -> set[bool]:
    """Whether a user's receipts are off, in all partitions."""
    client = chat.system.client
    return {client.call(policy_calls.reads_in_private(client.space, partition, uid)) for partition in every(chat)}


def redis(chat: Chat) -> Any:
    return chat.system.client.driver


def forget(chat: Chat) -> None:
    """Redis forgets the policies, as if it had lost its last second."""
    redis(chat).hdel(chat.system.client.space.group(GID).meta, "receipts", "asked_by")
    for partition in every(chat):
        redis(chat).delete(chat.system.client.space.receipts_off(partition))


def test_what_agrees_is_no_difference(chat: Chat) -> None:
    assert list(check(chat.system)) == []
    chat.set_group(GID, receipts="off")
    chat.set_user("ann", receipts="off")
    assert list(policies.differences(chat.system, every(chat), repair=True)) == []  # a worker is about to store it
    assert chat.group_policy(GID).receipts == "off"
    store(chat)
    assert list(check(chat.system)) == []


def test_a_check_finds_and_mends_what_differs(chat: Chat) -> None:
    space = chat.system.client.space
    redis(chat).hset(space.group("other").meta, "receipts", "off")
    redis(chat).hset(space.group(GID).meta, "asked_by", "nobody")
    strange = (space.partition_of("bob") + 1) % space.partitions
    redis(chat).srem(space.receipts_off(strange), "bob")
    redis(chat).sadd(space.receipts_off(strange), "ann")

    found = {each.what + (each.gid and f" of {each.gid}"): (each.redis, each.sql) for each in check(chat.system)}
    assert found == {
        "receipt policy of other": ("off asked by sender", "names asked by sender"),
        f"receipt policy of {GID}": ("counts asked by sender", "counts asked by members"),
        f"receipts of 'bob' in partition {strange}": ("on", "off"),
        f"receipts of 'ann' in partition {strange}": ("off", "on"),
    }

    assert [each.repaired for each in check(chat.system, repair=True)] == [True] * 4
    run_workers(chat)
    assert list(check(chat.system)) == []
    assert chat.group_policy(GID) == GroupPolicy(GID, "counts", "members")
    assert (kept(chat, "bob"), kept(chat, "ann")) == ({True}, {False})


def test_a_rebuild_brings_policies_back(chat: Chat) -> None:
    say(chat, "hi")
    store(chat)
    redis(chat).flushall()

    rebuild(chat.system)

    assert chat.group_policy(GID) == GroupPolicy(GID, "counts", "members")
    assert chat.group_policy("other") == GroupPolicy("other", "names", "sender")
    assert (kept(chat, "bob"), kept(chat, "ann")) == ({True}, {False})
    [message] = chat.pull("bob", GID)
    chat.ack("bob", GID)
    assert chat.tally(GID, message.msgid).read == 0
    run_workers(chat)
    assert list(check(chat.system)) == []


def test_a_partition_that_is_reconciled_gets_its_policies_back(chat: Chat) -> None:
    forget(chat)
    for partition in every(chat):
        reconcile(chat.system, partition)

    assert chat.group_policy(GID) == GroupPolicy(GID, "counts", "members")
    assert kept(chat, "bob") == {True}
