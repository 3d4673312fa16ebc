"""A running `darkroom up` as a newcomer starts it: real processes, the real broker, the real model, nothing in between.

Speeds are not asserted (a test machine may be busy): waits are bounded generously, `darkroom bench` measures.
"""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from calibrated import ENV, WARMING, row_ms

PROMPT = "terrier, looking up, cute, white background"
STARTING = 60.0
DRAWING = 240.0
SNAPSHOTS = 4.5  # seconds after its first frame when a job has been saved at least once
LONG = 15.0  # seconds of the device, when nobody else has it
LONG_ROWS = 3.0  # of two pictures: with guidance for half of the steps
OVER = ("finished", "failed", "cancelled")

T = TypeVar("T")


def darkroom(*args: str, **given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bot", *args]
    return subprocess.run(command, env=ENV | given, capture_output=True, text=True, timeout=WARMING, check=False)


def until(what: Callable[[], T | None], seconds: float) -> T:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain"
        time.sleep(0.05)


@dataclass
class Up:
    """A running `darkroom up` on a data folder."""

    data: Path
    process: subprocess.Popen[bytes] | None = None
    seconds: float = 0.0
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.data / "printed.txt"

    def start(self, *args: str) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with self.log.open("ab") as printed:
            command = [sys.executable, "-m", "bot", "up", "--port", "0", "--data", str(self.data), *args]
            self.process = subprocess.Popen(command, env=ENV, stdout=printed, stderr=printed)
        until(self._answers, STARTING)
        self.seconds = time.monotonic() - began

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        if not (self.data / "running.json").exists() or self._announced()["pid"] != self.process.pid:
            return False
        return self.get("/healthz")["status"] == "ok"

    def _announced(self) -> dict[str, Any]:
        return json.loads((self.data / "running.json").read_text())

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)

    def children(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine(self) -> psutil.Process | None:
        """The worker's process."""
        found = [child for child in self.children() if "engine" in child.cmdline() and "serve" in child.cmdline()]
        return found[0] if found else None

    def call(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        url = self._announced()["url"] + path
        payload = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, payload, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def get(self, path: str) -> Any:
        status, body = self.call("GET", path)
        assert status == 200, body
        return json.loads(body)

    def imagine(self, **order: object) -> str:
        status, body = self.call("POST", "/api/jobs", {"prompt": PROMPT, "seed": 7, **order})
        assert status == 201, body
        return json.loads(body)["id"]

    def job(self, job: str) -> dict[str, Any]:
        return self.get(f"/api/jobs/{job}")

    def over(self, job: str) -> dict[str, Any]:
        """The job when it is over."""

        def look() -> dict[str, Any] | None:
            shown = self.job(job)
            return shown if shown["state"] in OVER else None

        return until(look, DRAWING)

    def warm(self) -> None:
        until(lambda: self.get("/api/room")["models"] or None, WARMING)

    def watch(self, job: str) -> None:
        """Reads the job's stream until its first frame with a picture."""
        with urllib.request.urlopen(f"{self._announced()['url']}/api/jobs/{job}/events", timeout=DRAWING) as stream:
            for line in stream:
                if line.startswith(b"data:") and json.loads(line[5:]).get("frames"):
                    return
        raise AssertionError(f"the stream of {job} ended without a frame")

    def long_job(self) -> str:
        """A job that is in the midst of it, and was saved."""
        steps = round(1000 * LONG / (LONG_ROWS * row_ms(self.data / "calibration.json")))
        job = self.imagine(steps=min(max(steps, 60), 1000), count=2)
        self.watch(job)
        time.sleep(SNAPSHOTS)
        assert self.job(job)["state"] == "running"
        return job

    def ends(self, job: str) -> list[str]:
        """Every end that the store recorded for a job."""
        with closing(sqlite3.connect(f"file:{self.data / 'darkroom.sqlite'}?mode=ro", uri=True)) as store:
            moves = store.execute("select target from moves where job = ? order by id", (job,)).fetchall()
        return [target for (target,) in moves if target in OVER]

    def begun(self, job: str) -> list[int]:
        """The steps at which workers began this job."""
        log = (self.data / "engine.log").read_text()
        return [int(step) for step in re.findall(rf"job {job} begins at step (\d+)", log)]
