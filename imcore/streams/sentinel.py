"""Connections to the primary of a name, wherever it is now: Sentinels say so, whenever a connection begins.

See https://redis.io/docs/latest/develop/reference/sentinel-clients/.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from imcore.streams.connections import TcpConnection, TlsConnection
from imcore.streams.places import Place
from imcore.streams.redis_errors import LOST, LostNodeError, NoPrimaryError

DEFAULT_PORT = 26_379

PATIENCE_S = (0.25, 1.0)
"""How long to wait for the answer of a Sentinel, in the first round and in the second one."""


class Sentinels:
    """Sentinels that watch a primary, by its name. Thread-safe."""

    def __init__(self, places: Sequence[Place], name: str, where: str, options: Mapping[str, Any]) -> None:
        """`options` are those of a connection to a Sentinel."""
        self._places = [place._replace(port=place.port or DEFAULT_PORT) for place in places]
        self._name = name
        self._where = where
        self._options = options
        self.primary: Place | None = None
        """As a Sentinel has said last."""

    def find(self) -> Place:
        """Return where the primary is. Raise NoPrimaryError if no Sentinel knows it, or the refusal of one."""
        knows_another = False
        for patience_s in PATIENCE_S:
            for place in list(self._places):
                try:
                    answer = self._ask(place, patience_s)
                except LOST:
                    continue
                if answer:
                    self._places = [place, *(other for other in self._places if other != place)]
                    self.primary = Place(answer[0].decode(), int(answer[1]))
                    return self.primary
                knows_another = True
            if knows_another:
                raise NoPrimaryError(f"the Sentinels of {self._where} know no primary called {self._name!r}")
        raise NoPrimaryError(f"no Sentinel answers at {self._where}: start one, or name others in the URL")

    def _ask(self, place: Place, patience_s: float) -> Any:
        options = {**self._options, "socket_timeout": patience_s, "socket_connect_timeout": patience_s}
        kind = options.pop("connection_class")
        connection = kind(**options, host=place.host, port=place.port)
        try:
            connection.connect()
            connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
            return connection.read_response()
        finally:
            connection.disconnect()


class _PrimaryMixin:
    """A mixin: each connection begins where the primary is then."""

    host: str
    port: int

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        super().__init__(**options)
        self._sentinels = sentinels

    def _connect(self) -> Any:
        place = self._sentinels.find()
        self.host, self.port = place.host, place.port or 0
        try:
            return super()._connect()  # type: ignore[misc]
        except OSError as error:
            raise LostNodeError(str(place), error) from error


class PrimaryConnection(_PrimaryMixin, TcpConnection):
    pass


class TlsPrimaryConnection(_PrimaryMixin, TlsConnection):
    pass
