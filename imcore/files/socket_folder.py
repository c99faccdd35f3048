"""The folder of a socket whose own place has too long a path: it is in /tmp, where anybody could make it first."""

import os
import re
import stat
from pathlib import Path

from imcore.errors import ConfigurationError, EmbeddedServerError

_SHORT_PLACE = Path("/tmp")  # noqa: S108 (each use of it is checked)
_NAME = re.compile(r"imcore-([0-9]{1,10})-[0-9a-f]{16}")


def short_folder(digest: str) -> Path:
    """Return the folder for what has this digest (16 hex digits). The name says whose it must be."""
    # Not TMPDIR: that may be long itself, and may differ between the shell of the server and that of its clients.
    return _SHORT_PLACE / f"imcore-{os.getuid()}-{digest}"


def make_private(folder: Path) -> None:
    """Make the folder, and make sure that it is ours alone. Raise EmbeddedServerError."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise EmbeddedServerError(f"the socket's folder {folder} cannot be made: {error.strerror}") from error
    if not _is_private(folder, os.geteuid()):
        raise EmbeddedServerError(f"{folder} is not a folder of this user alone (mode 0700): remove it")


def make_private_again(folder: Path) -> bool:
    """Close a folder of ours that was opened to others, and return whether that was needed."""
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) == 0o700:
            return False
        folder.chmod(0o700)
    except OSError:
        return False
    return True


def check_socket(path: str) -> None:
    """Raise ConfigurationError if a socket is in such a folder, and that is not the one its name says."""
    folder = Path(path).parent
    match = _NAME.fullmatch(folder.name)
    if match and folder.parent == _SHORT_PLACE and not _is_private(folder, int(match[1])):
        raise ConfigurationError(
            f"{folder} is not a folder of the user {match[1]} alone (mode 0700), so who answers there may be anybody: "
            "remove it, and start the server again"
        )


def _is_private(folder: Path, uid: int) -> bool:
    """Whether the folder is that user's alone. One that is not there is nobody else's."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and stat.S_IMODE(found.st_mode) == 0o700
