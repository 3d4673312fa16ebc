"""The subprocesses that the benchmark starts: their output lines, memory and end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

PATIENCE = 1800.0  # seconds after which a side counts as failed
STOPPING = 60.0
# Settings of a real bot on this machine, which the benchmark's processes must not inherit.
PRIVATE = ("DISCORD_", "DARKROOM_", "DATABASE_URL", "PICTURES_URL", "PUBLIC_URL", "ALLOWED_HOSTS")


@dataclass(frozen=True)
class Fact:
    """One line of JSON that a program printed, and the seconds since its command started."""

    after: float
    value: dict[str, Any]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)} | {"HF_HUB_OFFLINE": "1"}


def collect_facts(command: Sequence[str], log: Path) -> list[Fact]:
    """Run a program to its end. Raises RuntimeError with its last line if it fails."""
    begun = time.perf_counter()
    facts = list[Fact]()
    with started(command, log, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            facts.append(Fact(time.perf_counter() - begun, json.loads(line)))
        code = process.wait()
    if code:
        raise RuntimeError(f"{Path(command[0]).name} {' '.join(command[1:4])} ended with {code}: {last_line(log)}")
    return facts


@contextmanager
def started(command: Sequence[str], log: Path, stdout: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that is terminated at the end of the block or after `PATIENCE`. Its errors go to `log`."""
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=stdout or errors, stderr=errors, env=environment())
        guard = Timer(PATIENCE, process.terminate)
        guard.daemon = True
        guard.start()
        try:
            yield process
        finally:
            guard.cancel()
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOPPING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


def darkroom(*args: str) -> list[str]:
    return [sys.executable, "-m", "bot", *args]


def descendants(pid: int) -> list[int]:
    """Return this process and its living descendants; empty if the system has no /proc."""
    parents = dict[int, int]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = [pid] if pid in parents else []
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def engine_of(pid: int) -> int | None:
    """Return the engine's process id among the descendants of `darkroom up`."""
    return next((one for one in descendants(pid) if b"engine\0serve" in _command_line(one)), None)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def megabytes(pid: int, name: str) -> float:
    """Return `VmRSS` or `VmHWM` of a process in MB; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    _, found, rest = status.partition(f"{name}:")
    return int(rest.split()[0]) / 1024 if found else 0.0
