"""Brings to an end what processes that have died left behind in Redis. The worker `persist` does it now and then.

It is a courtesy: what cannot be done of it is told, and keeps nobody from storing.
"""

import logging
from collections.abc import Callable, Sequence

from imcore.errors import ImError
from imcore.operations import creation
from imcore.operations.performer import perform_in_redis, stream_from_redis
from imcore.streams.calls import creation_calls, session_calls
from imcore.streams.calls.call import Call
from imcore.streams.client import RedisClient
from imcore.util.backoff import ThrottledLog

log = logging.getLogger(__name__)

_TEXT = "what processes that died left behind is not settled: %s"


def settle(client: RedisClient, trouble: ThrottledLog) -> None:
    """Undo creations of groups that were given up, tell the members of those that were not told, and let nobody be
    online for as long as the server's clock stood ahead. Raise nothing: warn by way of `trouble`.
    """
    space, partitions = client.space, range(client.space.partitions)
    _answers(client, [session_calls.expire_online(space, p) for p in partitions], trouble)
    _each(client, [creation_calls.abandoned(space, p) for p in partitions], _undo, trouble)
    _each(client, [creation_calls.unnotified(space, p) for p in partitions], _tell, trouble)


def _undo(client: RedisClient, gid: str) -> None:
    if perform_in_redis(client, creation.undo(gid)):
        log.warning("group %r: its creation was given up, and is undone", gid)


def _tell(client: RedisClient, gid: str) -> None:
    perform_in_redis(client, creation.tell(gid, list(stream_from_redis(client, creation.first_members(gid)))))


def _each(
    client: RedisClient,
    questions: Sequence[Call[list[str]]],
    settle_one: Callable[[RedisClient, str], None],
    trouble: ThrottledLog,
) -> None:
    for gids in _answers(client, questions, trouble):
        for gid in gids if isinstance(gids, list) else ():
            try:
                settle_one(client, gid)
            except ImError as error:
                trouble.note(error, _TEXT)


def _answers(client: RedisClient, batch: Sequence[Call[object]], trouble: ThrottledLog) -> Sequence[object]:
    try:
        answers = client.call_each(batch)
    except ImError as error:
        answers = [error]
    for answer in answers:
        if isinstance(answer, ImError):
            trouble.note(answer, _TEXT)
    return answers
