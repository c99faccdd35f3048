"""Methods about how far users are: acks, what has arrived, marks, unread counts, and receipts of own messages."""

from typing import Any

from imcore.model.limits import check_handed_over, check_msgid
from imcore.model.records import Record, record_of, unread_records
from imcore.model.values import Receipt, Unread
from imcore.operations import positions
from imcore.web.method import MOST_LISTED, Caller, at_most, list_of, method, ref
from imcore.web.parameters import ReceiptObject


@method(ref("Ack"), ordered=True, folded=True)
async def ack(caller: Caller, *, gid: str, msgid: str | None = None, private: bool = False) -> Any:
    """Confirm that everything up to a message was shown, the newest if none is given.

    An older ack than before changes nothing, but removes a mark of that message or an earlier one. With `private` it is
    for the user alone. As a notification it is folded with others and sent some time later; a mistake in it has no
    answer.
    """
    if caller.is_notification and caller.session and msgid is not None:
        caller.hub.acks.take("private" if private else "read", [caller.session], gid, msgid)
        return None
    return record_of(await caller.chat.ack(caller.user, gid, msgid, private=private))


@method(ref("Delivery"), ordered=True, folded=True)
async def delivered(caller: Caller, *, gid: str, msgid: str) -> Any:
    """Confirm that everything that this socket was sent of a group, up to a message, has arrived, shown or not.

    Without a session of the user, as where a push notification has come, that message alone has arrived: where one of
    others before it has not, nothing moves. `advanced` is about `last_delivered_msgid`; `last_ack_msgid` is what the
    user has read, which this does not move. As a notification it is folded with others and sent some time later.
    """
    session = caller.session
    if caller.is_notification and session:
        caller.hub.acks.take("delivered", [session], gid, msgid)
        return None
    since = session.whole_since(check_handed_over(gid, "gid"), check_msgid(msgid)) if session else None
    arrived = await caller.chat.performer.perform(positions.delivered(caller.user, gid, msgid, since=since))
    if session and caller.client:
        caller.client.confirmed(gid, msgid)
    offset = await caller.chat.performer.perform(positions.offset(caller.user, gid))
    return {**record_of(arrived), "last_ack_msgid": offset}


@method(ref("Marked"), ordered=True)
async def mark_unread(caller: Caller, *, gid: str, msgid: str) -> Any:
    """Mark a message, one of the newest 100, and all later ones unread, for the user alone. Receipts stay.

    Earlier ones then count as read, for that user alone.
    """
    await _send_acks(caller)  # an earlier one would remove the mark if it came later
    return _marked(caller, await caller.chat.mark_unread(caller.user, gid, msgid))


@method(ref("Marked"), ordered=True)
async def unmark(caller: Caller, *, gid: str) -> Any:
    """Remove the user's mark of a group, if there is one. An ack of the marked message or a later one does so, too."""
    return _marked(caller, await caller.chat.unmark(caller.user, gid))


@method(list_of({"oneOf": [ref("Unread"), ref("Silent")]}))
async def unread(caller: Caller) -> Any:
    """Return how many messages the user has not read, for each group.

    Where nodes of a cluster do not answer, their groups are left out, and the last object says so.
    """
    return unread_records(await caller.chat.unread(caller.user))


@method(list_of(ref("Receipt")))
async def receipts(caller: Caller, *, limit: int | None = None) -> Any:
    """Return the receipts of the user's messages that are not confirmed. They come again until they are."""
    return [receipt_record(each) for each in await caller.chat.receipts(caller.user, limit=at_most(MOST_LISTED, limit))]


@method(ref("Confirmed"), folded=True)
async def confirm_receipts(caller: Caller, *, receipts: list[ReceiptObject]) -> Any:
    """Confirm receipts that were kept. What is not confirmed comes again with the next session."""
    values = [Receipt(**{"delivered": 0, **receipt}) for receipt in receipts]  # older clients do not say it
    if caller.is_notification and caller.session:
        caller.hub.gateway.confirm_receipts(caller.session, values)
        return None
    return {"confirmed": await caller.chat.confirm_receipts(caller.user, values)}


def receipt_record(receipt: Receipt) -> Record:
    """Return the object of a receipt, with the version that confirms it."""
    return {**record_of(receipt), "version": receipt.version}


async def _send_acks(caller: Caller) -> None:
    """Send what the client has confirmed before. Raise TryAgain if that has to wait."""
    if caller.session:
        caller.hub.acks.flush()
        await caller.hub.gateway.send_acks(caller.session)


def _marked(caller: Caller, position: Unread) -> Record:
    return {"gid": position.gid, "uid": caller.user, "unread": position.unread}
