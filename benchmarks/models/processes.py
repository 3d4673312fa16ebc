"""The subprocesses that the benchmark starts, and `darkroom up` among them, used over HTTP as visitors do.

It uses the command line and the HTTP API, and imports neither the bot nor the engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE_PREFIXES)}
    return inherited | {"HF_HUB_OFFLINE": "1"}


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
        program = f"{Path(command[0]).name} {' '.join(command[1:4])}"
        raise RuntimeError(f"{program} ended with {exit_code}: {read_last_line(log_path)}")
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
    for process_id in find_process_tree(pid):
        with suppress(OSError):  # the process has ended
            if b"engine\0serve" in Path(f"/proc/{process_id}/cmdline").read_bytes():
                return process_id
    return None


def read_memory_mb(pid: int, field: str) -> float:
    """Return `VmRSS` or `VmHWM` of a process in MB; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    _, separator, remainder = status.partition(f"{field}:")
    return int(remainder.split()[0]) / 1024 if separator else 0.0


POLL_SECONDS = 0.05  # seconds between two tries
READ_TIMEOUT_SECONDS = 120.0  # seconds; a job's event stream sends something every ten
FAILURE_EVENTS = ("failed", "cancelled", "deleted")


@dataclass(frozen=True)
class JobTimes:
    """One job's times in a visitor's view (`time.perf_counter`).

    `first_frame_at` is None if the picture came before any frame.
    """

    posted_at: float
    first_frame_at: float | None
    picture_at: float


@dataclass(frozen=True)
class DarkroomServer:
    """A running `darkroom up`. `started_at` is the time at which its command started."""

    pid: int
    started_at: float
    address: str

    def open_session(self) -> str:
        """Open the page as a new visitor and return the cookie."""
        with _open_url(f"{self.address}/") as response:
            return str(response.headers["Set-Cookie"]).partition(";")[0]

    def draw_concurrently(self, requests: list[dict[str, Any]]) -> list[JobTimes]:
        """Post all requests at once, each as another visitor."""
        cookies = [self.open_session() for _ in requests]
        with ThreadPoolExecutor(len(requests)) as executor:
            return list(executor.map(self.draw_picture, requests, cookies))

    def draw_picture(self, request: dict[str, Any], cookie: str) -> JobTimes:
        """Post a request and follow the job's events until the picture is downloaded."""
        posted_at, job = self._post_job(request, cookie)
        first_frame_at: float | None = None
        with _open_url(f"{self.address}/api/jobs/{job}/events", cookie=cookie) as lines:
            for event, value in _parse_events(lines):
                if event == "frame" and value.get("frames") and first_frame_at is None:
                    first_frame_at = time.perf_counter()
                if event in FAILURE_EVENTS:
                    raise RuntimeError(f"the job was {event}: {value.get('reason') or 'no reason'}")
                if event == "finished":
                    break
            else:
                raise RuntimeError("the job's events ended without its picture")
        with _open_url(f"{self.address}/api/jobs/{job}/pictures/1.png", cookie=cookie) as response:
            response.read()
        return JobTimes(posted_at, first_frame_at, time.perf_counter())

    def _post_job(self, request: dict[str, Any], cookie: str) -> tuple[float, str]:
        """Post a request; retries while the server does not know the model yet."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while True:
            posted_at = time.perf_counter()
            try:
                with _open_url(f"{self.address}/api/jobs", json.dumps(request).encode(), cookie) as response:
                    return posted_at, str(json.load(response)["id"])
            except urllib.error.HTTPError as error:
                error_text = error.read().decode(errors="replace")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the job was not accepted: {error_text[:200]}") from error
            time.sleep(POLL_SECONDS)

    def read_memory(self) -> dict[str, float]:
        """Return MB now and at the peak, of the engine and of all processes; empty if the system does not tell."""
        engine_pid = find_engine_process(self.pid)
        process_ids = find_process_tree(self.pid)
        if engine_pid is None:
            return {}
        return {
            "rest": read_memory_mb(engine_pid, "VmRSS"),
            "peak": read_memory_mb(engine_pid, "VmHWM"),
            "all_rest": sum(read_memory_mb(process_id, "VmRSS") for process_id in process_ids),
            "all_peak": sum(read_memory_mb(process_id, "VmHWM") for process_id in process_ids),
        }


@contextmanager
def run_server(data_folder: Path, log: Path, *options: str) -> Generator[DarkroomServer]:
    """Start `darkroom up` and yield it once the page answers; the model may still be loading.

    Raises RuntimeError if it exits.
    """
    started_at = time.perf_counter()
    command = darkroom_command("up", "--port", "0", "--data", str(data_folder), *options)
    with run_process(command, log) as process:
        running_file = data_folder / "running.json"
        while not running_file.exists():
            if process.poll() is not None or time.perf_counter() - started_at > TIMEOUT_SECONDS:
                raise RuntimeError(f"darkroom up did not open: {read_last_line(log)}")
            time.sleep(POLL_SECONDS)
        yield DarkroomServer(process.pid, started_at, str(json.loads(running_file.read_text())["url"]))


def _parse_events(lines: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield server-sent events, each with its value from one line of JSON."""
    event = ""
    for line in lines:
        if line.startswith(b"event:"):
            event = line[6:].strip().decode()
        elif line.startswith(b"data:"):
            yield event, json.loads(line[5:])


def get_json(address: str) -> dict[str, Any]:
    """Return the object at an address; empty while nothing answers."""
    try:
        with _open_url(address) as response:
            return dict(json.load(response))
    except (urllib.error.URLError, ConnectionError):
        return {}


def _open_url(address: str, body: bytes | None = None, cookie: str = "") -> Any:
    headers = {"Content-Type": "application/json"} | ({"Cookie": cookie} if cookie else {})
    request = urllib.request.Request(address, body, headers)  # noqa: S310 - our own server
    return urllib.request.urlopen(request, timeout=READ_TIMEOUT_SECONDS)  # noqa: S310 - the same
