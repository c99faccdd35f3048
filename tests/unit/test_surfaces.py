"""The asyncio classes have the surface of the synchronous ones: names, parameters, docstrings."""

import inspect
from typing import Any

import pytest

from imcore import AsyncChat, AsyncGateway, AsyncListener, Chat, Gateway, Listener

PAIRS = [(Chat, AsyncChat), (Gateway, AsyncGateway), (Listener, AsyncListener)]

PLAIN = {
    *("connect", "gateway", "listen", "groups", "members"),  # the last two are async iterators
    *("received", "delivered", "fetched", "confirm_receipts", "pause", "resume", "wake", "requeue"),
    *("reconnects", "resume_points"),
}
"""What needs no await: it does no I/O."""


def members(cls: type) -> dict[str, Any]:
    """The public ones, those of a class above included."""
    names = {name for each in cls.__mro__[:-1] for name in vars(each)}
    return {name: getattr(cls, name) for name in sorted(names) if not name.startswith("_")}


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]


def names_of_pairs() -> list[Any]:
    return [
        pytest.param(synchronous, asynchronous, name, id=f"{synchronous.__name__}.{name}")
        for synchronous, asynchronous in PAIRS
        for name in sorted(members(synchronous))
    ]


@pytest.mark.parametrize(("synchronous", "asynchronous"), PAIRS, ids=lambda cls: cls.__name__)
def test_both_have_the_same_names(synchronous: type, asynchronous: type) -> None:
    assert members(synchronous).keys() == members(asynchronous).keys()
    assert parameters(synchronous) == parameters(asynchronous)


@pytest.mark.parametrize(("synchronous", "asynchronous", "name"), names_of_pairs())
def test_each_has_the_same_parameters_and_docstring(synchronous: type, asynchronous: type, name: str) -> None:
    one, other = members(synchronous)[name], members(asynchronous)[name]
    assert one.__doc__ == other.__doc__
    assert one.__doc__ or name == "close"
    if not isinstance(one, property):
        assert parameters(one) == parameters(other)


@pytest.mark.parametrize(("synchronous", "asynchronous", "name"), names_of_pairs())
def test_whatever_may_wait_is_awaited(synchronous: type, asynchronous: type, name: str) -> None:
    is_plain = name in PLAIN and (asynchronous is not AsyncChat or name not in {"confirm_receipts", "delivered"})
    is_plain |= isinstance(members(asynchronous)[name], property)
    assert inspect.iscoroutinefunction(members(asynchronous)[name]) is not is_plain
