"""One run of a training command: its folder, its starting conditions, signals, progress, and its end.

A folder belongs to one run: `run/` has lock, checkpoint, log, sheets and caches; the result goes beside it at the end.
The lock file names our command, so no other folder called `run/` is mistaken for ours, and only files that a run writes
are deleted. It is the same for every kind of network. A mistake of the user is a ValueError with one sentence.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError

from engine.models.library_logging import silence_libraries
from training.commands.options import TrainOptions
from training.commands.progress import count_noun, print_status, show_progress
from training.core import checkpoint
from training.core.learner import open_device
from training.core.run import CHECKPOINT_FILE, Budget, Evaluator, Metrics, MetricsWriter, Trainer, TrainingRun

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
        """Return the run's fixed settings: those it began with, or the given ones for a new run (None: default).

        The options of every training command that are settings count as given.
        """
        given = self.options.setting_overrides | overrides
        set_overrides = {name: value for name, value in given.items() if value is not None}
        if self.position is None:
            return build_settings(**set_overrides)
        saved_settings = self.position["settings"]
        for name, value in set_overrides.items():
            if name not in saved_settings or saved_settings[name] != value:
                saved_value = saved_settings.get(name, "no value")
                raise ValueError(
                    f"The run in {self.options.out} was begun with --{name.replace('_', '-')} {saved_value}, not "
                    f"{value}: leave it out, take another --out, or start over with --fresh."
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
            clear_run(self.folder)  # for --fresh, only after all checks have passed
            run.save_checkpoint(time.time(), {}, evaluate=True)  # the state before training
        else:
            self._resume(run)
            trim_log(self.folder / LOG_FILE, trainer.samples)
        if run.progress(time.time()) >= 1:
            return self._write_result(trainer, write_result, "was finished already")
        if self.position is not None:
            seen = f"{count_noun(trainer.samples, 'picture')} seen"
            print_status(f"Resuming after {count_noun(trainer.steps, 'step')} ({seen}).")
        with open_tensorboard(self.folder / "tensorboard", trainer.samples) as run.metrics_writer:
            stop_signal = self._train_until_signal(run, 60 * (self.options.minutes or minutes))
        if run.progress(time.time()) < 1:
            print_status(f"Stopped after {count_noun(trainer.steps, 'step')}; the same command resumes it.")
            return 128 + stop_signal
        return self._write_result(trainer, write_result, "is finished")

    def _end_time(self) -> float | None:
        """Return the end by the clock. A resumed run with the same --until keeps its first end, not a day later."""
        position = self.position or {}
        is_same = bool(self.options.until) and position.get("until") == self.options.until
        if is_same and isinstance(position.get("ending"), float):
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
        finished_file = self.folder / FINISHED_FILE
        record = {"steps": trainer.steps}
        if read_json_object(finished_file) != record:
            with checkpoint.translate_write_errors(self.options.out):
                write_result()
            checkpoint.make_readable(self.options.out)
            checkpoint.write_atomically(finished_file, json.dumps(record))
            status = "is finished"
        hint = "Another --until" if self.options.until else "A larger --steps"
        steps = count_noun(trainer.steps, "step")
        print_status(f"{self.options.out} {status}: {steps}. {hint} continues it, --fresh starts over.")
        print_status(f"{self.folder / 'sheets'} shows the progress.")
        return 0


@contextmanager
def open_session(kind: str, options: TrainOptions, data: Path | None = None) -> Generator[Session]:
    """Create or open the run's folder, locked for this process. Raises ValueError with what is wrong.

    `data` is the folder of pictures. With --fresh the run starts over; its old files are deleted when training begins.
    """
    options.end_time()
    device = open_device(options.device)
    refuse_foreign(options.out, kind, data)
    folder = options.out / RUN_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with lock_run(folder, kind), silence_libraries():
        position = None if options.fresh else read_position(folder)
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


RUN_FOLDER = "run"
LOCK_FILE = "lock"
LOG_FILE = "log.jsonl"
FINISHED_FILE = "finished.json"
MERGED_FILE = "merged.json"
STAGING_FOLDER = "whole"
TENSORBOARD_FOLDER = "tensorboard"
RUN_FILES = (
    CHECKPOINT_FILE,
    f"{CHECKPOINT_FILE}.fresh",
    LOG_FILE,
    FINISHED_FILE,
    MERGED_FILE,
    "sheets",
    TENSORBOARD_FOLDER,
    STAGING_FOLDER,
)
LOCK_PREFIX = "darkroom train "
LOCK_BYTES = 64
EARLY_FILES = (LOCK_FILE, "skipped.txt")  # files that exist before the first checkpoint


def refuse_foreign(out: Path, kind: str, data: Path | None = None) -> None:
    """Raise ValueError if `out` cannot be the folder of a run of this kind. Changes nothing."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out names a folder, and {out} is a file.")
    if data is not None and _are_nested(out.resolve(), data.resolve()):
        raise ValueError(f"One of --out {out} and --data {data} is inside the other: take two folders.")
    folder = out / RUN_FOLDER
    for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
        if path.is_symlink():
            raise ValueError(f"{path} is a link, and runs do not follow links: take another folder for --out.")
    if _is_unused(out):
        return
    if (existing_kind := read_kind(folder)) is None:
        raise ValueError(f"{out} is not empty and holds no run: take another folder for --out.")
    if existing_kind != kind:
        raise ValueError(f"{out} holds a run of `darkroom train {existing_kind}`: take another folder for --out.")


