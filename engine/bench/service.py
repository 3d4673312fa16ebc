"""Measures the running program from outside: `darkroom up`, a watched job, `darkroom imagine`.

Knows the command line and the HTTP API; imports neither the bot nor the engine.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.bench.row import Row

PATIENCE = 90.0  # seconds after which a start counts as failed
DARKROOM = (sys.executable, "-m", "bot")
BUSY = (sys.executable, "-c", "while True: pass")
PROMPT = "terrier, looking up, cute, white background"


def service_rows() -> list[Row]:
    """Measure a `darkroom up` in a temporary data folder, then draw twice without it."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        with _up(data) as (process, answered, address):
            resident = _resident(process.pid)  # before the first job: idle
            torch = int(b"libtorch" in Path(f"/proc/{process.pid}/maps").read_bytes())
            first = _first_frame(address)
        rows = [
            Row("up answers /healthz after", answered, "≤ 10", "s"),
            Row("first frame after a job was posted", first, "≤ 2", "s"),
            Row("idle bot process, resident", resident, "≤ 200", "MB"),
            Row("torch in the bot process", torch, "= 0", "mapped"),
        ]
        same, pictures = _same_bytes(data)
        name = "the same seed gives the same bytes, also under load"
        return [*rows, Row(name, same, "= 1", "yes", samples=pictures)]


@contextmanager
def _up(data: Path) -> Iterator[tuple[subprocess.Popen[bytes], float, str]]:
    """Run `darkroom up` with a ready worker; yield (process, seconds to its first /healthz, address)."""
    begun = time.perf_counter()
    command = [*DARKROOM, "up", "--port", "0", "--data", str(data)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        running = data / "running.json"
        _wait_for(running.exists)
        address = str(json.loads(running.read_text())["url"])
        _wait_for(lambda: bool(_get(f"{address}/healthz")))
        answered = time.perf_counter() - begun
        _wait_for(lambda: _get(f"{address}/healthz").get("workers", 0) > 0)
        yield process, answered, address
    finally:
        process.terminate()
        process.wait(30)


def _first_frame(address: str) -> float:
    """Return the seconds from posting a prompt to an idle bot until its watcher has the first frame."""
    body = json.dumps({"prompt": PROMPT, "seed": 7}).encode()
    begun = time.perf_counter()
    with _open(f"{address}/api/jobs", body) as answer:
        job = json.load(answer)["id"]
    with _open(f"{address}/api/jobs/{job}/events") as events:
        for line in events:
            if line.startswith(b"data:") and json.loads(line[5:]).get("frames"):  # a frame event may hold only a step
                return time.perf_counter() - begun
    raise RuntimeError("the job ended without a frame")


def _same_bytes(data: Path) -> tuple[int, int]:
    """Draw one seed twice, the second time beside processes that use every core.

    Returns 1 if both runs wrote the same files, else 0, and the number of files.
    """
    quiet = _draw(data)
    loads = [subprocess.Popen(BUSY) for _ in range(os.cpu_count() or 1)]
    try:
        return int(_draw(data) == quiet), len(quiet)
    finally:
        for load in loads:
            load.kill()
            load.wait()


def _draw(data: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as out:
        command = [*DARKROOM, "imagine", PROMPT, "--steps", "60", "--seed", "7", "--out", out, "--json"]
        env = os.environ | {"DARKROOM_DATA": str(data)}
        done = subprocess.run(command, env=env, capture_output=True, check=True)
        pictures = json.loads(done.stdout)["pictures"]
        return [hashlib.sha256(Path(picture).read_bytes()).hexdigest() for picture in pictures]


def _resident(pid: int) -> float:
    """Return the resident memory in MB, as the kernel counts it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _open(address: str, body: bytes | None = None) -> Any:
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310 - our own server
    return urllib.request.urlopen(request, timeout=PATIENCE)  # noqa: S310 - the same


def _get(address: str) -> dict[str, Any]:
    try:
        with _open(address) as answer:
            return dict(json.load(answer))
    except (urllib.error.URLError, ConnectionError):
        return {}


def _wait_for(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > end:
            raise RuntimeError("darkroom up did not get ready in time")
        time.sleep(0.05)
