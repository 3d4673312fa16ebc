"""Closes a folder of ours that other users of the machine could read."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class WideFolder(PermissionError):
    """Other users of this machine can read the folder, and we may not change that; the message says what to do."""


def make_folder_private(folder: Path) -> str:
    """Close a folder of ours to other users; return a sentence if it was open, else an empty string.

    A folder that belongs to somebody else may stay open to its group, as volumes of container platforms are. Raises
    `WideFolder` if every user can enter it and we may not change that, or if it is a shared one such as /tmp.
    """
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if not mode & 0o077:
        return ""
    if mode & stat.S_ISVTX:
        raise WideFolder(f"{folder} is a folder that all users share: name another with --data or DARKROOM_DATA.")
    if status.st_uid == os.geteuid():
        folder.chmod(mode & ~0o077)
        return f"{folder} was open to other users of this machine (mode {mode:o}). Now it is private."
    if mode & 0o007:
        raise WideFolder(f"{folder} is open to all users of this machine, and is not yours: chmod o-rwx {folder}")
    return ""
