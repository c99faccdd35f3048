"""Ends in Redis what processes that died had begun. The worker `persist` does so at times, and stores in any case."""

import logging
from collections.abc import Callable, Sequence

from imcore.errors import ImError
from imcore.operations import creation
from imcore.streams.calls import creation_calls, session_calls
from imcore.streams.calls.call import Call
from imcore.streams.client import RedisClient
from imcore.util.backoff import ThrottledLog

log = logging.getLogger(__name__)

_TEXT = "what processes that died left behind is not settled: %s"


def settle(client: RedisClient, trouble: ThrottledLog) -> None:
    """Undo abandoned creations of groups, tell members that were not told, and cut sessions to their length.

    Sessions last too long if the server's clock was put back. Raise nothing: warn by way of `trouble`.
    """
    space, partitions = client.space, range(client.space.partitions)
    _answers(client, [session_calls.settle(space, p) for p in partitions], trouble)
    _each(client, [creation_calls.given_up(space, p) for p in partitions], _undo, trouble)
    _each(client, [creation_calls.untold(space, p) for p in partitions], _tell, trouble)


def _undo(client: RedisClient, gid: str) -> None:
    if creation.undo(client, gid):
        log.warning("group %r: its creation was given up, and is undone", gid)


def _tell(client: RedisClient, gid: str) -> None:
    creation.tell(client, gid, list(creation.first_members(client, gid)))


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
