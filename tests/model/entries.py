"""Every public function that takes user input, found by inspection: a new one cannot be forgotten."""

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple, get_args

from hypothesis import strategies as st

from imcore import Chat
from imcore.admin import retention, stats
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase
from imcore.gateway.gateway import Gateway
from imcore.model import direct
from imcore.repair import check
from imcore.streams import dead_letters
from tests.model.mischief import OF_ONE_ENTRY, PARAMETERS

CLASSES: tuple[type, ...] = (Chat, Gateway, Device, LocalDatabase)
MODULES: tuple[ModuleType, ...] = (direct, dead_letters, retention, stats, check)

PUBLIC_ABOVE = {Chat, Gateway}
"""Those whose classes above them are a part of their public surface."""

ELSEWHERE = {
    "Chat.connect": "takes URLs: see the tests of settings",
    "Chat.close": "ends the history",
    "Gateway.close": "ends the history",
    "LocalDatabase.close": "ends the history",
}


class Entry(NamedTuple):
    """A public function: of an object, or of a module, where it takes the Chat first if it takes one."""

    owner: str
    name: str
    function: Callable[..., Any]
    parameters: tuple[str, ...]

    @property
    def title(self) -> str:
        """What it is called in ELSEWHERE and in reports."""
        return f"{self.owner}.{self.name}"

    def __repr__(self) -> str:
        return self.title

    def strategy(self, parameter: str) -> st.SearchStrategy[Any]:
        """The strategy for a parameter. Raise KeyError if it has none."""
        special = {name: generator for name, generator in OF_ONE_ENTRY.items() if name.endswith(f".{parameter}")}
        for name in (f"{self.title}.{parameter}", f"{self.owner}.{parameter}"):
            if name in special:
                return special[name]
        return PARAMETERS[parameter]

    def arguments(self) -> st.SearchStrategy[dict[str, Any]]:
        """Arguments by name, any of them wrong."""
        return st.fixed_dictionaries({name: self.strategy(name) for name in self.parameters})


def entries() -> list[Entry]:
    """Return all public functions of CLASSES and MODULES, but for those of ELSEWHERE."""
    return [entry for entry in (*_of_classes(), *_of_modules()) if entry.title not in ELSEWHERE]


def _of_classes() -> Iterator[Entry]:
    for owner in CLASSES:
        above = owner.__mro__[-2:0:-1] if owner in PUBLIC_ABOVE else ()
        members = {name: function for cls in (*above, owner) for name, function in vars(cls).items()}
        for name, function in members.items():
            if not name.startswith("_") and not isinstance(function, property):
                plain = getattr(function, "__func__", function)  # of a class method
                if callable(plain):
                    yield Entry(owner.__name__, name, plain, _parameters(plain)[1:])


def _of_modules() -> Iterator[Entry]:
    for module in MODULES:
        for name, function in vars(module).items():
            if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_"):
                yield Entry(module.__name__.rpartition(".")[2], name, function, _parameters(function))


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    names: list[str] = []
    for name, parameter in inspect.signature(function).parameters.items():
        is_options = parameter.kind is inspect.Parameter.VAR_KEYWORD  # its annotation is Unpack[a TypedDict]
        names += get_args(parameter.annotation)[0].__annotations__ if is_options else [name]
    return tuple(names)
