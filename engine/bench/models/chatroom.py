"""Runs `darkroom up` with one model and uses it over HTTP as visitors do: first frame and picture of each job.

Knows the command line and the HTTP API; imports neither the bot nor the engine.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.bench.models.processes import PATIENCE, darkroom, descendants, engine_of, last_line, megabytes, started

GLANCE = 0.1  # seconds between two tries
SILENCE = 120.0  # seconds; a job's event stream sends something every ten
LOST = ("failed", "cancelled", "deleted")


@dataclass(frozen=True)
class Seen:
    """One job's times in a visitor's view (`time.perf_counter`).

    `frame` is None if the picture came before any frame.
    """

    posted: float
    frame: float | None
    picture: float


@dataclass(frozen=True)
class Chatroom:
    """A running `darkroom up`. `begun` is the time at which its command started."""

    pid: int
    begun: float
    address: str

    def visit(self) -> str:
        """Open the page as a new visitor and return the cookie."""
        with _open(f"{self.address}/") as answer:
            return str(answer.headers["Set-Cookie"]).partition(";")[0]

    def draw_together(self, orders: list[dict[str, Any]]) -> list[Seen]:
        """Post all orders at once, each as another visitor."""
        cookies = [self.visit() for _ in orders]
        with ThreadPoolExecutor(len(orders)) as visitors:
            return list(visitors.map(self.draw, orders, cookies))

    def draw(self, order: dict[str, Any], cookie: str) -> Seen:
        """Post an order and follow the job's events until its picture is downloaded."""
        posted, job = self._post(order, cookie)
        frame: float | None = None
        with _open(f"{self.address}/api/jobs/{job}/events", cookie=cookie) as lines:
            for event, value in _events(lines):
                if event == "frame" and value.get("frames") and frame is None:
                    frame = time.perf_counter()
                if event in LOST:
                    raise RuntimeError(f"the job was {event}: {value.get('reason') or 'no reason'}")
                if event == "finished":
                    break
            else:
                raise RuntimeError("the job's events ended without its picture")
        with _open(f"{self.address}/api/jobs/{job}/pictures/1.png", cookie=cookie) as answer:
            answer.read()
        return Seen(posted, frame, time.perf_counter())

    def _post(self, order: dict[str, Any], cookie: str) -> tuple[float, str]:
        """Post an order; retries while the server does not know the model yet."""
        end = time.monotonic() + PATIENCE
        while True:
            posted = time.perf_counter()
            try:
                with _open(f"{self.address}/api/jobs", json.dumps(order).encode(), cookie) as answer:
                    return posted, str(json.load(answer)["id"])
            except urllib.error.HTTPError as error:
                sentence = error.read().decode(errors="replace")
                if time.monotonic() > end:
                    raise RuntimeError(f"the job was not accepted: {sentence[:200]}") from error
            time.sleep(GLANCE)

    def memory(self) -> dict[str, float]:
        """Return MB now and at the peak, of the engine and of all processes; empty if the system does not tell."""
        engine, all_of_it = engine_of(self.pid), descendants(self.pid)
        if engine is None:
            return {}
        return {
            "rest": megabytes(engine, "VmRSS"), "peak": megabytes(engine, "VmHWM"),
            "all_rest": sum(megabytes(one, "VmRSS") for one in all_of_it),
            "all_peak": sum(megabytes(one, "VmHWM") for one in all_of_it),
        }  # fmt: skip


@contextmanager
def open_chatroom(folder: Path, data: Path, log: Path) -> Iterator[Chatroom]:
    """Start `darkroom up` and yield it once the page answers; the model may still be loading.

    Raises RuntimeError if it exits.
    """
    begun = time.perf_counter()
    command = darkroom("up", "--port", "0", "--data", str(data), "--model", str(folder))
    with started(command, log) as process:
        running = data / "running.json"
        while not running.exists():
            if process.poll() is not None or time.perf_counter() - begun > PATIENCE:
                raise RuntimeError(f"darkroom up did not open: {last_line(log)}")
            time.sleep(GLANCE)
        yield Chatroom(process.pid, begun, str(json.loads(running.read_text())["url"]))


def _events(lines: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield server-sent events, each with its value from one line of JSON."""
    event = ""
    for line in lines:
        if line.startswith(b"event:"):
            event = line[6:].strip().decode()
        elif line.startswith(b"data:"):
            yield event, json.loads(line[5:])


def _open(address: str, body: bytes | None = None, cookie: str = "") -> Any:
    headers = {"Content-Type": "application/json"} | ({"Cookie": cookie} if cookie else {})
    request = urllib.request.Request(address, body, headers)  # noqa: S310 - our own server
    return urllib.request.urlopen(request, timeout=SILENCE)  # noqa: S310 - the same
