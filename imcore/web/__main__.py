"""`python -m imcore.web`: the gateway in the foreground, with its settings in the environment.

Exit codes: 0 ended by SIGTERM or SIGINT; 1 failed, with one line that says why; 2 wrong usage.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from imcore.errors import ImError
from imcore.logs import setup
from imcore.process import Stopped, StopSignals
from imcore.settings import Settings
from imcore.util import best_effort
from imcore.web import extra

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve; return the exit code. A log that cannot be written changes nothing."""
    best_effort.install()
    given = _parser().parse_args(arguments)
    settings = None
    try:
        with StopSignals() as signals:  # a signal that arrives while the rest is loaded ends it at once
            settings = Settings.from_env()
            setup.install(settings.log_format, settings.log_level, "web")
            extra.require("im serve")
            from imcore.web import serve  # noqa: PLC0415 (what it needs may be missing)

            serve.run(serve.ServeOptions(**vars(given)), signals)
    except ImError as error:
        if settings and settings.log_format == "json":
            log.error("%s", error)
        else:
            print(f"im: {error}", file=sys.stderr)
        return 1
    except Stopped:  # a signal came before it served
        pass
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m imcore.web", description="The WebSocket and HTTP gateway.")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on [127.0.0.1]")
    parser.add_argument("--port", type=int, default=8080, help="the port to listen on [8080]")
    parser.add_argument("--processes", type=int, default=1, help="how many processes share the port [1]")
    parser.add_argument("--certfile", type=Path, help="serve HTTPS with this certificate, PEM")
    parser.add_argument("--keyfile", type=Path, help="the key of the certificate, PEM")
    parser.add_argument("--demo", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--listener", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
