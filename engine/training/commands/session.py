"""One run of a training command: its folder, its starting conditions, signals, progress, and its end.

A folder belongs to one run: `run/` has checkpoint, log, sheets and caches; the result goes beside it at the end. Knows
nothing of what is trained. A mistake of the caller's is a ValueError with one sentence.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from engine.families.quiet import quiet
from engine.training import checkpoint
from engine.training.commands import run_folder
from engine.training.commands.board import board
from engine.training.commands.options import Course
from engine.training.commands.progress import counted, say, shown
from engine.training.commands.run_folder import RUN
from engine.training.run import Budget, Judge, Losses, Run, Trainer

MAX_THREADS = 1024
S = TypeVar("S")


class Session:
    """A run of one command; `folder` holds the run's files, `position` is None for a new run."""

    def __init__(self, kind: str, course: Course, position: Mapping[str, Any] | None) -> None:
        self.kind, self.course, self.position = kind, course, position
        self.folder = course.out / RUN
        self.origin: dict[str, Any] = {"kind": kind, "threads": torch.get_num_threads()}

    def settings(self, of: Callable[..., S], **given: Any) -> S:
        """Return the run's fixed settings: those it began with, or the given ones for a new run (None: default)."""
        said = {name: value for name, value in given.items() if value is not None}
        if self.position is None:
            return of(**said)
        kept = self.position["settings"]
        for name, value in said.items():
            if name not in kept or kept[name] != value:
                was = kept.get(name, "no value")
                raise ValueError(
                    f"The run in {self.course.out} was begun with --{name.replace('_', '-')} {was}, not {value}: "
                    "leave it out, take another --out, or start over with --fresh."
                )
        try:
            return of(**kept)
        except TypeError as error:
            raise ValueError(f"The run in {self.course.out} is of another version: start over with --fresh.") from error

    def belongs(self, to: Mapping[str, str]) -> None:
        """Refuse to continue with other pictures or starting weights than the run began with."""
        if self.position is None:
            self.origin |= to
            return
        kept = run_folder.origin_in(self.folder, self.position)
        if not kept:
            raise ValueError(
                f"The run in {self.course.out} has lost the record of what it began with: "
                "take another --out, or start over with --fresh."
            )
        for name, value in to.items():
            if kept.get(name) != value:
                was = kept.get(name, "none")
                raise ValueError(
                    f"The run in {self.course.out} was begun with other {name} ({was} then, {value} now): "
                    "take another --out, or start over with --fresh."
                )
        self.origin = kept

    def train(self, trainer: Trainer, judge: Judge, finish: Callable[[], None], *, minutes: float = 5.0) -> int:
        """Train to the end, or until a signal; `finish` writes the result. Returns the exit code."""
        ending = self._ending()
        budget = Budget(self.course.samples, ending, self.course.steps)
        about = {"origin": self.origin, "until": self.course.until, "ending": ending}
        run = Run(self.folder, trainer, judge, budget, started=time.time(), about=about)
        if self.position is None:
            run_folder.clear(self.folder)  # for --fresh, only after all checks have passed
            run.keep(time.time(), {}, look=True)  # the state before training
        else:
            self._resume(run)
            run_folder.rewind(self.folder / run_folder.LOG, trainer.samples)
        if run.share(time.time()) >= 1:
            return self._finish(trainer, finish, "was finished already")
        if self.position is not None:
            say(f"Resuming after {counted(trainer.steps, 'step')} ({counted(trainer.samples, 'picture')} seen).")
        with board(self.folder / "tensorboard", trainer.samples) as run.board:
            stopped = self._go(run, 60 * (self.course.minutes or minutes))
        if run.share(time.time()) < 1:
            say(f"Stopped after {counted(trainer.steps, 'step')}; the same command resumes it.")
            return 128 + stopped
        return self._finish(trainer, finish, "is finished")

    def _ending(self) -> float | None:
        """Return the end by the clock. A resumed run with the same --until keeps its first end, not a day later."""
        kept = self.position or {}
        if self.course.until and kept.get("until") == self.course.until and isinstance(kept.get("ending"), float):
            return kept["ending"]
        return self.course.ending()

    def _resume(self, run: Run) -> None:
        try:
            run.resume()
        except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"The checkpoint in {self.course.out} is of another model or version: "
                "take another --out, or start over with --fresh."
            ) from error

    def _go(self, run: Run, every: float) -> int:
        """Train and return the number of the signal that stopped it, or 0. A second signal ends the process at once."""
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
        except torch.OutOfMemoryError:  # of a GPU; main memory was checked before
            raise ValueError("The GPU has not enough memory for this training: try a smaller --batch.") from None
        finally:
            for number, old in before.items():
                signal.signal(number, old)
        return stopped[0] if stopped else 0

    def _finish(self, trainer: Trainer, finish: Callable[[], None], how: str) -> int:
        """Write the result if that is not done yet: a kill may have come after the last step."""
        mark, now = self.folder / run_folder.FINISHED, {"steps": trainer.steps}
        if run_folder.read_object(mark) != now:
            with checkpoint.writing(self.course.out):
                finish()
            checkpoint.readable(self.course.out)
            checkpoint.write_whole(mark, json.dumps(now))
            how = "is finished"
        more = "Another --until" if self.course.until else "A larger --steps"
        say(f"{self.course.out} {how}: {counted(trainer.steps, 'step')}. {more} continues it, --fresh starts over.")
        say(f"{self.folder / 'sheets'} shows the progress.")
        return 0


@contextmanager
def open_session(kind: str, course: Course, data: Path | None = None) -> Iterator[Session]:
    """Create or open the run's folder, locked for this process. Raises ValueError with what is wrong.

    `data` is the folder of pictures. With --fresh the run starts over; its old files are deleted when training begins.
    """
    course.ending()
    run_folder.refuse_foreign(course.out, kind, data)
    folder = course.out / RUN
    folder.mkdir(parents=True, exist_ok=True)
    with run_folder.alone(folder, kind), quiet():
        position = None if course.fresh else run_folder.position_in(folder)
        before = torch.get_num_threads()
        torch.set_num_threads(course.threads or _threads(folder, position) or _cores())
        try:
            yield Session(kind, course, position)
        finally:
            torch.set_num_threads(before)


def _threads(folder: Path, position: Mapping[str, Any] | None) -> int:
    """Return the number of threads that the run began with: the last bits of a step depend on it."""
    kept = run_folder.origin_in(folder, position).get("threads") if position else None
    return kept if isinstance(kept, int) and 0 < kept <= MAX_THREADS else 0


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
