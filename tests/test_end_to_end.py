"""The whole house as a newcomer starts it: real processes, the real broker, the real model, nothing in between.

Speeds are not asserted here (a test machine may be busy): waits are bounded generously, `darkroom bench` measures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from PIL import Image

PROMPT = "terrier, looking up, cute, white background"
STARTING = 60.0
WARMING = 240.0
DRAWING = 240.0
SNAPSHOTS = 4.5  # seconds after its first frame when a job has been saved at least once
OVER = ("finished", "failed", "cancelled")
ENV = {name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "DISCORD_"))}

T = TypeVar("T")
pytestmark = pytest.mark.timeout(600)


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
        job = self.imagine(steps=600, count=2)
        self.watch(job)
        time.sleep(SNAPSHOTS)
        assert self.job(job)["state"] == "running"
        return job


CALIBRATE = """
import sys
from pathlib import Path
from engine.calibration import calibrate
from engine.families.embedded import load_embedded
from engine.super_resolver import SuperResolver
calibrate(load_embedded(resolver=SuperResolver.find(None)), Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all houses here: what the tests compare are bytes, not speeds."""
    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    subprocess.run([sys.executable, "-c", CALIBRATE, str(path)], env=ENV, check=True, timeout=WARMING)
    return path


@pytest.fixture(scope="module")
def calibrated(calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One house for all tests that don't kill it."""
    up = Up(tmp_path_factory.mktemp("house"))
    shutil.copy(calibration, up.data)
    up.start()
    try:
        up.warm()
        yield up
    finally:
        up.stop()


@pytest.fixture
def own(calibration: Path, tmp_path: Path) -> Iterator[Up]:
    """A house of the test's own, on the same calibration."""
    up = Up(tmp_path / "data")
    up.data.mkdir()
    shutil.copy(calibration, up.data)
    yield up
    if up.process is not None:
        up.stop()


def _ends(up: Up, job: str) -> list[str]:
    """Every end that the store recorded for a job."""
    with closing(sqlite3.connect(f"file:{up.data / 'darkroom.sqlite'}?mode=ro", uri=True)) as store:
        moves = store.execute("select target from moves where job = ? order by id", (job,)).fetchall()
    return [target for (target,) in moves if target in OVER]


def _sizes(paths: Sequence[Path]) -> set[tuple[int, int]]:
    sizes = set()
    for path in paths:
        with Image.open(path) as picture:
            sizes.add(picture.size)
    return sizes


def test_a_prompt_becomes_four_pictures(calibrated: Up, tmp_path: Path) -> None:
    job = calibrated.imagine(steps=12)
    shown = calibrated.over(job)
    assert shown["state"] == "finished", shown["reason"]
    assert (shown["steps"], shown["seed"], shown["count"]) == (12, 7, 4)
    paths = []
    for n in range(1, 5):
        status, png = calibrated.call("GET", f"/api/jobs/{job}/pictures/{n}.png")
        assert status == 200
        paths.append(tmp_path / f"{n}.png")
        paths[-1].write_bytes(png)
    assert len({path.read_bytes() for path in paths}) == 4
    assert _sizes(paths) == {(256, 256)}
    assert calibrated.call("GET", f"/api/jobs/{job}/film.webp")[0] == 200


def test_it_says_where_it_is_and_what_it_has(calibrated: Up) -> None:
    said = until(lambda: ((text := calibrated.log.read_text()) and "is warm" in text and text) or None, 10)
    assert calibrated._announced()["url"] in said
    assert str(calibrated.data) in said
    assert "Traceback" not in said


def test_a_second_house_on_the_same_folder_is_refused(calibrated: Up) -> None:
    done = darkroom("up", "--port", "0", "--data", str(calibrated.data))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "already runs" in done.stderr


def test_a_taken_port_is_refused(calibrated: Up, tmp_path: Path) -> None:
    port = calibrated._announced()["url"].rpartition(":")[2]
    done = darkroom("up", "--port", port, "--data", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"darkroom: Port {port} is taken on 127.0.0.1: choose another with --port.\n"


def test_imagine_joins_a_running_house(calibrated: Up, tmp_path: Path) -> None:
    done = darkroom(
        "imagine", PROMPT, "--steps", "12", "--seed", "7", "--film", "--json",
        "--out", str(tmp_path / "out"), "--data", str(calibrated.data),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    said = json.loads(line)
    assert list(said) == [
        "id", "seed", "steps", "sampler", "pictures", "width", "height", "film", "frames", "seconds", "ms_per_step"
    ]  # fmt: skip
    assert (said["seed"], said["steps"]) == (7, 12)
    assert _sizes([Path(path) for path in said["pictures"]]) == {(256, 256)}
    assert len(said["pictures"]) == 4
    with Image.open(said["film"]) as film:
        assert getattr(film, "n_frames", 1) > 1
    assert calibrated.job(said["id"])["state"] == "finished"  # it went through the house's own queue


def test_alone_and_in_a_house_the_same_seed_gives_the_same_bytes(
    calibrated: Up, calibration: Path, tmp_path: Path
) -> None:
    """Twice alone, once beside other jobs in a running house: twelve files, four contents."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(calibration, data)
    others = [calibrated.imagine(prompt="red apple", seed=index, steps=60) for index in range(2)]
    told = []
    for folder in (calibrated.data, data, data):
        done = darkroom(
            "imagine", "red apple:: blue::-0.5", "--steps", "8", "--sampler", "dpmpp_2m", "--seed", "7", "--json",
            "--out", str(tmp_path / "out"), "--data", str(folder),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
    assert len({one["id"] for one in told}) == 3
    for shots in zip(*(one["pictures"] for one in told), strict=True):
        assert len({Path(shot).read_bytes() for shot in shots}) == 1
    for job in others:
        calibrated.over(job)


def test_a_cancelled_job_stops(calibrated: Up) -> None:
    job = calibrated.imagine(steps=1000)
    until(lambda: calibrated.job(job)["state"] == "running" or None, DRAWING)
    status, body = calibrated.call("DELETE", f"/api/jobs/{job}")
    assert status == 200, body
    assert calibrated.over(job)["state"] == "cancelled"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["imagine", "x --steps 5000"], "--steps 5000 is not possible"),
        (["imagine", "x", "--steps", "many"], "--steps"),
        (["imagine", ""], "prompt"),
        (["imagine", "{a,b}"], "2 jobs"),
        (["imagine", "x --stepz 5"], "--steps"),
        (["imagine", "x", "--sampler", "plms"], "sampler"),
        (["imagine", "x", "--out", "/proc/nowhere"], "cannot be written"),
        (["up", "--port", "-1"], "--port"),
        (["up", "--nats", "http://x"], "nats://"),
        (["nonsense"], "nonsense"),
    ],
)
def test_a_bad_value_is_one_sentence(args: list[str], words: str, tmp_path: Path) -> None:
    done = darkroom(*args, DARKROOM_DATA=str(tmp_path / "data"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("darkroom: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_bad_environment_is_one_sentence(tmp_path: Path) -> None:
    done = darkroom("up", DARKROOM_DATA=str(tmp_path), DARKROOM_PORT="many")
    assert done.returncode == 2
    assert done.stderr.startswith("darkroom: DARKROOM_PORT is not valid")
    assert done.stderr.count("\n") == 1


def test_a_killed_engine_goes_on_from_a_snapshot(own: Up) -> None:
    own.start()
    own.warm()
    job = own.long_job()
    engine = until(own.engine, 5)
    engine.kill()
    gone = engine.pid
    shown = own.over(job)
    assert shown["state"] == "finished", shown["reason"]
    assert len(shown["pictures"]) == 2
    back = until(own.engine, 5)
    assert back.pid != gone
    first, *later = _begun(own, job)
    assert first == 0
    assert later[-1] > 0  # not from the start
    assert _ends(own, job) == ["finished"]  # once


def _begun(up: Up, job: str) -> list[int]:
    """The steps at which workers began this job."""
    log = (up.data / "engine.log").read_text()
    return [int(step) for step in re.findall(rf"job {job} begins at step (\d+)", log)]


def test_history_outlives_a_restart_and_a_stop_hands_over(own: Up) -> None:
    own.start()
    own.warm()
    first = own.imagine(steps=8)
    assert own.over(first)["state"] == "finished"
    before = own.call("GET", f"/api/jobs/{first}/pictures/1.png")[1]
    second = own.long_job()
    family = own.children()
    began = time.monotonic()
    assert own.stop() == 0
    assert time.monotonic() - began < 15
    assert not any(child.is_running() for child in family)
    assert not (own.data / "running.json").exists()
    own.start()
    assert own.job(first)["state"] == "finished"
    assert own.call("GET", f"/api/jobs/{first}/pictures/1.png")[1] == before
    assert own.over(second)["state"] == "finished"  # accepted is accepted


def test_a_killed_house_comes_back_with_its_jobs(own: Up) -> None:
    """`kill -9` of the bot itself: its broker and its engine don't stay behind to spoil the next start."""
    own.start()
    own.warm()
    job = own.long_job()
    orphans = own.children()
    assert own.process is not None
    own.process.kill()
    own.process.wait()
    own.start()
    own.warm()
    shown = own.over(job)
    assert shown["state"] == "finished", shown["reason"]
    assert _ends(own, job) == ["finished"]
    until(lambda: not any(child.is_running() for child in orphans) or None, 30)
