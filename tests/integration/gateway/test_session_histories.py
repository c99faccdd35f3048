"""Random histories: every session gets each message of its groups from its start once and in order, or in a named gap.

`IM_SESSION_SEEDS=500 pytest tests/integration/gateway/test_session_histories.py` plays that many more of them.
"""

import os

import pytest

from imcore import Chat
from imcore.operations import queries
from tests.helpers.session_histories import SessionHistory

SEEDS = range(int(os.environ.get("IM_SESSION_SEEDS", "8")))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_session_misses_nothing_and_gets_nothing_twice(
    chat: Chat, other: Chat, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given pages so small that catching up takes several
    monkeypatch.setattr(queries, "SQL_PAGE", 4)
    monkeypatch.setattr("imcore.gateway.catch_up.PAGE", 7)
    chat.system.database.upgrade()
    with chat.gateway(ack_every=3, ack_interval_s=0.02) as gateway:
        history = SessionHistory(chat, other, gateway, seed)
        # When
        for _ in range(3):
            history.play(60)
            history.settle()
            # Then
            history.check()
        uids = {model.uid for model in history.sessions.values()}
        history.until(lambda: not any(each.unread for uid in uids for each in other.unread(uid)))
