"""The embedded server, the database's schema, and all workers in one command."""

import signal
from contextlib import ExitStack, closing, suppress

import click

from imcore.cli import output
from imcore.cli.app import Invocation, command
from imcore.cli.commands import serve
from imcore.cli.commands.up_web import WebProcess
from imcore.cli.commands.worker import NAMES, command_of, environment_of
from imcore.cli.foreground import TextLog, log_of
from imcore.embedded.health import HealthCheck
from imcore.embedded.server import EmbeddedServer
from imcore.errors import EmbeddedServerError, ImError
from imcore.process import STOP_S, Programs, Stopped, StopSignals
from imcore.settings import Settings
from imcore.web import extra

WEB = "web"
"""The name of the gateway's process."""
DEFAULT_PORT = 8080


@command("up", example="im up --web\nim up --redis-url redis://localhost:6379 --database-url postgresql:///chat")
@click.option(
    "--web", "with_web", is_flag=True, help="Run the gateway (`im serve`), too, and print a link to its page."
)
@click.option("--port", type=click.IntRange(1, 65_535), metavar="P", help="The port of the gateway. [8080]")
def up(run: Invocation, with_web: bool, port: int | None) -> None:
    """With a Redis URL set, that server is used and none is started. The database's tables and the functions in Redis
    are made or brought up to date first. With --json stdout gets an object once the workers start, and one when they
    ended. All other output is a log: `im up` runs on if nobody reads it, or if its disk is full.

    With --web, and without IM_WEB_KEY, the link is for a demo with two users. It can be opened for 10 minutes; what is
    open then goes on as long as `im up`.
    """
    if port is not None and not with_web:
        raise click.UsageError("--port is for the gateway: give --web, too")
    settings = run.settings()
    log = log_of(run, settings, [*NAMES, WEB] if with_web else NAMES)
    try:
        if with_web:
            extra.require("im up --web")
        web = WebProcess(port or DEFAULT_PORT) if with_web else None
        if web:
            web.check_port()
        _run_all(run, settings, log, web)
    except ImError as error:
        log.error(str(error))
        click.get_current_context().exit(output.FAILED)


def _run_all(run: Invocation, settings: Settings, log: TextLog, web: WebProcess | None) -> None:
    last_words: tuple[str, ...] = ()
    try:
        # The end is in the opposite order: the workers finish what they have in hand while the server still answers.
        with StopSignals() as signals, ExitStack() as stack:
            health = None
            if settings.embedded:
                server = stack.enter_context(EmbeddedServer(settings.data_dir))
                health = stack.enter_context(closing(HealthCheck(server)))
            _prepare(run, settings, log, web)
            signals.defer()
            programs = stack.enter_context(Programs(log.pass_on))
            _start(programs, settings, web)
            _serve(programs, signals, health, log, web)
            for name, code in programs.stop().items():
                if code == -signal.SIGKILL:
                    log.warning(
                        f"the process {name} did not end within {STOP_S} s and was killed: others take over from it"
                    )
    except Stopped:
        last_words = ("stopped before the workers were started",)
    with output.in_a_moment():
        log.record({"event": "stopped"})
        log.info(*last_words)


def _start(programs: Programs, settings: Settings, web: WebProcess | None) -> None:
    environment = environment_of(settings)
    for name in NAMES:
        # One warning about the server is enough; but the jobs may have a server of their own.
        is_known = name != "jobs" or settings.jobs_redis_url == settings.redis_url
        programs.start(name, command_of(name, *["--known-server"] * is_known), environment)
    if web:
        programs.start(WEB, serve.command_of(*web.arguments), {**environment, **web.environment})


def _prepare(run: Invocation, settings: Settings, log: TextLog, web: WebProcess | None) -> None:
    from imcore.admin import server_settings  # noqa: PLC0415 (the help need not wait for the drivers)

    with closing(run.connect()) as system:
        redis = system.client.address
        servers = server_settings.chat_servers(system.client)
        server_settings.refuse_eviction(servers, settings)
        if warning := server_settings.warning_of(servers):
            log.warning(warning)
        system.client.upgrade()
        system.database.upgrade()
        sql = system.database.address
        if web:
            web.prepare(system)
    log.record({"event": "started", "redis": redis, "database": sql, "workers": NAMES})
    log.info(
        f"Redis at {redis}" + " (embedded)" * settings.embedded,
        f"SQL at {sql}",
        f"starting the workers {', '.join(NAMES)}; Ctrl-C ends all",
    )


def _serve(
    programs: Programs, signals: StopSignals, health: HealthCheck | None, log: TextLog, web: WebProcess | None
) -> None:
    def wait() -> None:
        if signals.stopping:
            raise Stopped
        programs.relay(0.01)

    while not signals.stopping:
        programs.relay()
        for name, code in programs.ended().items():
            raise ImError(f"the process {name} ended by itself (exit code {code}): see its last lines above")
        if web:
            web.step(log)
        if health:
            if not health.server.running:
                file = health.server.data_dir / "redis.log"
                raise EmbeddedServerError(f"the embedded server ended by itself: see {file}")
            with suppress(Stopped):  # a signal has cut a restart of the server short: the loop sees it, too
                for line in health.step(wait):
                    log.info(line)
