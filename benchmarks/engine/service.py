"""Measures the running program from outside: `darkroom up`, a watched job, `darkroom imagine`."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.models.processes import darkroom_command, get_json, read_memory_mb, run_and_collect, run_server
from benchmarks.report.figure_row import FigureRow

TIMEOUT_SECONDS = 90.0  # seconds after which a start counts as failed
BUSY_LOOP_COMMAND = (sys.executable, "-c", "while True: pass")
PROMPT = "terrier, looking up, cute, white background"


def measure_service_rows() -> list[FigureRow]:
    """Measure a `darkroom up` in a temporary data folder, then draw twice without it."""
    with tempfile.TemporaryDirectory() as folder:
        data_folder = Path(folder) / "data"
        with run_server(data_folder, Path(folder) / "up.log") as server:
            _wait_for(lambda: bool(get_json(f"{server.address}/healthz")))
            healthy_seconds = time.perf_counter() - server.started_at
            _wait_for(lambda: get_json(f"{server.address}/healthz").get("workers", 0) > 0)
            resident_mb = read_memory_mb(server.pid, "VmRSS")  # before the first job: idle
            has_torch = int(b"libtorch" in Path(f"/proc/{server.pid}/maps").read_bytes())
            job = server.draw_picture({"prompt": PROMPT, "seed": 7}, server.open_session())
        if job.first_frame_at is None:
            raise RuntimeError("the job ended without a frame")
        rows = [
            FigureRow("up answers /healthz after", healthy_seconds, "≤ 10", "s"),
            FigureRow("first frame after a job was posted", job.first_frame_at - job.posted_at, "≤ 2", "s"),
            FigureRow("idle bot process, resident", resident_mb, "≤ 200", "MB"),
            FigureRow("torch in the bot process", has_torch, "= 0", "mapped"),
        ]
        is_same, picture_count = _compare_under_load(data_folder)
        name = "the same seed gives the same bytes, also under load"
        return [*rows, FigureRow(name, is_same, "= 1", "yes", samples=picture_count)]


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
    with tempfile.TemporaryDirectory() as folder:
        options = ("--steps", "60", "--seed", "7", "--out", folder, "--json", "--data", str(data_folder))
        [line] = run_and_collect(darkroom_command("imagine", PROMPT, *options), Path(folder) / "log")
        return [hashlib.sha256(Path(picture).read_bytes()).hexdigest() for picture in line.values["pictures"]]


def _wait_for(is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not is_ready():
        if time.monotonic() > deadline:
            raise RuntimeError("darkroom up did not get ready in time")
        time.sleep(0.05)
