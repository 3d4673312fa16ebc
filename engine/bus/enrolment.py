"""Worker key administration: adds and revokes keys in their file and in the running server's configuration.

The server reloads while it runs: other connections stay, and the connection of a revoked key is closed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from engine.bus import keys
from engine.bus.keys import BadKey, WorkerKey
from engine.bus.server import Listening, listens, running, with_workers

TAKEN_SECONDS = 10.0
READINGS = 2  # reloads: the first adds a new account, the second its imports (nats-server 2.15)
TAKEN, REFUSED = "Reloaded server configuration", "Failed to reload server configuration"  # in the server's log


class Enrolment:
    """The keys of one data folder. Every method blocks, and raises `BadKey` on failure."""

    def __init__(self, file: Path, broker: Path) -> None:
        """`broker`: the folder of the embedded broker, whether it runs or not."""
        self._file, self._broker = file, broker

    def known(self) -> list[WorkerKey]:
        return keys.read(self._file)

    def listens(self) -> Listening | None:
        """Return where the running server listens; None where none runs."""
        folder = self._broker.resolve()
        try:
            return listens((folder / "nats.conf").read_text()) if running(folder) else None
        except (OSError, ValueError):
            return None

    def enrol(self, name: str, pools: Sequence[str], day: str) -> tuple[WorkerKey, str, bool]:
        """Return a new key, its seed, and whether a running server has loaded it."""
        made, seed = keys.make(name, pools, day)
        with keys.locked(self._file):
            known = keys.read(self._file)
            if any(one.name == name for one in known):
                raise BadKey(f"{name} has a key already; revoke that first.")
            try:
                return made, seed, self._keep([*known, made], new=True)
            except BadKey:
                keys.write(self._file, known)  # undo: its seed was never shown
                raise

    def revoke(self, name: str) -> bool:
        """Return whether a running server has reloaded and closed that worker's connection."""
        with keys.locked(self._file):
            known = keys.read(self._file)
            left = [one for one in known if one.name != name]
            if len(left) == len(known):
                raise BadKey(f"No worker named {name} has a key.")
            try:
                return self._keep(left)
            except BadKey as error:
                raise BadKey(f"The key is revoked from the broker's next start on: {error}") from error

    def _keep(self, known: Sequence[WorkerKey], *, new: bool = False) -> bool:
        """Write the file first: its keys count from the next start on, even where the reload fails."""
        keys.write(self._file, known)
        folder = self._broker.resolve()
        pid = running(folder)
        if pid is None:
            return False
        config, said = folder / "nats.conf", folder / "nats.log"
        try:
            keys.replace(config, with_workers(config.read_text(), known).encode())
            for _ in range(READINGS if new else 1):
                _read(pid, said)
        except ProcessLookupError:
            return False
        except BadKey:
            raise
        except (OSError, ValueError) as error:
            raise BadKey(f"The running broker could not be reloaded: {error}.") from error
        return True


def _read(pid: int, said: Path) -> None:
    """Make the server reload its configuration, and wait until it has."""
    before = said.stat().st_size if said.exists() else 0
    os.kill(pid, signal.SIGHUP)
    _taken(said, before)


def _taken(said: Path, before: int) -> None:
    """Wait until the server logs the reload."""
    end = time.monotonic() + TAKEN_SECONDS
    while time.monotonic() < end:
        text = said.read_bytes() if said.exists() else b""
        new = text[before:] if len(text) >= before else text  # the server may have rotated its log
        if REFUSED.encode() in new:
            raise BadKey(f"The running broker refused its new configuration: see {said}.")
        if TAKEN.encode() in new:
            return
        time.sleep(0.02)
    raise BadKey(f"The running broker did not confirm the change within {TAKEN_SECONDS:.0f} s: see {said}.")
