"""Performs generators: each yields a step, is sent its answer or thrown its error, and returns its result. No I/O."""

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, TypeVar

Step = TypeVar("Step")
T = TypeVar("T")


def perform(steps: Generator[Step, Any, T], perform_one: Callable[[Step], Any]) -> T:
    """Perform one step after the other; return the result."""
    try:
        step = next(steps)
        while True:
            try:
                answer = perform_one(step)
            except BaseException as error:  # the generator puts itself in order, also after Ctrl-C
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


async def perform_async(
    steps: Generator[Step, Any, T], perform_one: Callable[[Step], Awaitable[Any]], *, begun: Step | None = None
) -> T:
    """Perform one step after the other under asyncio; return the result. `begun`: the step that was yielded already."""
    try:
        step = begun or next(steps)
        while True:
            try:
                answer = await perform_one(step)
            except BaseException as error:  # the generator puts itself in order, also after a cancellation
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def stream(steps: Generator[Step | list[T], Any, None], perform_one: Callable[[Step], Any]) -> Iterator[T]:
    """Perform one step after the other; yield the results, page by page, as they are asked for."""
    resume: Callable[[Any], Step | list[T]] = steps.send
    answer: Any = None
    while True:
        try:
            step = resume(answer)
        except StopIteration:
            return
        resume, answer = steps.send, None
        try:
            if isinstance(step, list):
                yield from step
            else:
                answer = perform_one(step)
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as error:
            resume, answer = steps.throw, error


async def stream_async(
    steps: Generator[Step | list[T], Any, None], perform_one: Callable[[Step], Awaitable[Any]]
) -> AsyncIterator[T]:
    """Do as `stream` does, under asyncio."""
    resume: Callable[[Any], Step | list[T]] = steps.send
    answer: Any = None
    while True:
        try:
            step = resume(answer)
        except StopIteration:
            return
        resume, answer = steps.send, None
        try:
            if isinstance(step, list):
                for result in step:
                    yield result
            else:
                answer = await perform_one(step)
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as error:
            resume, answer = steps.throw, error
