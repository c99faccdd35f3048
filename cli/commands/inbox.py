"""A user's inbox, and what they mark unread in it."""

import shlex
from itertools import chain

import click

from imcore.cli import output, records
from imcore.cli.app import Invocation, command
from imcore.cli.names import to_gid
from imcore.model.records import inbox_record, totals_record, unread_record

MOST = 500


@command("inbox", example="im inbox bob\nim inbox bob --unread-only --limit 10")
@click.argument("uid")
@click.option("--limit", type=click.IntRange(1, MOST), default=50, metavar="N", help="At most N groups (default 50).")
@click.option("--after", metavar="CURSOR", help="The groups after this place, which the page before names.")
@click.option("--unread-only", is_flag=True, help="Only groups with unread messages.")
def inbox(run: Invocation, uid: str, limit: int, after: str | None, unread_only: bool) -> None:
    """The group with the latest message comes first; groups without messages come last. Recalled messages do not count.
    With --json the last line has the totals of all groups, and the cursor of the next page.
    """
    with run.chat() as chat:
        page = chat.inbox(chat.known_user(uid), limit=limit, after=after, unread_only=unread_only)
        lines = map(records.peers_at(chat, uid), map(inbox_record, page.entries))
        run.show(chain(lines, [totals_record(page)]) if run.json else lines, records.INBOX_COLUMNS)
    if not run.json:
        output.say("")
        run.show([totals_record(page)], records.TOTALS_COLUMNS)
        if page.next:
            this = f"im inbox {shlex.quote(uid)} --limit {limit}" + " --unread-only" * unread_only
            output.remark(f"more: {this} --after {shlex.quote(page.next)}")
    records.check_whole(page.silent)


@command("mark", example="im mark bob team 1767225600000-0")
@click.argument("uid")
@click.argument("gid")
@click.argument("msgid")
def mark(run: Invocation, uid: str, gid: str, msgid: str) -> None:
    """For UID alone: nobody else can tell, and receipts stay. Earlier ones then count as read, for that user alone.
    MSGID is one of the newest 100 messages of the group. An ack of it or of a later one removes the mark.
    """
    with run.chat() as chat:
        run.show([unread_record(uid, chat.mark_unread(uid, to_gid(gid, uid), msgid))], records.MARK_COLUMNS)


@command("unmark", example="im unmark bob team")
@click.argument("uid")
@click.argument("gid")
def unmark(run: Invocation, uid: str, gid: str) -> None:
    """Without a mark nothing changes."""
    with run.chat() as chat:
        run.show([unread_record(uid, chat.unmark(uid, to_gid(gid, uid)))], records.MARK_COLUMNS)
