"""A disk that can be filled: a small tmpfs, where this machine lets us mount one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SIZE = 192 * 1024 * 1024
PIECE = b"\0" * 65536


def may_mount(folder: Path) -> bool:
    """Tried, not asked."""
    probe = folder / "probe"
    probe.mkdir(exist_ok=True)
    try:
        with mounted(probe):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A tmpfs there for as long as the context lasts."""
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
        """Not a byte is left."""
        with suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                os.write(file.fileno(), PIECE)

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)
