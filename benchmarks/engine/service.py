"""Measures the running program from outside: `darkroom up`, a watched job, `darkroom imagine`.

It uses the command line and the HTTP API, and imports neither the bot nor the engine.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report.figure_row import FigureRow

TIMEOUT_SECONDS = 90.0  # seconds after which a start counts as failed
DARKROOM_COMMAND = (sys.executable, "-m", "bot")
BUSY_LOOP_COMMAND = (sys.executable, "-c", "while True: pass")
PROMPT = "terrier, looking up, cute, white background"


def measure_service_rows() -> list[FigureRow]:
    """Measure a `darkroom up` in a temporary data folder, then draw twice without it."""
    with tempfile.TemporaryDirectory() as folder:
        data_folder = Path(folder)
        with _run_darkroom_up(data_folder) as (process, healthy_seconds, address):
            resident_mb = _read_resident_mb(process.pid)  # before the first job: idle
            has_torch = int(b"libtorch" in Path(f"/proc/{process.pid}/maps").read_bytes())
            frame_seconds = _time_first_frame(address)
        rows = [
            FigureRow("up answers /healthz after", healthy_seconds, "≤ 10", "s"),
            FigureRow("first frame after a job was posted", frame_seconds, "≤ 2", "s"),
            FigureRow("idle bot process, resident", resident_mb, "≤ 200", "MB"),
            FigureRow("torch in the bot process", has_torch, "= 0", "mapped"),
        ]
        is_same, picture_count = _compare_under_load(data_folder)
        name = "the same seed gives the same bytes, also under load"
        return [*rows, FigureRow(name, is_same, "= 1", "yes", samples=picture_count)]


@contextmanager
def _run_darkroom_up(data_folder: Path) -> Generator[tuple[subprocess.Popen[bytes], float, str]]:
    """Run `darkroom up` with a ready worker; yield (process, seconds to its first /healthz, address)."""
    started_at = time.perf_counter()
    command = [*DARKROOM_COMMAND, "up", "--port", "0", "--data", str(data_folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        running_file = data_folder / "running.json"
        _wait_for(running_file.exists)
        address = str(json.loads(running_file.read_text())["url"])
        _wait_for(lambda: bool(_get_json(f"{address}/healthz")))
        healthy_seconds = time.perf_counter() - started_at
        _wait_for(lambda: _get_json(f"{address}/healthz").get("workers", 0) > 0)
        yield process, healthy_seconds, address
    finally:
        process.terminate()
        process.wait(30)


def _time_first_frame(address: str) -> float:
    """Return the seconds from posting a prompt to an idle bot until its watcher has the first frame."""
    body = json.dumps({"prompt": PROMPT, "seed": 7}).encode()
    started_at = time.perf_counter()
    with _open_url(f"{address}/api/jobs", body) as response:
        job = json.load(response)["id"]
    with _open_url(f"{address}/api/jobs/{job}/events") as events:
        for line in events:
            if line.startswith(b"data:") and json.loads(line[5:]).get("frames"):  # a frame event may hold only a step
                return time.perf_counter() - started_at
    raise RuntimeError("the job ended without a frame")


def _compare_under_load(data_folder: Path) -> tuple[int, int]:
    """Draw one seed twice, the second time beside processes that use every core.

    Returns 1 if both runs wrote the same files, else 0, and the number of files.
    """
    idle_hashes = _draw_and_hash(data_folder)
    busy_processes = [subprocess.Popen(BUSY_LOOP_COMMAND) for _ in range(os.cpu_count() or 1)]
    try:
        return int(_draw_and_hash(data_folder) == idle_hashes), len(idle_hashes)
    finally:
        for busy_process in busy_processes:
            busy_process.kill()
            busy_process.wait()


def _draw_and_hash(data_folder: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as output_folder:
        command = [
            *DARKROOM_COMMAND,
            "imagine",
            PROMPT,
            "--steps",
            "60",
            "--seed",
            "7",
            "--out",
            output_folder,
            "--json",
        ]
        env = os.environ | {"DARKROOM_DATA": str(data_folder)}
        process = subprocess.run(command, env=env, capture_output=True, check=True)
        pictures = json.loads(process.stdout)["pictures"]
        return [hashlib.sha256(Path(picture).read_bytes()).hexdigest() for picture in pictures]


def _read_resident_mb(pid: int) -> float:
    """Return the resident memory in MB, as the kernel counts it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _open_url(address: str, body: bytes | None = None) -> Any:
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310 - our own server
    return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)  # noqa: S310 - the same


def _get_json(address: str) -> dict[str, Any]:
    try:
        with _open_url(address) as response:
            return dict(json.load(response))
    except (urllib.error.URLError, ConnectionError):
        return {}


def _wait_for(is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not is_ready():
        if time.monotonic() > deadline:
            raise RuntimeError("darkroom up did not get ready in time")
        time.sleep(0.05)
