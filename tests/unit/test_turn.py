"""A turn is handed on in order, also while tasks that wait for it are cancelled."""

import asyncio

from imcore.util.turn import Turn


def test_a_turn_is_handed_on_in_order() -> None:
    async def story() -> None:
        turn, order = Turn(), []

        async def take(name: str) -> None:
            async with turn:
                order.append(name)
                await asyncio.sleep(0)

        assert turn.take()
        tasks = [asyncio.ensure_future(take(name)) for name in "abc"]
        await asyncio.sleep(0)
        assert not turn.take()
        turn.release()
        assert not turn.take()  # it is the first one's already
        await asyncio.gather(*tasks)
        assert order == ["a", "b", "c"]
        assert turn.take()

    asyncio.run(story())


def test_who_gives_up_does_not_keep_the_turn() -> None:
    async def story() -> None:
        turn = Turn()
        assert turn.take()
        waiting, handed, last = (asyncio.ensure_future(turn.acquire()) for _ in range(3))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        turn.release()
        handed.cancel()  # at the moment in which it is handed over
        await asyncio.wait([handed])
        assert handed.cancelled()
        await last
        assert turn.is_taken
        turn.release()
        assert not turn.is_taken

    asyncio.run(story())
