"""A running `darkroom up` as a new user starts it: real processes, the real broker, the real model.

Speeds are not asserted (a test machine may be busy): waits have generous limits, and `darkroom bench` measures.
"""

from __future__ import annotations

import asyncio
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

from engine.bus import Bus
from shared.embedded_calibration import CALIBRATION_TIMEOUT, CLEAN_ENVIRONMENT, read_row_ms

PROMPT = "terrier, looking up, cute, white background"
START_SECONDS = 60.0
DRAW_TIMEOUT = 240.0
SNAPSHOT_TIMEOUT = 60.0
LONG_SECONDS = 7.0  # device-seconds, when no other job runs: a job's first snapshot is stored after two
LONG_ROWS = 3.0  # rows of two pictures, with guidance for half of the steps
FINAL_STATES = ("finished", "failed", "cancelled")

T = TypeVar("T")


def run_darkroom(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bot", *args]
    return subprocess.run(
        command,
        env=CLEAN_ENVIRONMENT | variables,
        capture_output=True,
        text=True,
        timeout=CALIBRATION_TIMEOUT,
        check=False,
    )


def wait_until(condition: Callable[[], T | None], seconds: float) -> T:
    """Wait for the first true result."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain"
        time.sleep(0.05)


@dataclass
class DarkroomProcess:
    """A running `darkroom up` on a data folder."""

    data: Path
    process: subprocess.Popen[bytes] | None = None
    seconds: float = 0.0
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.data / "printed.txt"

    def start(self, *args: str) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        started_at = time.monotonic()
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "bot", "up", "--port", "0", "--data", str(self.data), *args]
            self.process = subprocess.Popen(command, env=CLEAN_ENVIRONMENT, stdout=log, stderr=log)
        wait_until(self._is_answering, START_SECONDS)
        self.seconds = time.monotonic() - started_at

    def _is_answering(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        if not (self.data / "running.json").exists() or self.read_announcement()["pid"] != self.process.pid:
            return False
        return self.get_json("/healthz")["status"] == "ok"

    def read_announcement(self) -> dict[str, Any]:
        return json.loads((self.data / "running.json").read_text())

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)

    def list_children(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def find_engine(self) -> psutil.Process | None:
        """Finds the worker's process."""
        engines = [
            child for child in self.list_children() if "engine" in child.cmdline() and "serve" in child.cmdline()
        ]
        return engines[0] if engines else None

    def send_request(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        url = self.read_announcement()["url"] + path
        payload = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, payload, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def get_json(self, path: str) -> Any:
        status, body = self.send_request("GET", path)
        assert status == 200, body
        return json.loads(body)

    def imagine(self, **options: object) -> str:
        status, body = self.send_request("POST", "/api/jobs", {"prompt": PROMPT, "seed": 7, **options})
        assert status == 201, body
        return json.loads(body)["id"]

    def get_job(self, job: str) -> dict[str, Any]:
        return self.get_json(f"/api/jobs/{job}")

    def wait_for_end(self, job: str) -> dict[str, Any]:
        """Wait until the job is over, and return it."""

        def read_ended_job() -> dict[str, Any] | None:
            view = self.get_job(job)
            return view if view["state"] in FINAL_STATES else None

        return wait_until(read_ended_job, DRAW_TIMEOUT)

    def wait_until_warm(self) -> None:
        wait_until(lambda: self.get_json("/api/workers")["models"] or None, CALIBRATION_TIMEOUT)

    def wait_for_first_frame(self, job: str) -> None:
        """Read the job's stream until its first frame."""
        with urllib.request.urlopen(
            f"{self.read_announcement()['url']}/api/jobs/{job}/events", timeout=DRAW_TIMEOUT
        ) as stream:
            for line in stream:
                if line.startswith(b"data:") and json.loads(line[5:]).get("frames"):
                    return
        raise AssertionError(f"the stream of {job} ended without a frame")

    def start_long_job(self, **options: object) -> str:
        """Start a long job of two images, and return when it runs and both have a snapshot."""
        steps = round(1000 * LONG_SECONDS / (LONG_ROWS * read_row_ms(self.data / "calibration.json")))
        job = self.imagine(**{"steps": min(max(steps, 60), 1000), "count": 2} | options)
        self.wait_for_first_frame(job)
        asyncio.run(self._wait_for_snapshots(job, 2))
        assert self.get_job(job)["state"] == "running"
        return job

    async def _wait_for_snapshots(self, job: str, count: int) -> None:
        """Wait until the broker has snapshots of so many pictures."""
        engine = self.find_engine()
        assert engine is not None
        command = engine.cmdline()
        bus = await Bus.connect(command[command.index("--nats") + 1], engine.environ()["DARKROOM_NATS_TOKEN"])
        try:
            await bus.declare()
            async with asyncio.timeout(SNAPSHOT_TIMEOUT):
                while len(await bus.get_snapshots(job)) < count:
                    await asyncio.sleep(0.05)
        finally:
            await bus.close()

    def list_end_states(self, job: str) -> list[str]:
        """List every final state that the store recorded for a job."""
        with closing(sqlite3.connect(f"file:{self.data / 'darkroom.sqlite'}?mode=ro", uri=True)) as store:
            rows = store.execute("select target from moves where job = ? order by id", (job,)).fetchall()
        return [target for (target,) in rows if target in FINAL_STATES]

    def list_start_steps(self, job: str) -> list[int]:
        """List the steps at which workers began this job."""
        log = (self.data / "engine.log").read_text()
        return [int(step) for step in re.findall(rf"job {job} begins at step (\d+)", log)]
