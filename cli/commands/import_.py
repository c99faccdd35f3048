"""Replaying a file of chat events."""

import os
import stat
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from io import BufferedIOBase

import click

from imcore.cli import output
from imcore.cli.app import Invocation, command, standard_input
from imcore.cli.progress import progress
from imcore.errors import InvalidInput


@command("import", example="im import chat.jsonl\nxzcat chat.jsonl.xz | im import -")
@click.argument("file")
def import_(run: Invocation, file: str) -> None:
    """FILE has one JSON object a line, in UTF-8, or in UTF-16 with a byte order mark; it may be compressed by gzip. `-`
    reads stdin. A line that is not valid is reported and passed over. The same file again adds no message, and an
    interrupted import continues where it ended; members are set to what the end of the file says, whatever has changed
    since. A message needs a client_msgid, and may have a "time" (ISO 8601), which SQL keeps as its sent_at, and a
    "meta" (a JSON object); other keys are ignored:

    \b
    {"type": "message", "gid": "team", "uid": "ann", "content": "Hi", "client_msgid": "17"}
    {"type": "join", "gid": "team", "uid": "bob"}
    {"type": "leave", "gid": "team", "uid": "bob"}
    {"type": "rename", "gid": "team", "uid": "bob", "new_uid": "rob"}
    {"type": "ack", "gid": "team", "uid": "rob", "client_msgid": "17"}
    {"type": "delivered", "gid": "team", "uid": "rob", "client_msgid": "17"}
    {"type": "mark", "gid": "team", "uid": "rob", "client_msgid": "17"}
    {"type": "recall", "gid": "team", "uid": "ann", "client_msgid": "17"}
    {"type": "group", "gid": "team", "receipts": "counts", "asked_by": "members"}

    An ack confirms all up to the message that carries its client_msgid; with "recall": true, up to the recall of that
    message; with "private": true, for the user alone. Up to a "delivered" one all has arrived, and from a "mark" on all
    is unread for the user; both need a member. A recall withdraws the message; who recalls need not be a member. A
    message with "recalled": true needs no content: its recall follows. A user who sends or acks and is no member joins
    first. The first event of a group makes it; a "group" does nothing else, but "receipts" and "asked_by" are set at
    the end, as by `im group set`. The chat of two users is made by the first event that names them.
    """
    from imcore.importer.formats import EventLines  # noqa: PLC0415 (the help need not wait for these)
    from imcore.importer.importer import import_events  # noqa: PLC0415

    with _opened(file) as source:
        name = "stdin" if file == "-" else file
        lines = EventLines(source, name, max_content_bytes=run.settings().max_content_bytes)
        size = _size(source)
        with run.chat() as chat, progress("bytes") as shown:
            shown(0, size)
            summary = import_events(
                chat,
                lines,
                on_error=lambda number, reason: output.complain(f"line {number}: {reason}"),
                on_progress=lambda _: shown(lines.bytes_read, size),
            )
    run.show([asdict(summary)], tuple(asdict(summary)))
    if summary.errors:
        click.get_current_context().exit(output.FAILED)


def _opened(file: str) -> AbstractContextManager[BufferedIOBase]:
    if file == "-":
        return nullcontext(standard_input())
    try:
        return open(file, "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InvalidInput(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _size(source: BufferedIOBase) -> int | None:
    try:
        status = os.fstat(source.fileno())
    except OSError:  # a stream without a descriptor
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
