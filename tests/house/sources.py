"""What the source says: files, lines, imports, classes, complexity. Nothing of the product is imported for it."""

import ast
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

ON_TOP = ("imcore.cli", "imcore.workers")
"""Packages that start the product. They are not part of the core that they start."""

_AT_OR_ABOVE_CHAT = ("imcore.chat", "imcore.aio", "imcore.device", "imcore.importer", "imcore.web")

_BRANCHES = (ast.If, ast.For, ast.While, ast.AsyncFor, ast.ExceptHandler, ast.IfExp, ast.match_case, ast.Assert)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def files(folder: str, *suffixes: str) -> list[Path]:
    """Return the files below a folder of the repository that end so, sorted. It follows links."""
    paths = []
    for place, folders, names in os.walk(ROOT / folder, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        paths += [Path(place, name) for name in names if name.endswith(suffixes)]
    return sorted(paths)


@cache
def product() -> Mapping[str, Path]:
    """Return the file of each module of the product, by the module's name."""
    return {module_name(path): path for path in files("imcore", ".py")}


def module_name(path: Path) -> str:
    """Return the name under which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def line_count(path: Path) -> int:
    """Return how many lines a file has, as `wc -l` counts them."""
    return path.read_bytes().count(b"\n")


@cache
def syntax(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(module: str) -> set[str]:
    """Return the modules of the product that load with a module: what functions import is left out, and annotations."""
    modules = set()
    for node in _statements(syntax(product()[module])):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules |= {name if name in product() else node.module for name in names}
    return (modules & product().keys()) - {module}


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when the module is loaded."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _FUNCTIONS) or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            continue
        yield child
        yield from _statements(child)


def is_core(module: str) -> bool:
    """Return whether a module is part of what commands and workers start."""
    return not module.startswith(ON_TOP)


def longest_chain() -> list[str]:
    """Return the longest chain of imports between modules of the core. Raise ValueError where they form a circle."""
    chains: dict[str, list[str]] = {}

    def chain(module: str, above: tuple[str, ...]) -> list[str]:
        if module in above:
            raise ValueError(" > ".join((*above, module)))
        if module not in chains:
            below = [chain(each, (*above, module)) for each in sorted(filter(is_core, imports(module)))]
            chains[module] = [module, *max(below, key=len, default=[])]
        return chains[module]

    return max((chain(module, ()) for module in sorted(filter(is_core, product()))), key=len)


def reached(module: str) -> set[str]:
    """Return the modules of the core that load with a module."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += imports(current)
    return set(filter(is_core, seen - {module}))


def classes(paths: Collection[Path]) -> list[str]:
    """Return the names of all classes that are defined in these files."""
    return [node.name for path in paths for node in ast.walk(syntax(path)) if isinstance(node, ast.ClassDef)]


def shared_class_names() -> dict[str, list[str]]:
    """Return the names that several classes of the product have, with the modules of these."""
    modules = defaultdict(list)
    for module, path in product().items():
        for name in classes([path]):
            modules[name].append(module)
    return {name: owners for name, owners in modules.items() if len(owners) > 1}


def complex_functions(above: int) -> dict[str, int]:
    """Return the functions of the product whose complexity is above a bound, the worst first."""
    complexities = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": complexity(node)
        for path in product().values()
        for node in ast.walk(syntax(path))
        if isinstance(node, _FUNCTIONS)
    }
    return {name: value for name, value in sorted(complexities.items(), key=lambda item: -item[1]) if value > above}


def complexity(function: ast.AST) -> int:
    """Return one more than there are branches. `and`, `or`, `if else` and a comprehension's parts are branches, too."""
    total = 1
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        total += _branches(node)
        if not isinstance(node, _FUNCTIONS):
            waiting += ast.iter_child_nodes(node)
    return total


def _branches(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return int(isinstance(node, _BRANCHES))


def calls_with_chat() -> list[str]:
    """Return the places below `imcore.chat` that hand a Chat on."""
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for module, path in product().items()
        if is_core(module) and not module.startswith(_AT_OR_ABOVE_CHAT)
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.Call)
        for value in (*node.args, *(keyword.value for keyword in node.keywords))
        if isinstance(value, ast.Name) and value.id == "chat"
    ]