def read_kind(folder: Path) -> str | None:
    """Return the command of this run, by its lock, or None."""
    try:
        with (folder / LOCK_FILE).open("rb") as lock:
            content = lock.read(LOCK_BYTES).decode(errors="replace")
    except OSError:
        return None
    return content.removeprefix(LOCK_PREFIX).strip() if content.startswith(LOCK_PREFIX) else None


@contextmanager
def lock_run(folder: Path, kind: str) -> Generator[None]:
    """Hold a lock that the system releases when the process ends in any way. Follows no link."""
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "r+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another process is training in {folder.parent}.") from None
        lock.write(f"{LOCK_PREFIX}{kind}\n".encode())
        lock.flush()
        lock.truncate()
        yield


def read_position(folder: Path) -> dict[str, Any] | None:
    """Return the run's position; None without a checkpoint. Raises ValueError if the checkpoint is not one of ours."""
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    position = checkpoint.read_position(path)
    kinds = {"steps": int, "kept": int, "started": (int, float), "settings": dict, "origin": dict}
    if not all(isinstance(position.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"{path} is not a complete checkpoint: start over with --fresh.")
    return position


def clear_run(folder: Path) -> None:
    """Delete a run's files, the checkpoint first: without it the others do not count."""
    for path in (folder / name for name in RUN_FILES):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a small JSON object; empty if the file is missing, incomplete, or something else."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}


def trim_log(log: Path, samples: int) -> None:
    """Drop log lines that a kill cut short, and lines of steps that will be repeated."""
    if not log.exists():
        return
    lines: list[str] = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["samples"] <= samples:
                lines.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    checkpoint.write_atomically(log, "".join(lines))


def _is_unused(out: Path) -> bool:
    """Tell whether `out` is empty, or has only what a refused or killed command leaves before a run begins."""
    if not out.exists():
        return True
    folder = out / RUN_FOLDER
    if any(path != folder for path in out.iterdir()):
        return False
    run_files = list(folder.iterdir()) if folder.is_dir() else []
    if folder.is_file() or any(path.name not in EARLY_FILES for path in run_files):
        return False
    lock = folder / LOCK_FILE
    return not lock.exists() or not lock.stat().st_size or read_kind(folder) is not None


def _are_nested(first: Path, second: Path) -> bool:
    return first.is_relative_to(second) or second.is_relative_to(first)


@contextmanager
def open_tensorboard(folder: Path, samples: int) -> Generator[MetricsWriter | None]:
    """Yield a TensorBoard writer for `folder`, or None without TensorBoard.

    A resumed run drops curves after `samples`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorBoard warns about its own dependencies
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        hint = "pip install 'darkroom-bot[train]'"
        print_status(f"TensorBoard is not installed ({hint}); the figures are in run/log.jsonl.")
        yield None
        return
    with SummaryWriter(str(folder), purge_step=samples or None) as writer:
        yield writer
