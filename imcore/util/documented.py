"""Docstrings that stand once. The methods of an asyncio class take those of the synchronous class."""

from collections.abc import Callable
from typing import TypeVar

C = TypeVar("C", bound=type)


def documented_as(model: type) -> Callable[[C], C]:
    """Give the methods of a class that have no docstring those of the methods of `model`."""

    def document(cls: C) -> C:
        for name, member in vars(cls).items():
            documented = getattr(model, name, None)
            described = getattr(member, "__func__", member)  # a class method's function has its docstring
            if documented is not None and not name.startswith("_") and not described.__doc__:
                described.__doc__ = documented.__doc__
        return cls

    return document
