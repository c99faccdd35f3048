"""Folders for what is its owner's alone."""

from pathlib import Path


def make_private(folder: Path, top: Path) -> None:
    """Make the folder, for its owner only, and so each above it up to `top`; what is above that, as folders are.

    One that is there stays as it is. Raise OSError.
    """
    for each in reversed((folder, *folder.parents)):
        if each.is_relative_to(top):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
