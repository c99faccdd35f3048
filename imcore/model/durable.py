"""The confirmations that a send may wait for."""

from typing import Literal

Durable = Literal["none", "replicated", "fsynced"]
"""A send waits for nothing beyond storing a message, for a replica that has it, or for the server's disk."""
REPLICATED: Durable = "replicated"
FSYNCED: Durable = "fsynced"
