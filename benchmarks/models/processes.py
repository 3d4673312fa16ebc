"""The subprocesses that the benchmark starts: their output lines, memory and end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

TIMEOUT_SECONDS = 1800.0  # seconds after which a side counts as failed
STOP_TIMEOUT_SECONDS = 60.0
# Settings of a real bot on this machine, which the benchmark's processes must not inherit.
PRIVATE_PREFIXES = ("DISCORD_", "DARKROOM_", "DATABASE_URL")


@dataclass(frozen=True)
class OutputLine:
    """One line of JSON that a program printed, and the seconds since its command started."""

    elapsed_seconds: float
    values: dict[str, Any]


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE_PREFIXES)} | {
        "HF_HUB_OFFLINE": "1"
    }


def run_and_collect(command: Sequence[str], log_path: Path) -> list[OutputLine]:
    """Run a program to its end. Raises RuntimeError with its last line if it fails."""
    started_at = time.perf_counter()
    output_lines = list[OutputLine]()
    with run_process(command, log_path, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output_lines.append(OutputLine(time.perf_counter() - started_at, json.loads(line)))
        exit_code = process.wait()
    if exit_code:
        raise RuntimeError(
            f"{Path(command[0]).name} {' '.join(command[1:4])} ended with {exit_code}: {read_last_line(log_path)}"
        )
    return output_lines


@contextmanager
def run_process(
    command: Sequence[str], log_path: Path, stdout: int | None = None
) -> Generator[subprocess.Popen[bytes]]:
    """Run a program; end it with the block, or after `TIMEOUT_SECONDS`. Its errors go to `log_path`."""
    with log_path.open("wb") as log_file:
        process = subprocess.Popen(command, stdout=stdout or log_file, stderr=log_file, env=clean_environment())
        timeout_timer = Timer(TIMEOUT_SECONDS, process.terminate)
        timeout_timer.daemon = True
        timeout_timer.start()
        try:
            yield process
        finally:
            timeout_timer.cancel()
            _stop_process(process)


def _stop_process(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def read_last_line(log_path: Path) -> str:
    lines = [line for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


def darkroom_command(*args: str) -> list[str]:
    return [sys.executable, "-m", "bot", *args]


def find_process_tree(pid: int) -> list[int]:
    """Return this process and its living descendants; empty if the system has no /proc."""
    parents = dict[int, int]()
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat_file.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        parents[int(stat_file.parent.name)] = int(fields[1])
    process_ids = [pid] if pid in parents else []
    for process_id in process_ids:
        process_ids += [child for child, parent in parents.items() if parent == process_id]
    return process_ids


def find_engine_process(pid: int) -> int | None:
    """Return the engine's process id among the descendants of `darkroom up`."""
    return next(
        (process_id for process_id in find_process_tree(pid) if b"engine\0serve" in _read_command_line(process_id)),
        None,
    )


def _read_command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def read_memory_mb(pid: int, field: str) -> float:
    """Return `VmRSS` or `VmHWM` of a process in MB; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    _, separator, remainder = status.partition(f"{field}:")
    return int(remainder.split()[0]) / 1024 if separator else 0.0
