"""The bounds of a client: rates, lanes, and the end of a token, on clocks of the tests."""

import asyncio
import random
import struct
import time
from functools import partial
from itertools import count

import pytest

from imcore.web.flow import Expiry, Frame, Lane, RateLimit, RateLimits, SendQueue


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class TestRates:
    def test_a_burst_is_taken_and_then_as_many_as_come_in_time(self) -> None:
        clock = Clock()
        rate = RateLimit(10, 5, clock)
        assert [rate.take() for _ in range(7)] == [True] * 5 + [False] * 2
        clock.now += 0.35
        assert [rate.take() for _ in range(2)] == [True, False]
        clock.now += 1000
        assert [rate.take() for _ in range(6)] == [True] * 5 + [False]

    def test_as_many_refusals_as_the_burst_are_a_flood(self) -> None:
        rate = RateLimit(10, 5, Clock())
        for _ in range(10):
            rate.take()
        assert not rate.is_flooded
        rate.take()
        assert rate.is_flooded

    def test_callers_have_a_limit_each_and_old_ones_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(RateLimits, "MOST", 2)
        rates = RateLimits(0.001, 1)
        assert [rates.take("ann"), rates.take("ann"), rates.take("bob"), rates.take("cy")] == [True, False, True, True]
        assert rates.take("ann")


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


class TestLanes:
    @pytest.mark.parametrize("is_held_at_times", [False, True])
    @pytest.mark.parametrize("width", [1, 2, 3])
    def test_whenever_a_job_comes_it_begins_once_and_in_a_lane_of_one_in_its_turn(
        self, width: int, is_held_at_times: bool
    ) -> None:
        """Also in the moment between the end of a task and what the loop calls then."""
        chance = random.Random(width)

        async def hold(lane: Lane, begun: list[int]) -> None:
            lane.hold(True)
            await turns(5)  # those that have been started begin
            before = len(begun)
            await turns(chance.randrange(5))
            assert len(begun) == before
            lane.hold(False)

        async def story() -> None:
            loop, lane, added, begun = asyncio.get_running_loop(), Lane(width, 1000), count(), []

            def come() -> None:
                number = next(added)

                async def work() -> None:
                    begun.append(number)
                    for _ in range(chance.randrange(3)):
                        await asyncio.sleep(0)
                    if number < 300:
                        chance.choice(
                            [come, partial(loop.call_soon, come), partial(loop.call_soon, loop.call_soon, come)]
                        )()

                assert lane.add(work)

            for _ in range(width):
                come()
            async with asyncio.timeout(10):
                while len(begun) < 300:
                    await asyncio.sleep(0)
                    if is_held_at_times and chance.random() < 0.2:
                        await hold(lane, begun)
            await lane.ended()
            assert (begun if width == 1 else sorted(begun)) == list(range(len(begun)))

        asyncio.run(story())

    def test_jobs_run_side_by_side_up_to_the_width_and_in_their_order(self) -> None:
        async def story() -> None:
            lane, gate, begun = Lane(2, 3), asyncio.Event(), []

            def job(number: int):  # type: ignore[no-untyped-def]
                async def work() -> None:
                    begun.append(number)
                    await gate.wait()

                return work

            assert [lane.add(job(number)) for number in range(7)] == [True] * 5 + [False] * 2
            await asyncio.sleep(0)
            assert begun == [0, 1]
            gate.set()
            await lane.ended()
            assert begun == [0, 1, 2, 3, 4]
            assert lane.is_idle

        asyncio.run(story())

    def test_a_lane_that_is_stopped_runs_nothing_more(self) -> None:
        async def story() -> None:
            lane, done = Lane(1, 5), []

            async def work() -> None:
                await asyncio.sleep(0.01)
                done.append(1)

            for _ in range(3):
                lane.add(work)
            lane.stop()
            await lane.ended()
            assert done == []

        asyncio.run(story())


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 200_000])
def test_a_frame_has_the_header_of_its_size(size: int) -> None:
    frame = Frame(b"x" * size)
    head = frame.websocket[: len(frame.websocket) - size]
    expected = {
        True: struct.pack("!BB", 0x81, size) if size < 126 else b"",
        False: struct.pack("!BBH", 0x81, 126, size) if 126 <= size < 65_536 else struct.pack("!BBQ", 0x81, 127, size),
    }
    assert head == (expected[size < 126])
    assert frame.websocket is frame.websocket


