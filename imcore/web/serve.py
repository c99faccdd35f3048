"""`im serve`: the application on uvicorn, in one process or several that share the listening socket.

The end of a process, after a signal: no new sockets; the calls in hand are answered; acks go out; sockets close with
1001; the process exits with 0. All of it takes less than 10 s, also if a server is away.
"""

import asyncio
import fcntl
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import uvicorn

from imcore.errors import ConfigurationError, ImError
from imcore.process import Programs, StopSignals
from imcore.web.asgi import app
from imcore.web.http import patient
from imcore.web.settings import WebSettings
from imcore.web.sockets import SocketServer

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from imcore.web.hub import Hub

log = logging.getLogger(__name__)

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8080
_FIRST_FREE_FD = 10
"""The shell that starts a child uses those below itself."""
_CLOSE_S = 1


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """`listener` is the number of an open socket that listens already."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    processes: int = 1
    certfile: Path | None = None
    keyfile: Path | None = None
    demo: bool = False
    listener: int | None = None


def run(options: ServeOptions, signals: StopSignals) -> None:
    """Serve until a signal. Raise ImError where that is impossible: the port is in use, a key is missing."""
    settings = WebSettings.from_env()
    check_certificate(options)
    application = app(settings=settings, demo=options.demo)  # a missing key is an error before the port is taken
    with listening(options) as listener:
        if options.processes > 1:
            _run_processes(options, listener, signals)
        else:
            config = _config(application, options, settings)
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                log.info("listening on %s", url_of(options, listener))
                runner.run(_serve(application, config, listener))


def listening(options: ServeOptions) -> socket.socket:
    """Return a socket that listens. Raise ConfigurationError if the address cannot be had."""
    if options.listener is not None:
        return socket.socket(fileno=options.listener)
    try:
        [family, *_], *_ = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
        return socket.create_server((options.host, options.port), family=family, backlog=2048)
    except OSError as error:
        where = f"{options.host}, port {options.port}"
        if error.errno == getattr(os, "EADDRINUSE", 98) or "in use" in str(error):
            raise ConfigurationError(f"{where}, is in use by another program: give another one with --port") from error
        raise ConfigurationError(f"cannot listen on {where}: {error.strerror or error}") from error


def check_certificate(options: ServeOptions) -> None:
    """Raise ConfigurationError unless the certificate and its key are there and belong together."""
    if options.certfile is None:
        if options.keyfile:
            raise ConfigurationError("--keyfile is for a certificate: give that, too, with --certfile")
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.certfile, options.keyfile, _no_password)
    except ssl.SSLError as error:
        hint = "" if options.keyfile else "; if its key is in another file, give that with --keyfile"
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise ConfigurationError(f"the certificate {options.certfile} cannot be used: {reason}{hint}") from error
    except OSError as error:
        file = options.keyfile or options.certfile
        raise ConfigurationError(
            f"the certificate or its key cannot be read: {error.strerror} ({error.filename or file})"
        ) from error


def _no_password() -> str:
    raise ConfigurationError("the key of the certificate has a password: store it without one, for its owner only")


def url_of(options: ServeOptions, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if options.certfile else 'http'}://{shown}:{port}/"


class WebServer(uvicorn.Server):
    """uvicorn, which leaves signals to the process."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("serving")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(application: "Starlette", options: ServeOptions, settings: WebSettings) -> uvicorn.Config:
    for name in ("uvicorn.error", "websockets"):  # their lines have the query strings of requests
        logging.getLogger(name).setLevel(logging.WARNING)
    return uvicorn.Config(
        application,
        http=patient(settings.handshake_ms / 1000),
        ws=cast("type[asyncio.Protocol]", SocketServer(application.state.hub)),  # uvicorn only calls it
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_CLOSE_S,
        ssl_certfile=options.certfile,
        ssl_keyfile=options.keyfile,
    )


async def _serve(application: "Starlette", config: uvicorn.Config, listener: socket.socket) -> None:
    hub: Hub = application.state.hub
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop.set)
    server = WebServer(config)
    serving = asyncio.create_task(server.serve([listener]))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        log.info("ending: what is in hand is finished")
        for each in getattr(server, "servers", ()):
            each.close()
        await hub.close()
        server.should_exit = True
    stopping.cancel()
    await serving


def _run_processes(options: ServeOptions, listener: socket.socket, signals: StopSignals) -> None:
    """Start processes that accept from one socket, and pass on what they log, until a signal."""
    number = fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD, _FIRST_FREE_FD)
    listener.close()
    try:
        with Programs(lambda _, line: print(line, file=sys.stderr, flush=True)) as programs:
            signals.defer()
            for each in range(1, options.processes + 1):
                programs.start(f"web-{each}", command_of(options, number), os.environ, pass_fds=(number,))
            while not signals.stopping:
                programs.relay()
                for name, code in programs.ended().items():
                    raise ImError(f"the process {name} ended by itself (exit code {code}): see its last lines above")
    finally:
        with suppress(OSError):
            os.close(number)


def command_of(options: ServeOptions, listener: int | None = None) -> list[str]:
    """Return the command line of a process that serves: these options, in one process if it gets a listener."""
    command = [sys.executable, "-P", "-m", "imcore.web", "--host", options.host, "--port", str(options.port)]
    for name in ("certfile", "keyfile"):
        if path := getattr(options, name):
            command += [f"--{name}", str(path)]
    if listener is None:
        command += ["--processes", str(options.processes)]
    else:
        command += ["--listener", str(listener)]
    return command + ["--demo"] * options.demo
