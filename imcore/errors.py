"""Everything that can go wrong, in one tree.

An error's docstring is its default message. Errors of drivers are translated where they leave the driver
(`imcore.streams.redis_errors`, the back ends of `imcore.sql`, `imcore.device.local_file`) and kept as `__cause__`.
"""

from collections.abc import Collection


class ImError(Exception):
    """Something went wrong."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class InvalidInput(ImError):
    """The input is not valid."""


class UnknownGroup(ImError):
    """There is no such group."""


class GroupExists(ImError):
    """The group exists already, with other members."""


class NotMember(ImError):
    """That user is not a member of the group."""


class UnknownUser(ImError):
    """There is no such user."""


class NotSender(ImError):
    """That message is not by that user."""


class UnknownMessage(ImError):
    """There is no such message in that group."""


class UnknownDeadLetter(ImError):
    """There is no such dead letter."""


class NotAuthenticated(ImError):
    """No token came, or one that is not valid."""


class NotAllowed(ImError):
    """The caller is not allowed to do that."""


class SessionExpired(ImError):
    """The session has expired: open a new one."""


class LocalDatabaseError(ImError):
    """The local database cannot be used."""


class ConfigurationError(ImError):
    """The settings cannot work together, or not with the data that is there."""


class DatabaseNotReady(ConfigurationError):
    """The database has no tables of imcore yet: run `im db upgrade`."""


class RefusedError(ImError):
    """Refused, because it would destroy something: repeat it with --yes if that is meant."""


class TryAgain(ImError):
    """The cause may pass: trying again can help."""


class GroupUnderWay(TryAgain):
    """Another process creates or deletes the group."""


class GroupAbandoned(GroupUnderWay):
    """A process has died over the creation of the group."""


class UserErasing(TryAgain):
    """A user of that name is being erased: it can be used again when that has ended."""


class TooManyCalls(TryAgain):
    """A client calls more often than it may."""


class TooManySockets(TryAgain):
    """A user or the server has as many sockets as it may have."""


class RedisUnavailable(TryAgain):
    """Redis cannot be reached."""


class RedisRefuses(TryAgain):
    """Redis answers, but refuses this for now: nothing was changed."""


class NotDurable(TryAgain):
    """The message `msgid` is stored, but what was asked for beyond that was not confirmed in time."""

    def __init__(self, message: str | None = None, *, msgid: str = "") -> None:
        super().__init__(message)
        self.msgid = msgid


class RedisFull(TryAgain):
    """Redis has no memory left: nothing was stored."""


class DatabaseUnavailable(TryAgain):
    """The database cannot be reached."""


class DatabaseOpening(DatabaseUnavailable):
    """The database is being opened: try again in a moment."""


class DatabaseReplaced(DatabaseUnavailable):
    """The database that was in use is gone, or another one has its place."""


class GroupDeleted(DatabaseUnavailable):
    """The group was deleted while its rows were about to be written: nothing was."""


class ErasuresChanged(DatabaseUnavailable):
    """The erasure of a user began or ended while rows were about to be written that may name them: none was."""


class DatabaseRejected(ImError):
    """The database does not accept a row, and never will."""


class EmbeddedServerError(ImError):
    """The embedded server could not be started, or cannot be reached any more."""


def concerns_all(error: ImError) -> bool:
    """Return whether an error of one call of Redis concerns all others, too: Redis is away, full, or misconfigured.

    All other errors are about the group, user or partition of the call: other calls may succeed.
    """
    return isinstance(error, RedisUnavailable | RedisFull | ConfigurationError)


def raise_what_stops_all(answers: Collection[object]) -> None:
    """Raise an error among the answers to calls of Redis that concerns all of them.

    A single node of a cluster may be away or full: its errors are raised only if no call has another answer.
    """
    errors = [answer for answer in answers if isinstance(answer, ImError) and concerns_all(answer)]
    for error in errors:
        if isinstance(error, ConfigurationError) or len(errors) == len(answers):
            raise error
