"""One run as every trainer's command opens it: its folder, what it began with, signals, the bar, the end.

A folder belongs to one run: `run/` holds checkpoint, log, sheets and caches, beside it stands the result at the end.
Knows nothing of what is trained. What is the caller's business is a ValueError with one sentence.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from engine.families.quiet import quiet
from engine.training import checkpoint
from engine.training.commands.board import board
from engine.training.commands.options import Course
from engine.training.commands.progress import say, shown
from engine.training.run import CHECKPOINT, Budget, Judge, Losses, Run, Trainer

RUN, LOCK = "run", "lock"
S = TypeVar("S")


class Session:
    """`folder` is where the run keeps its things; `position` is None where a run begins."""

    def __init__(self, kind: str, course: Course, position: Mapping[str, Any] | None) -> None:
        self.kind, self.course, self.position = kind, course, position
        self.folder = course.out / RUN

    def settings(self, of: Callable[..., S], **given: Any) -> S:
        """What a run keeps from its first step to its last: as it was begun, else what was given (None: default)."""
        said = {name: value for name, value in given.items() if value is not None}
        if self.position is None:
            return of(**said)
        kept = self.position["settings"]
        for name, value in said.items():
            if name not in kept or kept[name] != value:
                was = kept.get(name, "nothing of the kind")
                raise ValueError(
                    f"The run in {self.course.out} was begun with --{name.replace('_', '-')} {was}, not {value}: "
                    "leave it out, take another --out, or start over with --fresh."
                )
        try:
            return of(**kept)
        except TypeError as error:
            raise ValueError(f"The run in {self.course.out} is of another version: start over with --fresh.") from error

    def belongs(self, to: Mapping[str, str]) -> None:
        """Refuses to go on with other pictures, or from other weights, than the run began with."""
        path, origin = self.folder / "origin.json", {"kind": self.kind, **to}
        if self.position is None:
            path.write_text(json.dumps({**origin, "threads": torch.get_num_threads()}, indent=1))
            return
        kept = json.loads(path.read_text()) if path.exists() else origin
        for name, value in origin.items():
            if kept.get(name) != value:
                was = kept.get(name, "none")
                raise ValueError(
                    f"The run in {self.course.out} was begun with other {name} ({was} then, {value} now): "
                    "take another --out, or start over with --fresh."
                )

    def train(self, trainer: Trainer, judge: Judge, finish: Callable[[], None], *, minutes: float = 5.0) -> int:
        """Trains to the end, or until a signal; `finish` writes the result. Returns the exit code."""
        budget = Budget(self.course.samples, self.course.ending(), self.course.steps)
        run = Run(self.folder, trainer, judge, budget, started=time.time())
        if self.position is None:
            run.keep(time.time(), {})
        else:
            run.resume()
            rewind(self.folder / "log.jsonl", trainer.samples)
        if run.share(time.time()) >= 1:
            return self._finish(trainer, finish, "was finished already")
        if self.position is not None:
            say(f"Going on after {trainer.steps} steps ({trainer.samples} pictures seen).")
        with board(self.folder / "tensorboard", trainer.samples) as run.board:
            stopped = self._go(run, 60 * (self.course.minutes or minutes))
        if run.share(time.time()) < 1:
            say(f"Stopped after {trainer.steps} steps; the same command goes on from there.")
            return 128 + stopped
        return self._finish(trainer, finish, "is finished")

    def _go(self, run: Run, every: float) -> int:
        """The number of the signal that stopped it, else 0. A second signal ends the process at once."""
        stopped: list[int] = []

        def stop(number: int, _frame: object) -> None:
            stopped.append(number)
            signal.signal(number, signal.SIG_DFL)

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with shown("training") as tell:

                def told(losses: Losses) -> None:
                    words = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
                    tell(run.share(time.time()), f"{run.trainer.steps} steps, {words}")

                run.go(time.time, lambda: bool(stopped), told, every)
        finally:
            for number, old in before.items():
                signal.signal(number, old)
        return stopped[0] if stopped else 0

    def _finish(self, trainer: Trainer, finish: Callable[[], None], how: str) -> int:
        """Writes the result where that was not done yet: a kill may have come between the last step and here."""
        mark, now = self.folder / "finished.json", json.dumps({"steps": trainer.steps})
        if not mark.exists() or mark.read_text() != now:
            finish()
            mark.write_text(now)
            how = "is finished"
        say(f"{self.course.out} {how}: {trainer.steps} steps. A larger --steps goes on, --fresh starts over.")
        return 0


@contextmanager
def open_session(kind: str, course: Course) -> Iterator[Session]:
    """Makes or opens the run's folder, for this process alone. Raises ValueError with what is wrong."""
    course.ending()
    folder = course.out / RUN
    if course.out.exists() and not course.out.is_dir():
        raise ValueError(f"--out names a folder, and {course.out} is a file.")
    if course.out.is_dir() and any(course.out.iterdir()) and not folder.is_dir():
        raise ValueError(f"{course.out} is not empty and holds no run: take another folder for --out.")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder), quiet():
        if course.fresh:
            _clear(folder)
        path = folder / CHECKPOINT
        position = checkpoint.position(path) if path.exists() else None
        before = torch.get_num_threads()
        torch.set_num_threads(course.threads or _threads(folder) or len(os.sched_getaffinity(0)))
        try:
            yield Session(kind, course, position)
        finally:
            torch.set_num_threads(before)


def _clear(folder: Path) -> None:
    for one in folder.iterdir():
        if one.name != LOCK:
            shutil.rmtree(one) if one.is_dir() else one.unlink()


def _threads(folder: Path) -> int:
    """As many as the run began with: the last bits of a step depend on it."""
    origin = folder / "origin.json"
    return int(json.loads(origin.read_text()).get("threads", 0)) if origin.exists() else 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A lock that the system takes back when the process is gone, however it went."""
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another process is training in {folder.parent}.") from None
        yield


def rewind(log: Path, samples: int) -> None:
    """Drops lines that a kill cut short, and those of steps that are taken again."""
    if not log.exists():
        return
    kept: list[str] = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["samples"] <= samples:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    log.write_text("".join(kept))
