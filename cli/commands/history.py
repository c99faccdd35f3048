"""Paging through what a member may see."""

import shlex
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from imcore.cli import output, records
from imcore.cli.app import Invocation, command
from imcore.cli.names import to_gid
from imcore.model.records import Record

if TYPE_CHECKING:
    from imcore.model.values import HistoryPage

MOST = 500


@command(
    "history",
    example="im history bob team\nim history bob team --before 1767225600000-0 --limit 20\n"
    "im history bob team --first-unread",
)
@click.argument("uid")
@click.argument("gid")
@click.option("--before", metavar="MSGID", help="The messages just before this one.")
@click.option("--after", metavar="MSGID", help="The messages just after this one.")
@click.option("--around", metavar="MSGID", help="This message, with as many before and after it.")
@click.option("--first-unread", is_flag=True, help="Around the first unread message; the newest if all is read.")
@click.option("--limit", type=click.IntRange(1, MOST), default=50, metavar="N", help="At most N messages (default 50).")
def history(run: Invocation, /, uid: str, gid: str, limit: int, **where: Any) -> None:
    """Oldest first, everything since the member joined: read or not, their own messages included. Without an option:
    the newest. Nothing is confirmed by it. With --json the last line says whether there are older and newer messages.
    """
    given = [value for value in where.values() if value]
    if len(given) > 1:
        raise click.UsageError("--before, --after, --around and --first-unread exclude each other: give one of them")
    with run.chat() as chat:
        page = chat.history(uid, to_gid(gid, uid), **where, limit=limit)
        lines: Iterable[Record] = records.records_for(chat, uid, page.messages)
        if run.json:
            ends = {"gid": to_gid(gid, uid), "uid": uid, "older": page.older, "newer": page.newer}
            lines = chain(lines, [ends])
        run.show(lines, records.MESSAGE_COLUMNS)
    if not run.json:
        for hint in _hints(page, f"im history {shlex.quote(uid)} {shlex.quote(gid)}", *given):
            output.remark(hint)


def _hints(page: "HistoryPage", this: str, cursor: str = "") -> Iterator[str]:
    """Yield how to go on from a page, or from the cursor of an empty one."""
    ends = (page.messages[0].msgid, page.messages[-1].msgid) if page.messages else (cursor, cursor)
    if page.older:
        yield f"older: {this} --before {ends[0]}"
    if page.newer:
        yield f"newer: {this} --after {ends[1]}"
