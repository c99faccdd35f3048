"""What Redis keeps for good, whatever retention says, because counts and receipts follow from it: how much that is."""

from collections.abc import Callable, Iterator

from imcore.chat import Chat
from imcore.cli.bench.figures import Figure
from imcore.cli.bench.key_counts import all_keys, bytes_of
from imcore.cli.bench.timing import Rounds
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.streams.calls import message_calls
from imcore.streams.calls.message_calls import AckTarget

_COUNT = 500
_TEXT = "x" * 100


def weigh(chat: Chat, name: str, settle: Callable[[], None], rounds: int) -> Iterator[Figure]:
    """Yield the bytes of each; `settle` lets the workers be done, and trims."""
    scenes = {
        "left membership that covers a message": _leave,
        "recalled message": _recall,
        "message that was read, while its sender has never confirmed a receipt": _read,
    }
    for what, scene in scenes.items():
        found = []
        for number in range(rounds):
            gid = f"{name}-{scene.__name__}-{number}"
            chat.create_group(gid, [f"{gid}-ann", f"{gid}-bob"])
            settle()
            before = bytes_of(chat, all_keys(chat))
            scene(chat, gid)
            settle()
            found.append((bytes_of(chat, all_keys(chat)) - before) / _COUNT)
        yield Figure(bench="steady", what=f"kept for good, per {what}", unit="B", rounds=Rounds(tuple(found)))


def _leave(chat: Chat, gid: str) -> None:
    uids = [f"{gid}-{number:08}" for number in range(_COUNT)]
    chat.add_members(gid, uids)
    chat.send(gid, _TEXT, sender_uid=f"{gid}-ann")
    chat.remove_members(gid, uids)


def _recall(chat: Chat, gid: str) -> None:
    for sent in _sent(chat, gid):
        chat.recall(gid, sent, by=f"{gid}-ann")


def _read(chat: Chat, gid: str) -> None:
    _sent(chat, gid)
    chat.system.client.call(message_calls.ack(chat.system.client.space, gid, [AckTarget(None, [f"{gid}-bob"])]))


def _sent(chat: Chat, gid: str) -> list[str]:
    call = message_calls.send(chat.system.client.space, gid, [Draft(f"{gid}-ann", _TEXT)], 1)
    return [raised(sent).msgid for [sent] in chat.system.client.call_many([call] * _COUNT, repeatable=False)]
