"""Whether the two stores answer, for `/readyz`."""

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from imcore.errors import ImError

if TYPE_CHECKING:
    from imcore.aio import AsyncChat

HEALTH_S = 2.0


async def redis_trouble(chat: "AsyncChat") -> str | None:
    """Return why Redis does not answer, None if it does."""
    return await _trouble(chat.online(["-"]), "Redis")


async def sql_trouble(chat: "AsyncChat") -> str | None:
    """Return why the SQL database cannot be used, None if it can."""
    return await _trouble(chat.open_database(), "the database")


async def _trouble(answer: Awaitable[object], whose: str) -> str | None:
    try:
        async with asyncio.timeout(HEALTH_S):
            await answer
    except TimeoutError:
        return f"{whose} has not answered within {HEALTH_S:g} s"
    except ImError as error:
        return str(error)
    return None
