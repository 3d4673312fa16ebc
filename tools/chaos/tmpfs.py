"""A disk that can be filled: a small tmpfs, if this machine allows the mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SIZE = 192 * 1024 * 1024
CHUNK = b"\0" * 65536


def can_mount(folder: Path) -> bool:
    """Whether this machine allows a mount; tries it."""
    probe = folder / "probe"
    probe.mkdir(exist_ok=True)
    try:
        with mount_tmpfs(probe):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def mount_tmpfs(folder: Path) -> Iterator[Path]:
    """Mounts a tmpfs there for as long as the context lasts."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=755", "chaos", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


class Disk:
    """The mounted folder of one program."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Fills the disk to the last byte."""
        with suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                os.write(file.fileno(), CHUNK)

    def free_space(self) -> None:
        self._ballast.unlink(missing_ok=True)
