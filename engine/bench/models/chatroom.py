"""`darkroom up` with one model, as its visitors use it: jobs over HTTP, their first frame and their picture.

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
SILENCE = 120.0  # seconds; the stream of a job says something every ten
LOST = ("failed", "cancelled", "deleted")


@dataclass(frozen=True)
class Seen:
    """What one visitor saw of a job: when, by `time.perf_counter`. No `frame` where the picture came before one."""

    posted: float
    frame: float | None
    picture: float


@dataclass(frozen=True)
class Chatroom:
    """A running `darkroom up`. `begun`: when it was commanded."""

    pid: int
    begun: float
    address: str

    def visit(self) -> str:
        """A new visitor's cookie."""
        with _open(f"{self.address}/") as answer:
            return str(answer.headers["Set-Cookie"]).partition(";")[0]

    def draw_together(self, orders: list[dict[str, Any]]) -> list[Seen]:
        """Each order is another visitor's; all are posted at once."""
        cookies = [self.visit() for _ in orders]
        with ThreadPoolExecutor(len(orders)) as visitors:
            return list(visitors.map(self.draw, orders, cookies))

    def draw(self, order: dict[str, Any], cookie: str) -> Seen:
        """Post an order as soon as it is taken, and watch it to its picture."""
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
        """Its model may not be known yet: then again."""
        end = time.monotonic() + PATIENCE
        while True:
            posted = time.perf_counter()
            try:
                with _open(f"{self.address}/api/jobs", json.dumps(order).encode(), cookie) as answer:
                    return posted, str(json.load(answer)["id"])
            except urllib.error.HTTPError as error:
                sentence = error.read().decode(errors="replace")
                if time.monotonic() > end:
                    raise RuntimeError(f"the order was not taken: {sentence[:200]}") from error
            time.sleep(GLANCE)

    def memory(self) -> dict[str, float]:
        """MB now and at the most, of the engine and of all processes together. Empty where nobody can say."""
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
    """Answers as soon as the page does; the model may be loading still. Raises RuntimeError where it ends before."""
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
    """Server-sent events, each with its value in one line of JSON."""
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
