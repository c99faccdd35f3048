"""The throw-away stack of the demo, and the order in which its story is told on it."""

import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack

from imcore.admin.lag import worker_stats
from imcore.chat import Chat
from imcore.cli import worker_command
from imcore.cli.demo import crowd, live, story
from imcore.cli.demo.claims import Claims
from imcore.cli.demo.sessions import Sessions
from imcore.embedded.server import EmbeddedServer
from imcore.errors import ImError
from imcore.process import Programs, StopSignals
from imcore.repair.check import check
from imcore.settings import Settings

_PERSISTED_S = 30


def play(claims: Claims, log: list[str]) -> None:
    """Tell the whole story; what the workers and the sessions complain of goes into the log.

    Raise ImError if a claim did not hold, or if it could not be told to its end.
    """
    with StopSignals(), tempfile.TemporaryDirectory(prefix="im-demo-") as folder, ExitStack() as stack:
        settings = Settings.from_env({}, data_dir=folder)
        environment = _environment(settings)
        server = stack.enter_context(EmbeddedServer(settings.data_dir))
        workers = stack.enter_context(Programs(lambda name, line: log.append(f"{name} | {line}")))
        with Chat.connect(settings=settings) as chat:
            _start(claims, chat, server, workers, environment)
            with Sessions(environment, log) as sessions:
                _tell(claims, chat, workers, sessions)
        codes = workers.stop()
        claims.hold(not any(codes.values()), f"the workers ended in order: {codes}")
    if claims.broken:
        raise ImError(f"{claims.broken} of {claims.made} claims did not hold")


def _environment(settings: Settings) -> Mapping[str, str]:
    """Return the environment of all programs of the demo: nothing of the user's own settings is in it."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("IM_")}
    return worker_command.environment_of(settings, others)


def _start(
    claims: Claims, chat: Chat, server: EmbeddedServer, workers: Programs, environment: Mapping[str, str]
) -> None:
    chat.system.database.upgrade()
    for name in worker_command.NAMES:
        workers.start(name, worker_command.command_of(name), environment)
    claims.chapter(
        f"A throw-away stack in {chat.system.settings.data_dir}",
        f"server {chat.system.client.address} (process {server.pid})",
        f"database {chat.system.database.address}",
        f"workers {', '.join(worker_command.NAMES)}, each a process",
    )


def _tell(claims: Claims, chat: Chat, workers: Programs, sessions: Sessions) -> None:
    live.begin(chat, sessions)  # they take a moment to start
    crowd.introduce(claims)
    played = story.play(chat)
    crowd.claim_delivery(claims, played)
    claims.chapter("Who has read what, live from Redis, before any worker has to have run")
    crowd.claim_tallies(claims, chat, played)
    live.tell(claims, chat, sessions)
    _wait_until_stored(chat, workers)
    claims.chapter("The group of 200 from SQL, where the worker `persist` has stored it")
    crowd.claim_storage(claims, chat)
    crowd.claim_sql(claims, chat, played)
    claims.chapter("im check: Redis against SQL, every count anew")
    differences = list(check(chat.system))
    claims.hold(not differences, f"no difference {differences[:3] or ''}".rstrip())


def _wait_until_stored(chat: Chat, workers: Programs) -> None:
    give_up = time.monotonic() + _PERSISTED_S
    while not _is_stored(chat):
        workers.relay()
        for name, code in workers.ended().items():
            raise ImError(f"the worker {name} ended by itself (exit code {code})")
        if time.monotonic() > give_up:
            raise ImError(f"the worker persist has not stored everything within {_PERSISTED_S} s")


def _is_stored(chat: Chat) -> bool:
    return any(worker.worker == "persist" and not worker.backlog for worker in worker_stats(chat.system))
