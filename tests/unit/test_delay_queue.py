"""A delay queue, against a model that looks at everything each time."""

import math
import random

import pytest

from imcore.gateway.scheduler import DelayQueue


def test_a_refused_thing_waits_longer_and_longer_until_it_succeeds() -> None:
    queue: DelayQueue[str] = DelayQueue()
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
    queue: DelayQueue[int] = DelayQueue()
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
