"""Programs on terminals of a given width, and what the screen shows in the end."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence

_PIECE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


def on_terminal(command: Sequence[str | bytes], environment: Mapping[str, str], columns: int) -> tuple[int, str]:
    """Run a program on a terminal of this many columns; return its exit code and all that it wrote there."""
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    without_columns = {name: value for name, value in environment.items() if name != "COLUMNS"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={"TERM": "xterm", **without_columns}
    ) as process:
        os.close(theirs)
        said = b""
        while data := _read(terminal):
            said += data
    os.close(terminal)
    return process.returncode, said.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # so a terminal says that its last program has ended
        return b""


def screen(said: str) -> list[str]:
    """Return the lines that a terminal, wide enough, shows after this was written to it."""
    lines, row, column = [""], 0, 0
    for parameters, command, control, text in _PIECE.findall(said):
        if text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
        elif control == "\r":
            column = 0
        elif control == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif command == "A":
            row = max(0, row - int(parameters or 1))
        elif command == "K":
            lines[row] = "" if parameters == "2" else lines[row][:column]
    return lines
