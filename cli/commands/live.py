"""Live sessions, pending receipts, and the local database of a user."""

import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from itertools import chain, islice
from typing import TYPE_CHECKING, Unpack

import click

from imcore.cli import output, records
from imcore.cli.app import Invocation, NumberRange, command
from imcore.cli.commands.chat import complain_of_refused, device_if_any, device_of, local_database, no_local_option
from imcore.cli.names import to_gid
from imcore.gateway.fanout import Rewound
from imcore.model.limits import check_name
from imcore.model.records import Record, record_of, with_peers
from imcore.model.values import Message, Receipt
from imcore.process import Stopped, StopSignals

if TYPE_CHECKING:
    from imcore.chat import Chat
    from imcore.gateway.listener import Item
    from imcore.gateway.options import SessionOptions


@command("listen", example="im listen bob\nim listen bob --ack-every 1 --json")
@click.argument("uid")
@click.option("--ack-every", type=click.IntRange(min=1), default=10, metavar="N", help="Ack after N messages. [10]")
@click.option(
    "--ack-interval",
    "ack_interval_s",
    type=NumberRange(min=0),
    default=1.0,
    metavar="S",
    help="Ack after S seconds at most. [1]",
)
@click.option("--no-ack", is_flag=True, help="Only look: confirm nothing.")
@click.option(
    "--receipts",
    type=click.Choice(["push", "poll"]),
    default="push",
    help="Learn who has read as it happens, or with each heartbeat. [push]",
)
@no_local_option
def listen(run: Invocation, uid: str, *, no_ack: bool, no_local: bool, **options: "Unpack[SessionOptions]") -> None:
    """It is online, shows what was not acked and then what comes, own messages included, the receipts of own messages,
    and what other devices of the user have read. What is acked has been shown. Everything is kept in the user's local
    database (see `im log`), and what waits in its outbox is sent. While the server is away it waits.
    """
    from imcore.device.device import when_there  # noqa: PLC0415 (the help of a command need not wait for the Redis client)

    options["acks"] = "off" if no_ack else "auto"
    try:
        with (
            StopSignals() as signals,
            when_there(lambda: _chat_of(run, uid, no_local), lambda: False) as chat,
            closing(_events(run, chat, uid, lambda: signals.stopping, no_local, options)) as events,
        ):
            signals.defer()
            with_peer = records.peers_at(chat, uid)
            for event in events:
                record = _record_of(event, with_peer)
                with signals.waiting():
                    _show(run, event, record)
    except Stopped:
        output.drop()  # its reader does not read


def _record_of(event: "Item", with_peer: Callable[[Record], Record]) -> Record:
    if isinstance(event, Message | Receipt):
        kind = "message" if isinstance(event, Message) else "receipt"
        return {"event": kind, **with_peer(record_of(event))}
    if isinstance(event, Rewound):
        return {"event": "rewound", **with_peer({"gid": event.gid, "after_msgid": event.after_msgid})}
    return {"event": "position", **with_peer({"gid": event.gid, "last_ack_msgid": event.last_ack_msgid})}


def _show(run: Invocation, event: "Item", record: Record) -> None:
    if run.json:
        run.show([record], ())
    else:
        shown = run.readable(record)
        line = "  ".join(str(shown[column]) for column in records.MESSAGE_COLUMNS if column in shown)
        if isinstance(event, Receipt):
            line = f"{shown['gid']}  {event.msgid}  read {event.read}/{event.read + event.unread}"
        elif isinstance(event, Rewound):
            line = (
                f"{shown['gid']}  the server has lost what came after {event.after_msgid or 'the beginning'}: forget it"
            )
        elif not isinstance(event, Message):
            line = f"{shown['gid']}  read or marked on another device; acked up to {event.last_ack_msgid or 'nothing'}"
        output.say(*output.fitted(sys.stdout, line))
    output.flush()


def _chat_of(run: Invocation, uid: str, no_local: bool) -> "Chat":
    with ExitStack() as stack:
        chat = stack.enter_context(run.chat())
        if not no_local and not chat.groups_of(uid):
            with device_if_any(run, chat, uid) as device:  # their first message may wait in the outbox
                flushed = device.sync() if device else None
            if flushed:
                complain_of_refused(flushed)
            if flushed and flushed.stopped_by:
                raise flushed.stopped_by
        chat.known_user(uid)
        stack.pop_all()
    return chat


def _events(
    run: Invocation, chat: "Chat", uid: str, stopping: Callable[[], bool], no_local: bool, options: "SessionOptions"
) -> "Generator[Item]":
    from imcore.device.device import Device, watch  # noqa: PLC0415

    if no_local:
        yield from watch(chat, uid, stopping, **options)
        return
    with local_database(run, uid, exclusive=True) as database:
        yield from Device(chat, uid, database).live(stopping, **options)


@command("receipts", example="im receipts ann\nim receipts ann --ack")
@click.argument("uid")
@click.option("--ack", "with_ack", is_flag=True, help="Confirm what was printed, once it was.")
@no_local_option
def receipts(run: Invocation, uid: str, with_ack: bool, no_local: bool) -> None:
    """A confirmed one (--ack) comes again when more people have read it; the user's local database keeps it. The
    worker `receipts` must have run. A user who has left all groups still gets the receipts of their messages.
    """
    with run.chat() as chat, ExitStack() as stack:
        if with_ack:
            chat.system.client.require_writes()
        pending = chat.receipts(uid)
        if not pending:
            chat.known_user(uid)  # a user who has left all groups may still have receipts
        keeps = with_ack and not no_local and pending
        device = stack.enter_context(device_of(run, chat, uid)) if keeps else None
        run.show(records.records_for(chat, uid, pending), records.RECEIPT_COLUMNS)
        output.flush()
        if device:
            device.keep(pending)
        if with_ack:
            chat.confirm_receipts(uid, pending)


@command("log", example="im log bob\nim log bob team")
@click.argument("uid")
@click.argument("gid", required=False)
def log(run: Invocation, uid: str, gid: str | None) -> None:
    """Oldest first, of all groups as they came, then what waits in the outbox. Own messages are `waiting`, `refused`,
    `stored`, `read 3/7` or `read by all`. Nothing is asked of the server.
    """
    gid = gid if gid is None else check_name(to_gid(gid, uid), "gid")
    with local_database(run, uid, read_only=True) as database:
        known = database.peers()
        with_peer = with_peers(uid, lambda gid: filter(None, [known.get(gid)]))
        lines = database.log(gid)
        first = list(islice(lines, 1))
        if gid and not first:
            output.remark(f"nothing of {gid!r} is here")
        run.show(map(with_peer, map(record_of, chain(first, lines))), records.LOG_COLUMNS)
