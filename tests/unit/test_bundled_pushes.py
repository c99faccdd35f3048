"""Messages of one call are pushed together."""

import pytest

from imcore import Chat, Message, NewMessage
from imcore.model.values import Draft
from imcore.streams import wire
from tests.helpers.deadline import wait_until

DRAFTS = [
    Draft("ann", "one", client_msgid="c-1"),
    Draft("bob", "separators \x1f \x1e \x1f5\x1f", sent_at_ms=1_767_225_600_123),
    Draft("ann", "群 🙂", meta={"likes": ["群", "\x1f"]}),
    Draft("ann", "\x1f"),
]


def test_messages_of_one_call_come_whole_and_in_order_in_one_push(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    chat.create_group("g", ["ann", "bob", "cat"])
    kinds: list[bytes] = []

    def push(data: bytes) -> wire.Push:
        kinds.append(data[:1])
        return split(data)

    split = wire.push
    monkeypatch.setattr(wire, "push", push)
    came: list[Message] = []
    with chat.gateway() as gateway:
        session = gateway.open("cat")
        wait_until(lambda: not gateway.poll(0) and session.is_synced)
        # When
        sent = chat.send_many("g", DRAFTS)

        def has_all() -> bool:
            came.extend(event.message for event in gateway.poll(0.05) if isinstance(event, NewMessage))
            return len(came) == len(DRAFTS)

        wait_until(has_all)
    # Then
    assert came == sent
    assert [(each.content, each.meta, each.client_msgid) for each in came] == [
        (draft.content, draft.meta, draft.client_msgid or None) for draft in DRAFTS
    ]
    assert kinds == [b"b"]
