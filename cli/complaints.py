"""What the library warns of is said as all errors are."""

import logging

from imcore.cli import output


class _Complaints(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        output.complain(record.getMessage())


def complain_of_warnings() -> None:
    """From here on, write what is logged as a warning, or worse, to stderr: each a line."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Complaints()])
