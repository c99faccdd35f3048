"""A delay queue, against a model that looks at everything each time."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from imcore.errors import ImError, RedisRefuses, RedisUnavailable
from imcore.gateway.scheduler import DelayQueue
from imcore.operations.effects import Effects
from imcore.util.backoff import ThrottledLog
from imcore.util.steps import perform


def refused_by(errors: dict[Any, ImError]) -> Callable[[Sequence[Any]], Effects[dict[Any, ImError]]]:
    """Return an operation that refuses some things; all, with RedisUnavailable, once it is to refuse `None`."""

    def operation(things: Sequence[Any]) -> Effects[dict[Any, ImError]]:
        if None in errors:
            raise errors[None]
        yield from ()
        return {thing: errors[thing] for thing in things if thing in errors}

    return operation


def test_a_refused_thing_waits_alone_and_an_error_of_the_operation_loses_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors: dict[Any, ImError] = {"a": RedisRefuses("not now")}
    queue: DelayQueue[str] = DelayQueue(refused_by(errors), "it waits: %s", ThrottledLog(float), lambda: 5.0, limit=2)
    queue.add(["a", "b", "c"])
    perform(queue.step(), print)
    assert (len(queue), queue.due()) == (2, 0.0)
    perform(queue.step(), print)
    assert (len(queue), queue.due()) == (1, pytest.approx(5.05))
    assert [record.getMessage() for record in caplog.records] == ["it waits: not now"]
    errors[None] = RedisUnavailable("nobody there")
    with pytest.raises(RedisUnavailable):
        perform(queue.run(math.inf), print)
    assert (len(queue), queue.due()) == (1, 0.0)


def test_a_refused_thing_waits_longer_and_longer_until_it_succeeds() -> None:
    queue: DelayQueue[str] = DelayQueue(refused_by({}), "%s", ThrottledLog(float), float)
    queue.add(["a", "b"])
    assert queue.take(5, 0.0) == ["a", "b"]
    for wait in (0.05, 0.1, 0.2):
        queue.postpone("a", 10.0)
        assert queue.due() == pytest.approx(10 + wait)
        queue.add(["a"])
        assert queue.take(5, 10.0) == []
        assert queue.take(5, 10 + wait) == ["a"]
    queue.succeeded(["b"])
    queue.postpone("b", 10.0)
    assert queue.due() == pytest.approx(10.05)
    queue.discard("b")
    assert (queue.due(), len(queue)) == (math.inf, 0)


@pytest.mark.parametrize("seed", range(20))
def test_random_histories(seed: int) -> None:
    chance = random.Random(seed)
    queue: DelayQueue[int] = DelayQueue(refused_by({}), "%s", ThrottledLog(float), float)
    ready: list[int] = []
    later: dict[int, tuple[float, int]] = {}
    failures: dict[int, int] = {}
    now = 0.0
    for step in range(400):
        now += chance.choice([0, 0.03, 0.5])
        thing = chance.randrange(8)
        match chance.randrange(5):
            case 0:
                queue.add([thing])
                if thing not in ready and thing not in later:
                    ready.append(thing)
            case 1 if thing not in ready and thing not in later:  # it was taken
                queue.postpone(thing, now)
                later[thing] = now + min(4.0, 0.05 * 2 ** failures.get(thing, 0)), step
                failures[thing] = failures.get(thing, 0) + 1
            case 2:
                queue.succeeded([thing])
                failures.pop(thing, None)
            case 3:
                queue.discard(thing)
                failures.pop(thing, None)
                later.pop(thing, None)
                ready = [each for each in ready if each != thing]
            case _:
                over = sorted((end, each) for each, end in later.items() if end[0] <= now)
                ready += [each for _, each in over]
                for _, task in over:
                    del later[task]
                most = chance.randrange(4)
                assert queue.take(most, now) == ready[:most]
                del ready[:most]
        assert len(queue) == len(ready) + len(later)
        ends = [end for end, _ in later.values()]
        assert queue.due() == (0.0 if ready else pytest.approx(min(ends, default=math.inf)))
