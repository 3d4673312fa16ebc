"""Workers' keys come and go: in their file, and at once in the server that runs on a broker's folder, if one does.

Knows the file, the configuration and the server's process; nothing of what a key opens. The server reads the change
while it runs: nobody else's connection is touched, and one whose key is gone is closed.
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
READINGS = 2  # the server takes a new account at the first, and what this imports at the second (2.15)
TAKEN, REFUSED = "Reloaded server configuration", "Failed to reload server configuration"  # in the server's log


class Enrolment:
    """The keys of one data folder. Every method blocks, and raises `BadKey` where it cannot do what it says."""

    def __init__(self, file: Path, broker: Path) -> None:
        """`broker`: the folder of the embedded broker, whether it runs or not."""
        self._file, self._broker = file, broker

    def known(self) -> list[WorkerKey]:
        return keys.read(self._file)

    def listens(self) -> Listening | None:
        """Where the running server listens; None where none runs."""
        folder = self._broker.resolve()
        try:
            return listens((folder / "nats.conf").read_text()) if running(folder) else None
        except (OSError, ValueError):
            return None

    def enrol(self, name: str, pools: Sequence[str], day: str) -> tuple[WorkerKey, str, bool]:
        """A new key, its seed, and whether a running server has taken it."""
        made, seed = keys.make(name, pools, day)
        with keys.locked(self._file):
            known = keys.read(self._file)
            if any(one.name == name for one in known):
                raise BadKey(f"{name} has a key already; revoke that first.")
            try:
                return made, seed, self._keep([*known, made], new=True)
            except BadKey:
                keys.write(self._file, known)  # nobody has seen its seed
                raise

    def revoke(self, name: str) -> bool:
        """Whether a running server has taken it, and closed that worker's connection."""
        with keys.locked(self._file):
            known = keys.read(self._file)
            left = [one for one in known if one.name != name]
            if len(left) == len(known):
                raise BadKey(f"No worker named {name} has a key.")
            try:
                return self._keep(left)
            except BadKey as error:
                raise BadKey(f"It holds from the broker's next start on: {error}") from error

    def _keep(self, known: Sequence[WorkerKey], *, new: bool = False) -> bool:
        """The file first: what is in it holds from the next start on, whatever happens now."""
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
            raise BadKey(f"The running broker could not be told: {error}.") from error
        return True


def _read(pid: int, said: Path) -> None:
    """Has the server read its configuration anew, and returns when it says that it has."""
    before = said.stat().st_size if said.exists() else 0
    os.kill(pid, signal.SIGHUP)
    _taken(said, before)


def _taken(said: Path, before: int) -> None:
    """Waits for the server's word."""
    end = time.monotonic() + TAKEN_SECONDS
    while time.monotonic() < end:
        text = said.read_bytes() if said.exists() else b""
        new = text[before:] if len(text) >= before else text  # it begins a new log when one is full
        if REFUSED.encode() in new:
            raise BadKey(f"The running broker refused its new configuration: see {said}.")
        if TAKEN.encode() in new:
            return
        time.sleep(0.02)
    raise BadKey(f"The running broker has not said in {TAKEN_SECONDS:.0f} s that it knows: see {said}.")
