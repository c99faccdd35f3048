"""A server's data, to be put back later."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Snapshot:
    """All keys of a server, as they were."""

    keys: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)

    @classmethod
    def of(cls, client: Any) -> "Snapshot":
        return cls({key: (max(client.pttl(key), 0), client.dump(key)) for key in client.scan_iter()})

    def restore(self, client: Any) -> None:
        client.flushall()
        for key, (ttl, value) in self.keys.items():
            client.restore(key, ttl, value)
