"""One training run in a folder: `checkpoint.safetensors`, `log.jsonl`, `sheets/`. It resumes after a kill at any time.

It decides when to save and evaluate, for any trainer. The caller passes the clock and writes to the terminal.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from training.core import checkpoint

CHECKPOINT_FILE = "checkpoint.safetensors"
Metrics = Mapping[str, float]  # by name; "loss" is what is minimised


@dataclass(frozen=True)
class Budget:
    """When a run ends: after this many samples or steps, or at a time (seconds), whichever comes first."""

    samples: int | None = None
    end_time: float | None = None
    steps: int | None = None

    def progress(self, samples: int, start_time: float, now: float, steps: int = 0) -> float:
        """Return the finished share of the run, 0 to 1."""
        by_samples = max(samples / self.samples if self.samples else 0.0, steps / self.steps if self.steps else 0.0)
        by_clock = (now - start_time) / max(self.end_time - start_time, 1e-9) if self.end_time else 0.0
        return min(max(by_samples, by_clock, 0.0), 1.0)


class Trainer(Protocol):
    """A trainer at one position. All randomness is a function of (seed, step), so the position is its whole state."""

    settings: Any  # a frozen dataclass of plain values, kept in the checkpoint
    steps: int

    @property
    def samples(self) -> int:
        """Return the number of pictures seen."""
        ...

    @property
    def rate(self) -> float:
        """Return the learning rate of the last step."""
        ...

    def step(self, progress: float) -> Metrics:
        """Train one batch at this share of the run. Raises ValueError if the loss is not a number."""
        ...

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, by name."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Restore a saved position: the next step repeats exactly. Raises KeyError for a missing tensor."""
        ...


class Evaluator(Protocol):
    """Evaluates a checkpoint on data that is never trained on, always in the same way."""

    def evaluate(self) -> Mapping[str, float]: ...

    def draw_sheet(self, path: Path) -> None:
        """Write one PNG, replaced atomically (`training.pictures.masked_pictures`)."""
        ...


class MetricsWriter(Protocol):
    """A second destination of the figures besides the log: TensorBoard's writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...

    def flush(self) -> None: ...


@dataclass
class TrainingRun:
    """A training run that saves its position in `folder`; `start_time` and `now` are seconds of one clock."""

    folder: Path
    trainer: Trainer
    evaluator: Evaluator
    budget: Budget
    start_time: float
    evaluate_every: int = 4  # an evaluation costs as much as a thousand samples
    metrics_writer: MetricsWriter | None = None
    checkpoint_count: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])  # more metadata for the checkpoint

    def resume(self) -> None:
        """Restore the last checkpoint. Raises FileNotFoundError if there is none."""
        tensors, position = checkpoint.load(self.folder / CHECKPOINT_FILE)
        self.trainer.restore(tensors, position["steps"])
        self.start_time = position["started"]
        self.checkpoint_count = position["kept"]

    def progress(self, now: float) -> float:
        return self.budget.progress(self.trainer.samples, self.start_time, now, self.trainer.steps)

    def train_until(
        self,
        clock: Callable[[], float],
        should_stop: Callable[[], bool],
        on_step: Callable[[Metrics], None],
        save_interval: float,
    ) -> None:
        """Train until the budget is spent or `should_stop`.

        It saves a checkpoint every `save_interval` seconds and at the end.
        """
        next_save = clock() + save_interval
        loss_averager = LossAverager()
        while (progress := self.progress(clock())) < 1 and not should_stop():
            losses = self.trainer.step(progress)
            loss_averager.add(losses)
            on_step(losses)
            if clock() >= next_save and self.progress(clock()) < 1:
                self.save_checkpoint(clock(), loss_averager.means())
                next_save = clock() + save_interval
                loss_averager = LossAverager()
        self.save_checkpoint(clock(), loss_averager.means(), evaluate=True)

    def save_checkpoint(self, now: float, losses: Metrics, *, evaluate: bool = False) -> None:
        """Save the checkpoint first, so that it is not lost; then, at times, evaluate and write a sheet."""
        self.checkpoint_count += 1
        position = {**self.metadata, "steps": self.trainer.steps, "started": self.start_time}
        position |= {"kept": self.checkpoint_count, "settings": asdict(self.trainer.settings)}
        checkpoint.save(self.folder / CHECKPOINT_FILE, self.trainer.state_tensors(), position)
        log_entry = {
            "samples": self.trainer.samples,
            "seconds": round(now - self.start_time),
            **{name: round(loss, 5) for name, loss in losses.items()},
            "rate": self.trainer.rate,
        }
        if evaluate := evaluate or self.checkpoint_count % self.evaluate_every == 0:
            log_entry |= {name: round(figure, 4) for name, figure in self.evaluator.evaluate().items()}
        self._append_log(log_entry)
        if evaluate:
            self.evaluator.draw_sheet(self.folder / "sheets" / f"{self.trainer.samples:09}.png")

    def _append_log(self, log_entry: Mapping[str, float]) -> None:
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(log_entry) + "\n")
        if self.metrics_writer:
            for name, figure in log_entry.items():
                if name not in ("samples", "seconds"):
                    self.metrics_writer.add_scalar(name, figure, int(log_entry["samples"]))
            self.metrics_writer.flush()


class LossAverager:
    """Averages the losses since the last checkpoint."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0

    def add(self, losses: Metrics) -> None:
        self._count += 1
        for name, loss in losses.items():
            self._sums[name] += loss

    def means(self) -> Metrics:
        return {name: total / self._count for name, total in self._sums.items()}
