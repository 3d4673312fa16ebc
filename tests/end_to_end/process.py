"""A running `darkroom up` as a newcomer starts it: real processes, the real broker, the real model, nothing in between.

Speeds are not asserted (a test machine may be busy): waits have generous limits, and `darkroom bench` measures.
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

from shared.embedded_calibration import CALIBRATION_TIMEOUT, CLEAN_ENVIRONMENT, read_row_ms

PROMPT = "terrier, looking up, cute, white background"
START_SECONDS = 60.0
DRAWING = 240.0
SNAPSHOT_SECONDS = 4.5  # after its first frame, until a job has at least one snapshot
LONG_SECONDS = 15.0  # device-seconds, when no other job runs
LONG_ROWS = 3.0  # rows of two pictures, with guidance for half of the steps
FINAL_STATES = ("finished", "failed", "cancelled")

T = TypeVar("T")


def darkroom(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bot", *args]
    return subprocess.run(
        command,
        env=CLEAN_ENVIRONMENT | variables,
        capture_output=True,
        text=True,
        timeout=CALIBRATION_TIMEOUT,
        check=False,
    )


def until(what: Callable[[], T | None], seconds: float) -> T:
    """Wait for the first true result."""
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
        started = time.monotonic()
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "bot", "up", "--port", "0", "--data", str(self.data), *args]
            self.process = subprocess.Popen(command, env=CLEAN_ENVIRONMENT, stdout=log, stderr=log)
        until(self._answers, START_SECONDS)
        self.seconds = time.monotonic() - started

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
        """Wait until the job is over, and return it."""

        def look() -> dict[str, Any] | None:
            view = self.job(job)
            return view if view["state"] in FINAL_STATES else None

        return until(look, DRAWING)

    def warm(self) -> None:
        until(lambda: self.get("/api/workers")["models"] or None, CALIBRATION_TIMEOUT)

    def watch(self, job: str) -> None:
        """Read the job's stream until its first frame."""
        with urllib.request.urlopen(f"{self._announced()['url']}/api/jobs/{job}/events", timeout=DRAWING) as stream:
            for line in stream:
                if line.startswith(b"data:") and json.loads(line[5:]).get("frames"):
                    return
        raise AssertionError(f"the stream of {job} ended without a frame")

    def long_job(self) -> str:
        """Start a long job, and return when it runs and has a snapshot."""
        steps = round(1000 * LONG_SECONDS / (LONG_ROWS * read_row_ms(self.data / "calibration.json")))
        job = self.imagine(steps=min(max(steps, 60), 1000), count=2)
        self.watch(job)
        time.sleep(SNAPSHOT_SECONDS)
        assert self.job(job)["state"] == "running"
        return job

    def ends(self, job: str) -> list[str]:
        """Every final state that the store recorded for a job."""
        with closing(sqlite3.connect(f"file:{self.data / 'darkroom.sqlite'}?mode=ro", uri=True)) as store:
            moves = store.execute("select target from moves where job = ? order by id", (job,)).fetchall()
        return [target for (target,) in moves if target in FINAL_STATES]

    def begun(self, job: str) -> list[int]:
        """The steps at which workers began this job."""
        log = (self.data / "engine.log").read_text()
        return [int(step) for step in re.findall(rf"job {job} begins at step (\d+)", log)]
