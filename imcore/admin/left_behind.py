"""Brings to an end what processes that have died left behind in Redis. The worker `persist` does it now and then."""

import logging

from imcore import creation
from imcore.streams import creation_calls, session_calls
from imcore.streams.link import Link

log = logging.getLogger(__name__)


def settle(link: Link) -> None:
    """Undo creations of groups that were given up, tell the members of those that were not told, and let nobody be
    online for as long as the server's clock stood ahead.
    """
    space = link.space
    partitions = range(space.partitions)
    link.run_many([session_calls.settle(space, p) for p in partitions])
    for gids in link.run_many([creation_calls.given_up(space, p) for p in partitions]):
        for gid in gids:
            if creation.undo(link, gid):
                log.warning("group %r: its creation was given up, and is undone", gid)
    for gids in link.run_many([creation_calls.untold(space, p) for p in partitions]):
        for gid in gids:
            creation.tell(link, gid, list(creation.first_members(link, gid)))
