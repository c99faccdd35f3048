"""Ends in Redis what processes that died had begun. The worker `persist` does so at times, and stores in any case."""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypeVar

from imcore.errors import ImError
from imcore.operations import creation
from imcore.operations.performer import perform_in_redis, stream_from_redis
from imcore.streams.calls import creation_calls, session_calls
from imcore.streams.calls.call import Call
from imcore.streams.client import RedisClient
from imcore.util.backoff import ThrottledLog

T = TypeVar("T")

log = logging.getLogger(__name__)

_TEXT = "what processes that died left behind is not settled: %s"


def settle(client: RedisClient, trouble: ThrottledLog) -> None:
    """Undo abandoned creations of groups, tell members that were not told, and cut sessions to their length.

    Sessions last too long if the server's clock was put back. Raise nothing: warn by way of `trouble`.
    """
    space, partitions = client.space, range(client.space.partitions)
    _answers(client, [session_calls.expire_online(space, p) for p in partitions], trouble)
    for gids_of, settle_one in ((creation_calls.abandoned, _undo), (creation_calls.unnotified, _tell)):
        for gid in chain.from_iterable(_answers(client, [gids_of(space, p) for p in partitions], trouble)):
            try:
                settle_one(client, gid)
            except ImError as error:
                trouble.note(error, _TEXT)


def _undo(client: RedisClient, gid: str) -> None:
    if perform_in_redis(client, creation.undo(gid)):
        log.warning("group %r: its creation was given up, and is undone", gid)


def _tell(client: RedisClient, gid: str) -> None:
    uids = list(stream_from_redis(client, creation.first_members(gid)))
    perform_in_redis(client, creation.tell(gid, uids))


def _answers(client: RedisClient, calls: Sequence[Call[T]], trouble: ThrottledLog) -> Iterator[T]:
    """Make calls; warn of errors, and return the other answers."""
    answers: Sequence[T | ImError]
    try:
        answers = client.call_each(calls)
    except ImError as error:
        answers = [error]
    for answer in answers:
        if isinstance(answer, ImError):
            trouble.note(answer, _TEXT)
    return (answer for answer in answers if not isinstance(answer, ImError))
