"""Private folders. A socket whose own path is too long gets one in /tmp, where anybody could make it first."""

import os
import re
import stat
from pathlib import Path

from imcore.errors import ConfigurationError, EmbeddedServerError

Identity = tuple[int, int]

_SHORT_PLACE = Path("/tmp")  # noqa: S108 (each use of it is checked)
_NAME = re.compile(r"imcore-([0-9]{1,10})-[0-9a-f]{16}")


def identity(path: str | Path, *, follow_symlinks: bool = True) -> Identity | None:
    """Return the identity of the file at a path; None if no file can be seen there."""
    try:
        status = os.stat(path, follow_symlinks=follow_symlinks)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def make_private(folder: Path, top: Path) -> None:
    """Make a folder and its parents, those within `top` for their owner only. Existing ones stay. Raise OSError."""
    for path in reversed((folder, *folder.parents)):
        if path.is_relative_to(top):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)


def socket_folder(digest: str) -> Path:
    """Return the socket's folder for a digest of 16 hex digits. Its name says who must own it."""
    # Not TMPDIR: that may be long itself, and may differ between the shell of the server and that of its clients.
    return _SHORT_PLACE / f"imcore-{os.getuid()}-{digest}"


def make_socket_folder(folder: Path) -> None:
    """Make the folder, if it is missing. Raise EmbeddedServerError if it is not private to this user."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise EmbeddedServerError(f"the socket's folder {folder} cannot be made: {error.strerror}") from error
    if not _is_private(folder, os.geteuid()):
        raise EmbeddedServerError(f"{folder} is not a folder of this user alone (mode 0700): remove it")


def close_socket_folder(folder: Path) -> bool:
    """Close a folder of this user that was opened to others; return whether it was open."""
    try:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) == 0o700:
            return False
        folder.chmod(0o700)
    except OSError:
        return False
    return True


def check_socket(path: str) -> None:
    """Raise ConfigurationError if a socket's folder has such a name, and is not private to the user named there."""
    folder = Path(path).parent
    match = _NAME.fullmatch(folder.name)
    if match and folder.parent == _SHORT_PLACE and not _is_private(folder, int(match[1])):
        raise ConfigurationError(
            f"{folder} is not a folder of the user {match[1]} alone (mode 0700), so who answers there may be anybody: "
            "remove it, and start the server again"
        )


def _is_private(folder: Path, uid: int) -> bool:
    """Return whether only that user may use the folder. A missing folder counts as private."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == uid and stat.S_IMODE(status.st_mode) == 0o700
