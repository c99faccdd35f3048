"""Sends and acks of many in few calls, as a gateway makes them. Each that fails has its error in its place."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from imcore import msgid as msgids
from imcore.errors import ImError, InvalidInput
from imcore.model.limits import check_content, check_msgid, check_name, check_time_ms
from imcore.model.values import Ack, Draft, Message
from imcore.operations.reader import History
from imcore.settings import Settings
from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Call, Trimmed
from imcore.streams.calls.message_calls import AckResult, AckTarget, SendResult, split_targets
from imcore.streams.client import RedisClient

T = TypeVar("T")

MESSAGES_PER_CALL = 100
"""The server does nothing else meanwhile: so many take less than a millisecond."""
CONTENT_PER_CALL = 1 << 20


class Batch:
    """Sends and acks of many, in one group."""

    def __init__(self, client: RedisClient, history: History, settings: Settings) -> None:
        self._client = client
        self._history = history
        self._settings = settings

    def send(self, gid: str, drafts: Sequence[Draft]) -> list[Message | ImError]:
        """See `Chat.send_many`."""
        for draft in drafts:
            self._check(draft)
        parts = list(_parts(drafts))
        repeatable = all(draft.client_msgid for draft in drafts)
        batch = [message_calls.send(self._client.space, gid, part, self._settings.idempotency_ms) for part in parts]
        answers = self._client.call_each(batch, repeatable=repeatable)
        sent = [each for part, answer in zip(parts, answers, strict=True) for each in _of_each(answer, len(part))]
        return [
            each if isinstance(each, ImError) else self.message(gid, draft, each)
            for draft, each in zip(drafts, sent, strict=True)
        ]

    def ack(self, gid: str, acks: Sequence[tuple[str, str | None]]) -> list[Ack | ImError]:
        """See `Chat.ack_many`."""
        by_msgid: dict[int | None, dict[str, None]] = {}
        packed = [_checked(ack) for ack in acks]
        for uid, msgid in packed:
            by_msgid.setdefault(msgid, {})[uid] = None
        parts = split_targets(AckTarget(msgid, list(uids)) for msgid, uids in by_msgid.items())
        targets = [target for part in parts for target in part]
        found = self._ack(gid, targets)
        self._ack_trimmed(gid, targets, found)
        by_target = {
            (target.msgid, uid): answer if isinstance(answer, ImError) else answer.of(uid)
            for target, answer in zip(targets, found, strict=True)
            for uid in target.uids
        }
        return [by_target[msgid, uid] for uid, msgid in packed]

    def _ack(self, gid: str, targets: Sequence[AckTarget]) -> list[AckResult | ImError]:
        batch: list[Call[list[AckResult]]] = [
            message_calls.ack(self._client.space, gid, [target]) for target in targets
        ]
        return [each for answer in self._client.call_each(batch) for each in _of_each(answer, 1)]

    def _ack_trimmed(self, gid: str, targets: Sequence[AckTarget], found: list[AckResult | ImError]) -> None:
        """Put in the answers for messages that SQL alone still has: with their seqs, they can be acked."""
        for number, (target, answer) in enumerate(zip(targets, found, strict=True)):
            if isinstance(answer, AckResult) and isinstance(answer.target, Trimmed):
                try:
                    seq = self._history.seq_of(gid, target.msgid or 0)
                    [found[number]] = self._ack(gid, [target._replace(seq=seq)])
                except ImError as error:
                    found[number] = error

    def _check(self, draft: Draft) -> None:
        if not isinstance(draft, Draft):
            raise InvalidInput("each message must be a Draft")
        check_name(draft.sender_uid, "uid")
        check_content(draft.content, self._settings.max_content_bytes)
        if draft.client_msgid != "":
            check_name(draft.client_msgid, "client_msgid")
        if draft.sent_at_ms is not None:
            check_time_ms(draft.sent_at_ms)

    def message(self, gid: str, draft: Draft, sent: SendResult) -> Message:
        """Return the message that was made of a draft, now or by an earlier send."""
        if sent.repeated and (stored := self._history.message(gid, msgids.pack(sent.msgid))):
            return stored
        sent_at = None if draft.sent_at_ms is None else msgids.from_ms(draft.sent_at_ms)
        return Message(gid, sent.msgid, sent.seq, draft.sender_uid, draft.content, draft.client_msgid or None, sent_at)


def _parts(drafts: Sequence[Draft]) -> Iterator[list[Draft]]:
    """Yield the drafts of each call, in order."""
    part: list[Draft] = []
    size = 0
    for draft in drafts:
        if part and (len(part) >= MESSAGES_PER_CALL or size + len(draft.content) > CONTENT_PER_CALL):
            yield part
            part, size = [], 0
        part.append(draft)
        size += len(draft.content)
    if part:
        yield part


def _checked(ack: tuple[str, str | None]) -> tuple[str, int | None]:
    try:
        uid, msgid = ack
    except (TypeError, ValueError):
        raise InvalidInput("each ack must be a uid and a msgid") from None
    return check_name(uid, "uid"), None if msgid is None else check_msgid(msgid)


def _of_each(answer: Sequence[T | ImError] | ImError, count: int) -> Sequence[T | ImError]:
    return [answer] * count if isinstance(answer, ImError) else answer
