"""Trimming Redis and its journals."""

from dataclasses import asdict

import click

from imcore.cli import output
from imcore.cli.options import Invocation, NumberRange, command
from imcore.cli.progress import progress
from imcore.settings import MOST_DAYS_KEPT, MOST_MESSAGES_KEPT

_COLUMNS = ("groups", "entries", "journal_entries", "read_times", "rewritten")


@command("trim", example="im trim\nim trim --keep-messages 1000")
@click.option(
    "--keep-messages",
    type=click.IntRange(min=0, max=MOST_MESSAGES_KEPT),
    metavar="N",
    help="Keep the newest N messages of each group. [IM_KEEP_MESSAGES; default: 10000]",
)
@click.option(
    "--keep-days",
    type=NumberRange(min=0, max=MOST_DAYS_KEPT),
    metavar="D",
    help="Of these, keep what is younger than D days. [IM_KEEP_MS; default: 30 days]",
)
def trim(run: Invocation, keep_messages: int | None, keep_days: float | None) -> None:
    """Drop stream entries that are stored in SQL and old enough.

    What is dropped from Redis is read from SQL when somebody asks for it: nothing gets lost. The journals' entries
    that every kind of worker has handled are dropped too, and what SQL knows of when messages were read, where
    IM_KEEP_READ_TIMES_MS says for how long. Then each Redis rewrites its append-only file, so that what was dropped is
    on no disk any more: this waits for it.

    A recalled text is shown to nobody, and SQL has it no more. But in Redis, and in the rewritten file, it stays until
    its message is dropped: by default when it is 30 days old, or 10,000 newer ones have come. Where any stay, that is
    said on stderr; `im trim --keep-messages 0` drops all messages now that SQL has, and these texts with them.
    """
    from imcore.admin import append_only, retention  # noqa: PLC0415 (the help need not wait for the drivers)

    keep_ms = None if keep_days is None else round(keep_days * 24 * 60 * 60 * 1000)
    with run.chat() as chat:
        summary = retention.trim(chat.system, keep_messages=keep_messages, keep_ms=keep_ms)
        why_not = None if summary.journal_entries else retention.held_up(chat.system)
        with progress("servers") as shown:
            rewritten = append_only.forget_withdrawn(chat.system, always=True, on_progress=shown.to)
        recalled = append_only.count_kept(chat.system)
    run.show([asdict(summary) | {"rewritten": rewritten}], _COLUMNS)
    if why_not:
        output.complain(why_not)
    if recalled and not run.json:
        keeps_none = 0 in {keep_messages, keep_ms}
        output.remark(
            _recalled_line(recalled, "stored" if keeps_none else "past retention; --keep-messages 0 drops them now")
        )


def _recalled_line(recalled: int, until: str) -> str:
    texts, their = ("text stays", "its message is") if recalled == 1 else ("texts stay", "their messages are")
    return f"{recalled} recalled {texts} in Redis until {their} {until}"
