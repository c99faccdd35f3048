"""The story of the demo: a throw-away stack, its two acts, and their order."""

from imcore.admin.lag import worker_stats
from imcore.chat import Chat
from imcore.cli import worker_command
from imcore.cli.demo import large_group, live_group
from imcore.cli.demo.claims import Claims
from imcore.cli.demo.stage import ListenProcesses
from imcore.cli.sandbox import Processes, open_sandbox
from imcore.errors import ImError
from imcore.process import StopSignals
from imcore.repair.check import check


def play(claims: Claims, log: list[str]) -> None:
    """Play the whole story. The complaints of the workers and the sessions go into the log.

    Raise ImError if a claim did not hold, or if the story did not reach its end.
    """
    with StopSignals(), open_sandbox("im-demo-") as sandbox, sandbox.chat() as chat:
        chat.system.database.upgrade()
        names = worker_command.NAMES
        with sandbox.workers(*names, on_line=lambda name, line: log.append(f"{name} | {line}")) as workers:
            claims.chapter(
                f"A throw-away stack in {sandbox.settings.data_dir}",
                f"server {chat.system.client.address} (process {sandbox.server and sandbox.server.pid})",
                f"database {chat.system.database.address}",
                f"workers {', '.join(names)}, each a process",
            )
            _play_acts(claims, chat, workers, ListenProcesses(sandbox, log))
            codes = workers.stop()
        claims.hold(not any(codes.values()), f"the workers ended in order: {codes}")
    if claims.broken:
        raise ImError(f"{claims.broken} of {claims.made} claims did not hold")


def _play_acts(claims: Claims, chat: Chat, workers: Processes, sessions: ListenProcesses) -> None:
    with sessions:
        live_group.begin(chat, sessions)  # they start meanwhile
        oracle = large_group.play(claims, chat, sessions)
        claims.chapter("Who has read what, live from Redis, before any worker has to have run")
        large_group.claim_tallies(claims, chat, oracle)
        live_group.play(claims, chat, sessions)
    workers.wait(lambda: _is_stored(chat), "the worker persist has stored everything")
    claims.chapter("The group of 200 from SQL, where the worker `persist` has stored it")
    large_group.claim_storage(claims, chat, oracle)
    large_group.claim_sql(claims, chat, oracle)
    claims.chapter("im check: Redis against SQL, every count anew")
    differences = list(check(chat.system))
    claims.hold(not differences, f"no difference {differences[:3] or ''}".rstrip())


def _is_stored(chat: Chat) -> bool:
    return any(worker.worker == "persist" and not worker.backlog for worker in worker_stats(chat.system))
