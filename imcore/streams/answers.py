"""What the answer of a call means: its value, or the ImError in its place."""

from collections.abc import Sequence
from typing import Any, TypeVar

from imcore.errors import ImError, RedisRefuses, RedisUnavailable
from imcore.streams.calls.call import Call

T = TypeVar("T")

_UNREADABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""The errors of decoding an answer of the wrong form."""


def result_of(call: Call[T], answer: Any, where: str) -> T | ImError:
    """Return what a call was answered by the server at `where`; the ImError in the answer's place, or that it means."""
    if isinstance(answer, ImError):
        return answer
    try:
        return call.decode(answer)
    except ImError as error:
        return error
    except _UNREADABLE as cause:  # the data was written by hand
        about = f" about {call.gid!r}" if call.gid else ""
        unreadable = ImError(f"{where} holds what cannot be read{about} ({call.function}): {cause!r}")
        unreadable.__cause__ = cause
        return unreadable


def raised(result: T | ImError) -> T:
    """Return a result; raise it if it is an error."""
    if isinstance(result, ImError):
        raise result
    return result


def first_hand(answers: Sequence[T | ImError]) -> T:
    """Return what the first of `Keyspace.configurations` has; if its node is silent, what the first copy has.

    A copy may be left when Redis has lost its data: it does not count while the first place answers. Raise the error of
    the first place if nobody who answers has it.
    """
    if isinstance(answers[0], RedisUnavailable | RedisRefuses):
        for answer in answers:
            if answer is not None and not isinstance(answer, ImError):
                return answer
    return raised(answers[0])
