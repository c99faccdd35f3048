"""Ends in Redis what processes that died had begun. The worker `persist` does so at times, and stores in any case."""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypeVar

from imcore.errors import ImError
from imcore.operations import creation
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
    _answers(client, [session_calls.settle(space, p) for p in partitions], trouble)
    for gids_of, settle_one in ((creation_calls.given_up, _undo), (creation_calls.untold, _tell)):
        for gid in chain.from_iterable(_answers(client, [gids_of(space, p) for p in partitions], trouble)):
            try:
                settle_one(client, gid)
            except ImError as error:
                trouble.note(error, _TEXT)


def _undo(client: RedisClient, gid: str) -> None:
    if creation.undo(client, gid):
        log.warning("group %r: its creation was given up, and is undone", gid)


def _tell(client: RedisClient, gid: str) -> None:
    creation.tell(client, gid, list(creation.first_members(client, gid)))


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
