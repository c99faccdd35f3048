"""Brings to an end what processes that have died left behind in Redis. The worker `persist` does it now and then.

It is a courtesy: what cannot be done of it is told, and keeps nobody from storing.
"""

import logging
from collections.abc import Callable, Sequence

from imcore import creation
from imcore.backoff import Trouble
from imcore.errors import ImError
from imcore.streams import creation_calls, session_calls
from imcore.streams.calls import Call
from imcore.streams.link import Link

log = logging.getLogger(__name__)

_TEXT = "what processes that died left behind is not settled: %s"


def settle(link: Link, trouble: Trouble) -> None:
    """Undo creations of groups that were given up, tell the members of those that were not told, and let nobody be
    online for as long as the server's clock stood ahead. Raise nothing: warn by way of `trouble`.
    """
    space, partitions = link.space, range(link.space.partitions)
    _answers(link, [session_calls.settle(space, p) for p in partitions], trouble)
    _each(link, [creation_calls.given_up(space, p) for p in partitions], _undo, trouble)
    _each(link, [creation_calls.untold(space, p) for p in partitions], _tell, trouble)


def _undo(link: Link, gid: str) -> None:
    if creation.undo(link, gid):
        log.warning("group %r: its creation was given up, and is undone", gid)


def _tell(link: Link, gid: str) -> None:
    creation.tell(link, gid, list(creation.first_members(link, gid)))


def _each(
    link: Link, questions: Sequence[Call[list[str]]], settle_one: Callable[[Link, str], None], trouble: Trouble
) -> None:
    for gids in _answers(link, questions, trouble):
        for gid in gids if isinstance(gids, list) else ():
            try:
                settle_one(link, gid)
            except ImError as error:
                trouble.note(error, _TEXT)


def _answers(link: Link, batch: Sequence[Call[object]], trouble: Trouble) -> Sequence[object]:
    try:
        answers = link.gather(batch)
    except ImError as error:
        answers = [error]
    for answer in answers:
        if isinstance(answer, ImError):
            trouble.note(answer, _TEXT)
    return answers
