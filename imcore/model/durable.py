"""What a send may wait for."""

from typing import Literal

Durable = Literal["none", "replicated", "fsynced"]
"""What a send waits for beyond storing a message: nothing, a replica that has it, or the server's disk."""
REPLICATED: Durable = "replicated"
FSYNCED: Durable = "fsynced"