class TestExpiry:
    @pytest.mark.parametrize(("left", "notice_in"), [(3600, 3540), (120, 60), (60, 30), (1, 0.5), (-5, 0)])
    def test_the_notice_comes_a_minute_before_or_after_half_of_the_time(self, left: float, notice_in: float) -> None:
        async def story() -> None:
            expiry = Expiry(lambda _: None, lambda: None)
            loop = asyncio.get_running_loop()
            expiry.set(time.time() + left)
            assert expiry._timer
            assert expiry._timer.when() - loop.time() == pytest.approx(notice_in, abs=1)
            expiry.stop()

        asyncio.run(story())

    def test_a_token_for_years_has_a_timer_that_looks_again(self) -> None:
        async def story() -> None:
            told: list[float] = []
            expiry = Expiry(told.append, lambda: told.append(-1))
            expiry.set(time.time() + 10 * 365 * 86_400)
            assert expiry._timer
            assert expiry._timer.when() - asyncio.get_running_loop().time() < 100_000
            expiry._notice(time.time() + 9 * 365 * 86_400)
            assert told == []
            expiry._notice(time.time() + 30)
            assert told == [pytest.approx(30, abs=1)]
            expiry._end(time.time() + 10)
            assert len(told) == 1
            expiry._end(time.time() - 1)
            assert told[-1] == -1
            expiry.set(None)
            assert expiry._timer is None

        asyncio.run(story())


class DrainingSocket:
    """Takes what it holds whenever the test says so."""

    HIGH_WATER = 2000

    def __init__(self) -> None:
        self.remote = "test"
        self.buffered = 0
        self.queue: SendQueue

    def send(self, frame: Frame) -> None:
        self.buffered += len(frame.websocket)
        if self.buffered > self.HIGH_WATER:
            self.queue.writable(False)

    def close(self, code: int, reason: str) -> None:
        raise AssertionError("it is not closed")

    def drain(self) -> None:
        self.buffered = 0
        self.queue.writable(True)


def test_an_answer_may_be_larger_than_all_that_may_wait() -> None:
    async def story() -> None:
        socket, slow, stuck = DrainingSocket(), [], []
        socket.queue = queue = SendQueue(socket, 10_000, 60, slow.append, lambda: stuck.append(True))
        for _ in range(3):
            queue.send(Frame(b"x" * 50_000), is_answer=True)
        for _ in range(10):
            queue.send(Frame(b"x" * 1000))
        assert (slow, stuck) == ([True], [])
        for _ in range(20):
            socket.drain()
        assert (slow, stuck) == ([True, False], [])
        for _ in range(15):
            queue.send(Frame(b"x" * 1000))
        assert stuck
        queue.stop()

    asyncio.run(story())


class TestPatience:
    def test_a_socket_that_takes_some_all_the_time_is_not_stuck_however_much_waits(self) -> None:
        async def story() -> None:
            socket, stuck = DrainingSocket(), []
            socket.queue = SendQueue(socket, 10**9, 0.2, lambda _: None, lambda: stuck.append(True))
            for _ in range(1000):
                socket.queue.send(Frame(b"x" * 1000))
            for _ in range(30):
                await asyncio.sleep(0.03)
                socket.drain()
            assert not stuck
            async with asyncio.timeout(10):
                while not stuck:
                    await asyncio.sleep(0.03)
            socket.queue.stop()

        asyncio.run(story())


def test_refused_callers_may_call_again_as_soon_as_they_have_waited() -> None:
    clock = Clock()
    rates = RateLimits(10, 5, clock)
    assert [rates.take("ann") for _ in range(10_000)].count(True) == 5
    clock.now += 0.3
    assert rates.take("ann")
