"""Exporting a group, or the data of a user."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

from imcore.cli import output
from imcore.cli.app import Invocation, command
from imcore.cli.progress import progress
from imcore.files.whole_file import whole_file
from imcore.model.records import Record

if TYPE_CHECKING:
    from imcore.exporter.exporter import Export


@command("export", example="im export team --output team.jsonl\nim export --user bob | gzip | wc -c")
@click.argument("gid", required=False)
@click.option("--user", "user_uid", metavar="UID", help="All that this user may see, of all their groups.")
@click.option("--output", "file", metavar="FILE", help="Write to a file, which appears once it is whole.")
def export(run: Invocation, gid: str | None, user_uid: str | None, file: str | None) -> None:
    """One JSON object a line, in the form of `im import`, which makes the same group of it in an empty system: the same
    messages in the same order, recalls, memberships, offsets and receipt policy. The time of a message is the sender's
    if it has one, else the server's. Times of reads are not in it, nor what users chose with `im user set`.

    A message without a client_msgid is named by its msgid, and so is one whose client_msgid an earlier message of the
    group has; stderr counts the latter. The text of a recalled message is gone: it has "recalled": true, and its recall
    follows. Messages of erased users come as recalled ones.

    With --user: each group that the user is in or was in, the messages that were sent meanwhile, and the user's own
    joins, leaves and acks; nothing of when others came, went and read, and no policy. Messages that come while it is
    written may be missing.
    """
    from imcore.exporter.exporter import Export  # noqa: PLC0415 (the help need not wait for the drivers)

    if (gid is None) == (user_uid is None):
        raise click.UsageError("give a GID, or --user UID")
    with run.chat() as chat:
        this = Export(chat)
        events = this.group(gid) if gid is not None else this.user(user_uid or "")
        is_seen = file is None and output.is_terminal(sys.stdout)
        with nullcontext(lambda *_: None) if is_seen else progress("messages") as shown:
            _write(_counted(this, events, shown), file)
    if this.renamed:
        output.complain(
            f"messages whose client_msgid another one of their group has: {this.renamed}; they are named by their msgid"
        )


def _counted(export: "Export", events: Iterable[Record], shown: Callable[[int, int | None], None]) -> Iterator[Record]:
    for event in events:
        shown(export.messages, export.total)
        yield event


def _write(events: Iterable[Record], file: str | None) -> None:
    if file is None:
        output.show(events, (), as_json=True)
        return
    try:
        with whole_file(file) as stream:
            stream.writelines(f"{output.to_json(event)}\n".encode() for event in events)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise output.OutputError(f"{file} could not be written: {reason}") from error
