"""Sending, pulling, confirming, recalling, and asking who has read what.

They act for a user, whose local database they keep up to date.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import click

from imcore.cli import output, records
from imcore.cli.app import Invocation, command, confirm, standard_input, yes_option
from imcore.cli.names import gid_alone, name, peer_in, to_gid
from imcore.device.local_database import LocalDatabase, Outgoing, path_of, try_out
from imcore.errors import InvalidInput, LocalDatabaseError, TryAgain
from imcore.model.meta import from_text, size_of
from imcore.model.records import record_of, status_record, tally_record, with_peers
from imcore.model.values import Draft, Message

if TYPE_CHECKING:
    from imcore.chat import Chat
    from imcore.device.device import Device, Flushed

no_local_option = click.option(
    "--no-local", is_flag=True, help="Leave the user's local database on this machine alone (see `im log`)."
)


def _sending_options(function: Callable[..., None]) -> Callable[..., None]:
    options = (
        click.option("--from", "sender_uid", metavar="UID", required=True, help="Who sends it."),
        click.option(
            "--client-msgid", metavar="ID", help="Makes it safe to repeat: the same ID again stores nothing new."
        ),
        click.option(
            "--meta",
            "meta_json",
            metavar="JSON",
            help="A JSON object beside the text, for programs: commands show it with --json only.",
        ),
        click.option(
            "--durable",
            type=click.Choice(["none", "replicated", "fsynced"]),
            help="Wait until a replica has it, or the server's disk.",
        ),
        click.option(
            "--queue",
            is_flag=True,
            help="If the server is away, let it wait in the outbox: the next session, pull or send sends it.",
        ),
        no_local_option,
    )
    for option in reversed(options):  # as decorators are applied
        function = option(function)
    return function


@command(
    "send",
    example="im send team 'Lunch at noon?' --from ann\nprintf 'two\\nlines' | im send team - --from ann",
)
@click.argument("gid")
@click.argument("text")
@_sending_options
def send(run: Invocation, /, gid: str, text: str, **options: Any) -> None:
    """TEXT `-` reads the message from stdin, exactly as it is, a last line break included."""
    _send(run, text, options, gid, peer_in(gid))


@command("dm", example="im dm bob 'Hello, Bob' --from ann")
@click.argument("uid")
@click.argument("text")
@_sending_options
def dm(run: Invocation, /, uid: str, text: str, **options: Any) -> None:
    """TEXT `-` reads the message from stdin, exactly as it is, a last line break included."""
    _send(run, text, options, "", uid)


@command("pull", example="im pull bob\nim pull bob team --limit 50 --ack")
@click.argument("uid")
@click.argument("gid", required=False)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N messages of each group.")
@click.option("--ack", "with_ack", is_flag=True, help="Confirm what was printed, once it was.")
@no_local_option
def pull(run: Invocation, uid: str, gid: str | None, limit: int | None, with_ack: bool, no_local: bool) -> None:
    """The member's own messages are included, so that there are no holes. Without GID: of all their groups, by gid.
    As at a login, the user's local database is brought up to date: messages, receipts, and its outbox is sent. A user
    who is in no group after that is an error.
    """
    gid = gid and to_gid(gid, uid)
    with run.chat() as chat, ExitStack() as stack:
        if with_ack:
            chat.system.client.require_writes()
        is_member = bool(chat.groups_of(uid))
        open_device = device_of if is_member else device_if_any  # the name of a stranger may be mistyped
        device = None if no_local else stack.enter_context(open_device(run, chat, uid))
        messages = chat.pull(uid, gid, limit=limit)
        if device:
            device.keep(messages)
            complain_of_refused(device.sync())
        if gid is None and not is_member:
            chat.known_user(uid)  # their first message may have waited until now
        run.show(records.records_for(chat, uid, messages), records.MESSAGE_COLUMNS)
        output.flush()
        if with_ack:
            _ack_newest(chat, uid, messages)


@command("ack", example="im ack bob team\nim ack bob team 1767225600000-0\nim ack bob team --private")
@click.argument("uid")
@click.argument("gid")
@click.argument("msgid", required=False)
@click.option("--private", is_flag=True, help="For UID alone: less is unread, but the offset stays.")
def ack(run: Invocation, uid: str, gid: str, msgid: str | None, private: bool) -> None:
    """Without MSGID: up to the newest. An older message than confirmed before changes nothing, but removes a mark
    of that message or an earlier one.
    """
    with run.chat() as chat:
        confirmed = chat.ack(uid, to_gid(gid, uid), msgid, private=private)
        run.show(records.records_for(chat, uid, [confirmed]), records.ACK_COLUMNS)


@command("unread", example="im unread bob")
@click.argument("uid")
def unread(run: Invocation, uid: str) -> None:
    """Groups where all is read are shown too, with 0. Own messages do not count."""
    with run.chat() as chat:
        counts = chat.unread(chat.known_user(uid))
        run.show(records.records_for(chat, uid, counts), records.UNREAD_COLUMNS)
    records.check_whole(counts.silent)


@command("status", example="im status team --limit 5\nim status team 1767225600000-0")
@click.argument("gid")
@click.argument("msgid", required=False)
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="The newest N messages (default 20; 0: all).")
def status(run: Invocation, gid: str, msgid: str | None, limit: int | None) -> None:
    """Without MSGID: tallies of the newest messages, oldest first. With MSGID: the names, and when each of them read
    it.
    """
    if msgid is not None and limit is not None:
        raise click.UsageError("--limit is for the tallies of a group: leave it out, or leave MSGID out")
    gid = gid_alone(gid)
    with run.chat() as chat:
        if msgid is None:
            tallies = chat.status(gid, limit=20 if limit is None else limit)
            run.show(map(tally_record, tallies), records.TALLY_COLUMNS)
            return
        message_status = chat.message_status(gid, msgid)
    run.show([status_record(message_status)], records.TALLY_COLUMNS)
    if not run.json:
        output.say("")
        run.show(records.reader_records(message_status), records.READER_COLUMNS)


@command("recall", example="im recall team 1767225600000-0 --by ann --yes")
@click.argument("gid")
@click.argument("msgid")
@click.option("--by", "by_uid", metavar="UID", required=True, help="Who withdraws it: its sender.")
@click.option("--admin", is_flag=True, help="UID may withdraw what others have sent, and need not be a member.")
@no_local_option
@yes_option
def recall(run: Invocation, gid: str, msgid: str, *, by_uid: str, admin: bool, no_local: bool, yes: bool) -> None:
    """Its place stays, with who has read it, and no `im unread` counts it. A tombstone goes to every member, and is
    printed; for a message that is recalled already there is no second one, and the message is printed as it is now.
    """
    confirm(f"Recall message {msgid} of {name(gid)}? What it says is gone for good.", yes=yes)
    with run.chat() as chat:
        gid, keeps = to_gid(gid, by_uid), not (no_local or admin)
        _store(run, chat, by_uid, lambda _: chat.recall(gid, msgid, by=by_uid, admin=admin), keeps=keeps)


def _send(run: Invocation, text: str, options: dict[str, Any], gid: str, to_uid: str | None) -> None:
    """Send to a group, or one-to-one to `to_uid`."""
    uid, client_msgid, keeps = options["sender_uid"], options["client_msgid"], not options["no_local"]
    meta = None if options["meta_json"] is None else from_text(options["meta_json"])
    with run.chat() as chat:
        content = _content(text, chat.system.settings.max_content_bytes)
        if options["queue"]:
            if options["durable"]:
                raise click.UsageError("--durable is for what is sent now: set IM_DURABLE for the outbox")
            if client_msgid or not keeps:
                raise click.UsageError("--queue chooses the client_msgid itself and needs the local database")
            _queue(run, chat, Draft(uid, content, meta=meta), gid, to_uid)
            return

        def send_after_waiting(device: "Device | None") -> Message:
            if device:
                flushed = device.flush()
                complain_of_refused(flushed)
                if flushed.stopped_by:  # no later message may overtake it
                    raise TryAgain(f"not sent, since what waits in the outbox comes first: {flushed.stopped_by}")
            how = {"client_msgid": client_msgid, "meta": meta, "durable": options["durable"]}
            if to_uid is None:
                return chat.send(gid, content, sender_uid=uid, **how)
            return chat.send_direct(to_uid, content, sender_uid=uid, **how)

        size = len(content.encode(errors="replace")) + size_of(meta)
        _store(run, chat, uid, send_after_waiting, size=size, keeps=keeps)


def _ack_newest(chat: "Chat", uid: str, messages: "Sequence[Message]") -> None:
    for gid, msgid in {message.gid: message.msgid for message in messages}.items():  # those of a group are in order
        chat.ack(uid, gid, msgid)


def _queue(run: Invocation, chat: "Chat", draft: Draft, gid: str, to_uid: str | None) -> None:
    from imcore.device.device import Device  # noqa: PLC0415 (the help of a command need not wait for the Redis client)

    uid = draft.sender_uid
    with local_database(run, uid) as database:
        device = Device(chat, uid, database)
        with suppress(TryAgain):
            device.check_dataset()
        outgoing = device.queue(draft.content, gid=gid, to_uid=to_uid, meta=draft.meta)
        flushed = device.flush()
        complain_of_refused(flushed, besides=outgoing)
        sent = {message.client_msgid: message for message in flushed.sent}
        if outgoing.client_msgid in sent:
            _show_stored(run, chat, uid, sent[outgoing.client_msgid])
        else:
            with_peer = with_peers(uid, lambda _: filter(None, [to_uid]))
            run.show([with_peer(record_of(device.unsent_line(outgoing)))], records.LOG_COLUMNS)


def _content(text: str, max_bytes: int) -> str:
    if text != "-":
        return text
    data = standard_input().read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InvalidInput(f"content on stdin has more than {max_bytes} bytes, the limit (IM_MAX_CONTENT_BYTES)")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"content on stdin is not valid UTF-8: byte {error.start + 1} cannot be read") from None


# The local database of the user for whom a command acts.


def local_database(run: Invocation, uid: str, *, exclusive: bool = False, read_only: bool = False) -> LocalDatabase:
    """Open a user's local database. Raise LocalDatabaseError."""
    return LocalDatabase(path_of(run.settings().data_dir, uid), uid, exclusive=exclusive, read_only=read_only)


