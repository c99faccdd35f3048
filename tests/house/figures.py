"""The figures of the house, each with its bound."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.house import sources
from tests.house.sources import ROOT
from tests.house.walks import Walks

LINES_BEFORE = 30_343
"""Lines of Python and Lua at commit 87fc6d2, before the house was rebuilt."""

AIMS = {
    "product lines, Python and Lua": LINES_BEFORE * 87 // 100,
    "longest chain of imports between files of imcore": 14,
    "modules of imcore that workers.persist reaches": 45,
    "of these in the gateway, device and chat": 0,
    "calls below imcore.chat that hand a chat on": 0,
    "class names used twice": 0,
    "functions over complexity 10": 0,
    "longest module": 350,
    "longest test file": 500,
    "lines of README.md": 180,
    "classes between `im send` and the sender's receipt": 70,
    "files between `im send` and the sender's receipt": 35,
    "files that `im check` walks through": 15,
    "modules loaded under two names": 0,
}
"""What each figure is to be at most."""

REACHED = {
    "product lines, Python and Lua": 49_300,
    "modules of imcore that workers.persist reaches": 65,
    "longest chain of imports between files of imcore": 19,
    "classes between `im send` and the sender's receipt": 135,
    "files between `im send` and the sender's receipt": 43,
    "files that `im check` walks through": 23,
}
"""What is reached where an aim is missed: the tests let no figure grow again.

The aims are of the house without its network side, which brought 8,450 lines: asyncio, sessions that a socket can live
with, history, the server with its protocol, metrics and health.
"""

BOUNDS = {**AIMS, **REACHED}


@dataclass(frozen=True)
class Figure:
    """A measured number, and what makes it so large."""

    name: str
    value: int
    because: Sequence[str] = ()

    @property
    def aim(self) -> int:
        return AIMS[self.name]

    @property
    def is_reached(self) -> bool:
        return self.value <= self.aim


def of_source() -> list[Figure]:
    """Measure what the source says."""
    product = sources.files("imcore", ".py", ".lua")
    chain = sources.longest_chain()
    reached = sorted(sources.reached("imcore.workers.persist"))
    live = [name for name in reached if name.startswith(("imcore.gateway", "imcore.device", "imcore.chat"))]
    passed = sources.calls_with_chat()
    shared = [f"{name}: {', '.join(modules)}" for name, modules in sources.shared_class_names().items()]
    complex_functions = [f"{value} {name}" for name, value in sources.complex_functions(above=10).items()]
    return [
        Figure("product lines, Python and Lua", sum(map(sources.line_count, product))),
        Figure("longest chain of imports between files of imcore", len(chain), chain),
        Figure("modules of imcore that workers.persist reaches", len(reached), reached),
        Figure("of these in the gateway, device and chat", len(live), live),
        Figure("calls below imcore.chat that hand a chat on", len(passed), passed),
        Figure("class names used twice", len(shared), shared),
        Figure("functions over complexity 10", len(complex_functions), complex_functions),
        _longest("longest module", product),
        _longest("longest test file", sources.files("tests", ".py")),
        Figure("lines of README.md", sources.line_count(ROOT / "README.md")),
    ]


def of_walks(walks: Walks) -> list[Figure]:
    """Count what is on the way of two commands."""
    classes = sources.classes([ROOT / name for name in walks.receipt])
    return [
        Figure("classes between `im send` and the sender's receipt", len(classes), classes),
        Figure("files between `im send` and the sender's receipt", len(walks.receipt), walks.receipt),
        Figure("files that `im check` walks through", len(walks.check), walks.check),
        Figure("modules loaded under two names", len(walks.second_names), walks.second_names),
    ]


def _longest(name: str, paths: Sequence[Path]) -> Figure:
    lengths = sorted(((sources.line_count(path), str(path.relative_to(ROOT))) for path in paths), reverse=True)
    return Figure(name, lengths[0][0], [f"{length} {path}" for length, path in lengths if length > BOUNDS[name]])
