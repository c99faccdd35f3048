"""The tables of a group's client_msgids, as they would look if more time had passed."""

from imcore import Chat
from imcore.streams.keys import SEPARATOR

HOUR = 3_600_000


def put_back(chat: Chat, gid: str, ms: int) -> None:
    """Put all times in both tables back, as if the server's clock had been put ahead."""
    k = chat.system.client.space.group(gid)
    for table in (k.idempotency_newer, k.idempotency_older):
        if said := chat.system.client.driver.hget(table, SEPARATOR):
            since, length, *seen = map(int, said.split())
            words = (since - ms, length, *(at - ms for at in seen))
            chat.system.client.driver.hset(table, SEPARATOR, " ".join(map(str, words)))