@contextmanager
def device_of(run: Invocation, chat: "Chat", uid: str) -> Iterator["Device"]:
    """Open a user's local database. Raise LocalDatabaseError, also if it has the data of another server."""
    from imcore.device.device import Device  # noqa: PLC0415 (the help of a command need not wait for the Redis client)

    with local_database(run, uid) as local:
        device = Device(chat, uid, local)
        device.check_dataset()
        yield device


def device_if_any(run: Invocation, chat: "Chat", uid: str) -> "AbstractContextManager[Device | None]":
    """Open a user's local database as `device_of` does, if there is one: the name of a new user may be mistyped."""
    return device_of(run, chat, uid) if path_of(run.settings().data_dir, uid).exists() else nullcontext()


def complain_of_refused(flushed: "Flushed", besides: Outgoing | None = None) -> None:
    """Report the messages of the outbox that will never be sent."""
    for outgoing, reason in flushed.refused:
        if outgoing != besides:
            output.complain(f"a message that waited in the outbox was refused (see `im log`): {reason}")


def _store(
    run: Invocation,
    chat: "Chat",
    uid: str,
    send: "Callable[[Device | None], Message]",
    *,
    size: int = 0,
    keeps: bool,
) -> None:
    """Send a message of a user, and show it. If it `keeps` them, keep it in the local database.

    A user who has no local database and is in no group gets it with the first message: the name may be mistyped. Raise
    LocalDatabaseError before anything is sent, if a message of this size (in bytes) cannot be kept there.
    """
    with _sending_device(run, chat, uid, size) if keeps else nullcontext() as device:
        message = send(device)
        if keeps:
            try:
                with nullcontext(device) if device else device_of(run, chat, message.sender_uid) as sender:
                    sender.keep([message])
            except LocalDatabaseError as error:
                output.complain(f"{message.msgid} is stored, but {error}")
    _show_stored(run, chat, uid, message)


def _sending_device(run: Invocation, chat: "Chat", uid: str, size: int) -> "AbstractContextManager[Device | None]":
    path = path_of(run.settings().data_dir, uid)
    chat.system.client.require_functions(writes=True)  # as a send does: what comes before it only reads
    is_known = path.exists() or bool(chat.groups_of(uid))
    try_out(path, uid, size)
    return device_of(run, chat, uid) if is_known else nullcontext()


def _show_stored(run: Invocation, chat: "Chat", uid: str, message: "Message") -> None:
    """Show a message that the server has stored. If that fails, say that it is stored all the same."""
    try:
        run.show(records.records_for(chat, uid, [message]), records.MESSAGE_COLUMNS)
        output.flush()
    except output.OutputError as error:
        raise output.OutputError(f"{message.msgid} is stored, but {error}") from error
