"""The embedded server, the database's schema, and all workers in one command."""

import signal
import sys
from contextlib import ExitStack, closing, suppress
from functools import partial

from imcore.cli import output
from imcore.cli.app import Invocation, command
from imcore.cli.commands.worker import NAMES, command_of, environment_of
from imcore.cli.names import in_sentence
from imcore.embedded.health import HealthCheck
from imcore.embedded.server import EmbeddedServer
from imcore.errors import EmbeddedServerError, ImError
from imcore.model.records import Record
from imcore.process import STOP_S, Programs, Stopped, StopSignals
from imcore.settings import Settings


@command("up", example="im up\nim up --redis-url redis://localhost:6379 --database-url postgresql:///chat")
def up(run: Invocation) -> None:
    """With a Redis URL set, that server is used and none is started. The database's tables and the functions in Redis
    are made or brought up to date first. With --json stdout gets an object once the workers start, and one when they
    ended. All other output is a log: `im up` runs on if nobody reads it, or if its disk is full.
    """
    settings = run.settings()
    last_words: tuple[str, ...] = ()
    try:
        # The end is in the opposite order: the workers finish what they have in hand while the server still answers.
        with StopSignals() as signals, ExitStack() as stack:
            health = None
            if settings.embedded:
                server = stack.enter_context(EmbeddedServer(settings.data_dir))
                health = stack.enter_context(closing(HealthCheck(server)))
            _prepare(run, settings)
            signals.defer()
            programs = stack.enter_context(Programs(partial(_pass_on, run)))
            environment = environment_of(settings)
            for name in NAMES:
                # One warning about the server is enough; but the jobs may have a server of their own.
                is_known = name != "jobs" or settings.jobs_redis_url == settings.redis_url
                programs.start(name, command_of(name, *["--known-server"] * is_known), environment)
            _serve(run, programs, signals, health)
            for name, code in programs.stop().items():
                if code == -signal.SIGKILL:
                    output.complain(
                        f"the worker {name} did not end within {STOP_S} s and was killed: others take over from it"
                    )
    except Stopped:
        last_words = ("im: stopped before the workers were started",)
    with output.in_a_moment():
        _say(run, {"event": "stopped"}, *last_words)


def _prepare(run: Invocation, settings: Settings) -> None:
    from imcore.admin import server_settings  # noqa: PLC0415 (the help need not wait for the drivers)

    with closing(run.connect()) as system:
        redis = system.client.address
        servers = server_settings.chat_servers(system.client)
        server_settings.refuse_eviction(servers, settings)
        if warning := server_settings.warning_of(servers):
            output.complain(warning)
        system.client.upgrade()
        system.database.upgrade()
        sql = system.database.address
    _say(
        run,
        {"event": "started", "redis": redis, "database": sql, "workers": NAMES},
        f"im: Redis at {redis}" + " (embedded)" * settings.embedded,
        f"im: SQL at {sql}",
        f"im: starting the workers {', '.join(NAMES)}; Ctrl-C ends all",
    )


def _serve(run: Invocation, programs: Programs, signals: StopSignals, health: HealthCheck | None) -> None:
    def wait() -> None:
        if signals.stopping:
            raise Stopped
        programs.relay(0.01)

    while not signals.stopping:
        programs.relay()
        for name, code in programs.ended().items():
            raise ImError(f"the worker {name} ended by itself (exit code {code}): see its last lines above")
        if health:
            if not health.server.running:
                log = health.server.data_dir / "redis.log"
                raise EmbeddedServerError(f"the embedded server ended by itself: see {log}")
            with suppress(Stopped):  # a signal has cut a restart of the server short: the loop sees it, too
                for line in health.step(wait):
                    _say(run, None, f"im: {line}")


def _pass_on(run: Invocation, name: str, line: str) -> None:
    width = max(map(len, NAMES))
    shown = f"{name:{width}} | {in_sentence(line)}"
    _say(run, None, *output.fitted(sys.stdout, shown, hang=width + len(" | ")))


def _say(run: Invocation, record: Record | None, *lines: str) -> None:
    """Write lines for a person, best-effort; with --json the record to stdout, and the lines to stderr."""
    if not run.json:
        output.report(*output.fitted(sys.stdout, *lines))
        return
    if record:
        run.show([record], ())
        output.flush()
    output.remark(*lines)
