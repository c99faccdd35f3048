"""The hosts that a Redis URL names: one, or several of a cluster."""

from typing import NamedTuple
from urllib.parse import urlsplit

DEFAULT_PORT = 6379


class Place(NamedTuple):
    """A host and its port; None: the default port."""

    host: str
    port: int | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host


def places_of(netloc: str) -> list[Place]:
    """Return the places of a URL's part behind the `//`: hosts joined by commas, after a user and password if any.

    Raise ValueError for a port that is none, and for an empty name among several.
    """
    places = [_place(part) for part in netloc.rpartition("@")[2].split(",")]
    if len(places) > 1 and not all(place.host for place in places):
        raise ValueError("a host without a name")
    return places


def _place(text: str) -> Place:
    parts = urlsplit(f"//{text}")
    if parts.port == 0:  # the driver would take its default
        raise ValueError("no port")
    return Place(parts.hostname or "", parts.port)
