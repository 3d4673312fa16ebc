"""Worker key administration: adds and revokes keys in their file and in the running server's configuration.

The server reloads while it runs: other connections stay, and the connection of a revoked key is closed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from engine.bus import worker_keys
from engine.bus.embedded_broker import ListenAddress, find_server_pid, parse_listen_address, replace_workers
from engine.bus.worker_keys import BadKey, WorkerKey

RELOAD_SECONDS = 10.0
RELOADS_FOR_NEW = 2  # reloads: the first adds a new account, the second its imports (nats-server 2.15)
# in the server's log
RELOADED_TEXT = "Reloaded server configuration"
RELOAD_FAILED_TEXT = "Failed to reload server configuration"


class WorkerKeyAdmin:
    """The keys of one data folder. Every method blocks, and raises `BadKey` on failure."""

    def __init__(self, key_file: Path, broker_folder: Path) -> None:
        """`broker_folder`: the folder of the embedded broker, whether it runs or not."""
        self._key_file = key_file
        self._broker_folder = broker_folder

    def list_keys(self) -> list[WorkerKey]:
        return worker_keys.read_keys(self._key_file)

    def get_listen_address(self) -> ListenAddress | None:
        """Return where the running server listens; None where none runs."""
        folder = self._broker_folder.resolve()
        try:
            return parse_listen_address((folder / "nats.conf").read_text()) if find_server_pid(folder) else None
        except (OSError, ValueError):
            return None

    def add_key(self, name: str, pools: Sequence[str], day: str) -> tuple[WorkerKey, str, bool]:
        """Return a new key, its seed, and whether a running server has loaded it."""
        new_key, seed = worker_keys.create_key(name, pools, day)
        with worker_keys.lock_file(self._key_file):
            known_keys = worker_keys.read_keys(self._key_file)
            if any(worker_key.name == name for worker_key in known_keys):
                raise BadKey(f"{name} has a key already; revoke that first.")
            try:
                return new_key, seed, self._save_and_reload([*known_keys, new_key], is_new_key=True)
            except BadKey:
                worker_keys.write_keys(self._key_file, known_keys)  # undo: its seed was never shown
                raise

    def revoke_key(self, name: str) -> bool:
        """Return whether a running server has reloaded and closed that worker's connection."""
        with worker_keys.lock_file(self._key_file):
            known_keys = worker_keys.read_keys(self._key_file)
            remaining_keys = [worker_key for worker_key in known_keys if worker_key.name != name]
            if len(remaining_keys) == len(known_keys):
                raise BadKey(f"No worker named {name} has a key.")
            try:
                return self._save_and_reload(remaining_keys)
            except BadKey as error:
                raise BadKey(f"The key is revoked from the broker's next start on: {error}") from error

    def _save_and_reload(self, known_keys: Sequence[WorkerKey], *, is_new_key: bool = False) -> bool:
        """Write the file first: its keys count from the next start on, even where the reload fails."""
        worker_keys.write_keys(self._key_file, known_keys)
        folder = self._broker_folder.resolve()
        pid = find_server_pid(folder)
        if pid is None:
            return False
        config = folder / "nats.conf"
        log_path = folder / "nats.log"
        try:
            worker_keys.replace_file(config, replace_workers(config.read_text(), known_keys).encode())
            for _ in range(RELOADS_FOR_NEW if is_new_key else 1):
                _reload_server(pid, log_path)
        except ProcessLookupError:
            return False
        except BadKey:
            raise
        except (OSError, ValueError) as error:
            raise BadKey(f"The running broker could not be reloaded: {error}.") from error
        return True


def _reload_server(pid: int, log_path: Path) -> None:
    """Make the server reload its configuration, and wait until it has."""
    old_size = log_path.stat().st_size if log_path.exists() else 0
    os.kill(pid, signal.SIGHUP)
    _wait_for_reload(log_path, old_size)


def _wait_for_reload(log_path: Path, old_size: int) -> None:
    """Wait until the server logs the reload."""
    deadline = time.monotonic() + RELOAD_SECONDS
    while time.monotonic() < deadline:
        text = log_path.read_bytes() if log_path.exists() else b""
        new_text = text[old_size:] if len(text) >= old_size else text  # the server may have rotated its log
        if RELOAD_FAILED_TEXT.encode() in new_text:
            raise BadKey(f"The running broker refused its new configuration: see {log_path}.")
        if RELOADED_TEXT.encode() in new_text:
            return
        time.sleep(0.02)
    raise BadKey(f"The running broker did not confirm the change within {RELOAD_SECONDS:.0f} s: see {log_path}.")
