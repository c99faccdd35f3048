"""How a gateway acks, and how it learns of receipts: its options, checked. No I/O."""

from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from imcore.errors import InvalidInput
from imcore.model.limits import check_count, check_seconds

AckMode = Literal["auto", "client", "off"]
ReceiptMode = Literal["push", "poll"]


class SessionOptions(TypedDict, total=False):
    """The fields of `GatewayOptions`, as keyword arguments."""

    ack_every: int
    ack_interval_s: float
    acks: AckMode
    receipts: ReceiptMode
    page_bytes: int


DEFAULT_PAGE_BYTES = 4 << 20
"""More than one page from Redis has: a gateway pulls for many sessions at once."""


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How a gateway acks, and how it learns of receipts.

    `ack_every` messages of a group or `ack_interval_s` seconds, whichever is first, make one ack. `acks` says what
    counts as received: "auto" all that a `poll` has returned, once the next one is called; "client" only what
    `received` and `confirm_receipts` are given; "off" nothing, so nothing is acked or confirmed. `receipts` says how
    senders learn who has read: "push" as it happens, "poll" with each heartbeat. `page_bytes` of texts and metas that
    were missed are handed over at once, and one message of each group more. Raise InvalidInput for any other value.
    """

    ack_every: int = 10
    ack_interval_s: float = 1.0
    acks: AckMode = "auto"
    receipts: ReceiptMode = "push"
    page_bytes: int = DEFAULT_PAGE_BYTES

    def __post_init__(self) -> None:
        check_count(self.ack_every, "ack_every")
        check_count(self.page_bytes, "page_bytes")
        for name, choices in (("acks", get_args(AckMode)), ("receipts", get_args(ReceiptMode))):
            if (value := getattr(self, name)) not in choices:
                raise InvalidInput(f"{name} must be one of {', '.join(choices)}; it is {value!r}")
        check_seconds(self.ack_interval_s, "ack_interval_s")


def check_client_acks(options: GatewayOptions) -> None:
    if options.acks != "client":
        raise InvalidInput(f'this gateway acks by itself (acks="{options.acks}"): open it with acks="client"')
