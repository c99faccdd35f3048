"""Dead letters: journal entries that a worker could not handle."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

import click

from imcore.cli import names, output
from imcore.cli.catalogue import COMMANDS
from imcore.cli.options import CommandGroup, Invocation, command, confirm, yes_option
from imcore.cli.output import Record
from imcore.errors import ImError

if TYPE_CHECKING:
    from imcore.admin.dead_letters import DeadLetter

_COLUMNS = ("id", "time", "worker", "deliveries", "reason")
_FIELD_COLUMNS = ("field", "value")


dead = CommandGroup("dead", help=COMMANDS["dead"][1], example="im dead list\nim dead requeue 3:1767225600000-0")


@command("list", of=dead, example="im dead list\nim dead list --json | jq -r .id | xargs -r im dead requeue")
def list_(run: Invocation) -> None:
    """List all dead letters."""
    from imcore.admin import dead_letters  # noqa: PLC0415 (the help need not wait for the drivers)

    with run.chat() as chat:
        run.show(map(_record, dead_letters.list_dead(chat.system)), _COLUMNS)


@command("show", of=dead, example="im dead show 3:1767225600000-0")
@click.argument("dead_id", metavar="ID")
def show(run: Invocation, dead_id: str) -> None:
    """Show one dead letter, with what the entry said."""
    from imcore.admin import dead_letters  # noqa: PLC0415

    with run.chat() as chat:
        letter = dead_letters.show(chat.system, dead_id)
    run.show([_record(letter)], _COLUMNS)
    if not run.json:
        output.say("")
        run.show(
            [{"field": name, "value": _readable(name, value)} for name, value in letter.fields.items()], _FIELD_COLUMNS
        )


@command("requeue", of=dead, example="im dead requeue 3:1767225600000-0")
@click.argument("dead_ids", metavar="ID...", nargs=-1, required=True)
def requeue(run: Invocation, dead_ids: tuple[str, ...]) -> None:
    """Put dead letters back into the journal, each for the kind of worker that failed."""
    from imcore.admin import dead_letters  # noqa: PLC0415

    with run.chat() as chat:
        _each(run, dead_ids, lambda dead_id: dead_letters.requeue(chat.system, dead_id), "requeued")


@command("drop", of=dead, example="im dead drop 3:1767225600000-0 --yes")
@click.argument("dead_ids", metavar="ID...", nargs=-1, required=True)
@yes_option
def drop(run: Invocation, dead_ids: tuple[str, ...], yes: bool) -> None:
    """Forget dead letters: what they tell of is never handled."""
    from imcore.admin import dead_letters  # noqa: PLC0415

    confirm(f"Drop {', '.join(dead_ids)}? What they tell of is never handled.", yes=yes)
    with run.chat() as chat:
        _each(run, dead_ids, lambda dead_id: dead_letters.drop(chat.system, dead_id), "dropped")


def _each(run: Invocation, dead_ids: Sequence[str], action: Callable[[str], None], name: str) -> None:
    """Apply an action to each dead letter, and show those that are done. The first failure ends it."""
    done: list[str] = []
    failures: list[BaseException] = []

    def records() -> Iterator[Record]:
        for dead_id in dead_ids:
            try:
                action(dead_id)
            except (ImError, KeyboardInterrupt) as error:
                failures.append(error)
                return
            done.append(dead_id)
            yield {"id": dead_id, name: True}

    rows = records()
    try:
        if first := list(islice(rows, 1)):
            run.show(output.handed_over(chain(first, rows)), ("id", name))
    except output.OutputError as error:
        raise output.OutputError(f"{done[-1]} is {name}, but {error}") from error
    if failures:
        raise failures[0]


def _readable(field: str, value: str) -> str:
    """Return the value of a field as people read it: a name, a text, or several names in one value."""
    if field in names.NAMES:
        return names.name(value)
    return value if field == "content" else names.marked(value)


def _record(letter: "DeadLetter") -> Record:
    keys = ("id", "worker", "reason", "entry", "deliveries", "time")
    return {key: getattr(letter, key) for key in keys} | {"fields": dict(letter.fields)}
