"""One run of a training command: its folder, its starting conditions, signals, progress, and its end.

A folder belongs to one run: `run/` has checkpoint, log, sheets and caches; the result goes beside it at the end. It is
the same for every kind of network. A mistake of the user is a ValueError with one sentence.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from engine.models.library_logging import silence_libraries
from training.commands import run_folder
from training.commands.options import TrainOptions
from training.commands.progress import count_noun, print_status, show_progress
from training.commands.run_folder import RUN_FOLDER
from training.commands.tensorboard import open_tensorboard
from training.core import checkpoint
from training.core.device import open_device
from training.core.run import Budget, Evaluator, Metrics, Trainer, TrainingRun

MAX_THREADS = 1024
SettingsType = TypeVar("SettingsType")


class Session:
    """A run of one command on `device`; `folder` holds the run's files, `position` is None for a new run."""

    def __init__(
        self, kind: str, options: TrainOptions, position: Mapping[str, Any] | None, device: torch.device
    ) -> None:
        self.kind = kind
        self.options = options
        self.position = position
        self.device = device
        self.folder = options.out / RUN_FOLDER
        self.origin: dict[str, Any] = {"kind": kind, "threads": torch.get_num_threads()}

    def resolve_settings(self, build_settings: Callable[..., SettingsType], **overrides: Any) -> SettingsType:
        """Return the run's fixed settings: those it began with, or the given ones for a new run (None: default)."""
        set_overrides = {name: value for name, value in overrides.items() if value is not None}
        if self.position is None:
            return build_settings(**set_overrides)
        saved_settings = self.position["settings"]
        for name, value in set_overrides.items():
            if name not in saved_settings or saved_settings[name] != value:
                saved_value = saved_settings.get(name, "no value")
                raise ValueError(
                    f"The run in {self.options.out} was begun with --{name.replace('_', '-')} {saved_value}, not "
                    f"{value}: "
                    "leave it out, take another --out, or start over with --fresh."
                )
        try:
            return build_settings(**saved_settings)
        except TypeError as error:
            raise ValueError(
                f"The run in {self.options.out} is of another version: start over with --fresh."
            ) from error

    def bind_origin(self, origin: Mapping[str, str]) -> None:
        """Refuse to continue with other pictures or starting weights than the run began with."""
        if self.position is None:
            self.origin |= origin
            return
        saved_origin: dict[str, Any] = self.position["origin"]
        for name, value in origin.items():
            if saved_origin.get(name, "") != value:
                then = saved_origin.get(name, "") or "none"
                now = value or "none"
                raise ValueError(
                    f"The run in {self.options.out} was begun with other {name} ({then} then, {now} now): "
                    "take another --out, or start over with --fresh."
                )
        self.origin = saved_origin

    def train(
        self, trainer: Trainer, evaluator: Evaluator, write_result: Callable[[], None], *, minutes: float = 5.0
    ) -> int:
        """Train to the end, or until a signal; `write_result` writes the result. Returns the exit code."""
        end_time = self._end_time()
        budget = Budget(self.options.samples, end_time, self.options.steps)
        metadata = {"origin": self.origin, "until": self.options.until, "ending": end_time}
        run = TrainingRun(self.folder, trainer, evaluator, budget, start_time=time.time(), metadata=metadata)
        if self.position is None:
            run_folder.clear_run(self.folder)  # for --fresh, only after all checks have passed
            run.save_checkpoint(time.time(), {}, evaluate=True)  # the state before training
        else:
            self._resume(run)
            run_folder.trim_log(self.folder / run_folder.LOG_FILE, trainer.samples)
        if run.progress(time.time()) >= 1:
            return self._write_result(trainer, write_result, "was finished already")
        if self.position is not None:
            print_status(
                f"Resuming after {count_noun(trainer.steps, 'step')} ({count_noun(trainer.samples, 'picture')} seen)."
            )
        with open_tensorboard(self.folder / "tensorboard", trainer.samples) as run.metrics_writer:
            stop_signal = self._train_until_signal(run, 60 * (self.options.minutes or minutes))
        if run.progress(time.time()) < 1:
            print_status(f"Stopped after {count_noun(trainer.steps, 'step')}; the same command resumes it.")
            return 128 + stop_signal
        return self._write_result(trainer, write_result, "is finished")

    def _end_time(self) -> float | None:
        """Return the end by the clock. A resumed run with the same --until keeps its first end, not a day later."""
        position = self.position or {}
        if (
            self.options.until
            and position.get("until") == self.options.until
            and isinstance(position.get("ending"), float)
        ):
            return position["ending"]
        return self.options.end_time()

    def _resume(self, run: TrainingRun) -> None:
        try:
            run.resume()
        except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"The checkpoint in {self.options.out} is of another model or version: "
                "take another --out, or start over with --fresh."
            ) from error

    def _train_until_signal(self, run: TrainingRun, save_interval: float) -> int:
        """Train and return the number of the signal that stopped it, or 0. A second signal ends the process at once."""
        received_signals: list[int] = []

        def on_signal(number: int, _frame: object) -> None:
            received_signals.append(number)
            signal.signal(number, signal.SIG_DFL)

        old_handlers = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with show_progress("training") as report_progress:

                def on_step(losses: Metrics) -> None:
                    details = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
                    report_progress(run.progress(time.time()), f"{run.trainer.steps} steps, {details}")

                run.train_until(time.time, lambda: bool(received_signals), on_step, save_interval)
        except torch.OutOfMemoryError:  # of a GPU; main memory was checked before
            raise ValueError("The GPU has not enough memory for this training: try a smaller --batch.") from None
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
        return received_signals[0] if received_signals else 0

    def _write_result(self, trainer: Trainer, write_result: Callable[[], None], status: str) -> int:
        """Write the result if that is not done yet: a kill may have come after the last step."""
        finished_file = self.folder / run_folder.FINISHED_FILE
        record = {"steps": trainer.steps}
        if run_folder.read_json_object(finished_file) != record:
            with checkpoint.translate_write_errors(self.options.out):
                write_result()
            checkpoint.make_readable(self.options.out)
            checkpoint.write_atomically(finished_file, json.dumps(record))
            status = "is finished"
        continue_hint = "Another --until" if self.options.until else "A larger --steps"
        print_status(
            f"{self.options.out} {status}: {count_noun(trainer.steps, 'step')}. {continue_hint} continues it, --fresh "
            "starts over."
        )
        print_status(f"{self.folder / 'sheets'} shows the progress.")
        return 0


@contextmanager
def open_session(kind: str, options: TrainOptions, data: Path | None = None) -> Generator[Session]:
    """Create or open the run's folder, locked for this process. Raises ValueError with what is wrong.

    `data` is the folder of pictures. With --fresh the run starts over; its old files are deleted when training begins.
    """
    options.end_time()
    device = open_device(options.device)
    run_folder.refuse_foreign(options.out, kind, data)
    folder = options.out / RUN_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with run_folder.lock_run(folder, kind), silence_libraries():
        position = None if options.fresh else run_folder.read_position(folder)
        old_threads = torch.get_num_threads()
        torch.set_num_threads(options.threads or _saved_threads(position) or _count_cores())
        try:
            yield Session(kind, options, position, device)
        finally:
            torch.set_num_threads(old_threads)


def _saved_threads(position: Mapping[str, Any] | None) -> int:
    """Return the number of threads that the run began with: the last bits of a step depend on it."""
    saved_threads = position["origin"].get("threads") if position else None
    return saved_threads if isinstance(saved_threads, int) and 0 < saved_threads <= MAX_THREADS else 0


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
