"""One training run in a folder: `checkpoint.safetensors`, `log.jsonl`, `sheets/`. It resumes after a kill at any time.

Decides when to save and evaluate, for any trainer. The caller passes the clock. Knows nothing of the terminal.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from engine.training import checkpoint

CHECKPOINT = "checkpoint.safetensors"
Losses = Mapping[str, float]  # by name; "loss" is what is minimised


@dataclass(frozen=True)
class Budget:
    """When a run ends: after this many samples or steps, or at a time (seconds), whichever comes first."""

    samples: int | None = None
    until: float | None = None
    steps: int | None = None

    def share(self, samples: int, started: float, now: float, steps: int = 0) -> float:
        """Return the finished share of the run, 0 to 1."""
        by_samples = max(samples / self.samples if self.samples else 0.0, steps / self.steps if self.steps else 0.0)
        by_clock = (now - started) / max(self.until - started, 1e-9) if self.until else 0.0
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

    def step(self, share: float) -> Losses:
        """Train one batch at this share of the run. Raises ValueError if the loss is not a number."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, by name."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Restore a saved position: the next step repeats exactly. Raises KeyError for a missing tensor."""
        ...


class Judge(Protocol):
    """Evaluates a checkpoint on data that is never trained on, always in the same way."""

    def figures(self) -> Mapping[str, float]: ...

    def sheet(self, path: Path) -> None:
        """Write one PNG, replaced atomically (`validate.write_sheet`)."""
        ...


class Board(Protocol):
    """A second destination of the figures besides the log: TensorBoard's writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...

    def flush(self) -> None: ...


@dataclass
class Run:
    """A training run that saves its position in `folder`; `started` and `now` are seconds of one clock."""

    folder: Path
    trainer: Trainer
    judge: Judge
    budget: Budget
    started: float
    look_every: int = 4  # an evaluation costs as much as a thousand samples
    board: Board | None = None
    kept: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)  # more metadata for the checkpoint

    def resume(self) -> None:
        """Restore the last checkpoint. Raises FileNotFoundError if there is none."""
        tensors, position = checkpoint.load(self.folder / CHECKPOINT)
        self.trainer.restore(tensors, position["steps"])
        self.started, self.kept = position["started"], position["kept"]

    def share(self, now: float) -> float:
        return self.budget.share(self.trainer.samples, self.started, now, self.trainer.steps)

    def go(
        self, now: Callable[[], float], stopping: Callable[[], bool], told: Callable[[Losses], None], every: float
    ) -> None:
        """Train until the budget is spent or `stopping`; save a checkpoint every `every` seconds and at the end."""
        due, lately = now() + every, Lately()
        while (share := self.share(now())) < 1 and not stopping():
            losses = self.trainer.step(share)
            lately.add(losses)
            told(losses)
            if now() >= due and self.share(now()) < 1:
                self.keep(now(), lately.means())
                due, lately = now() + every, Lately()
        self.keep(now(), lately.means(), look=True)

    def keep(self, now: float, losses: Losses, *, look: bool = False) -> None:
        """Save the checkpoint first, so that it is not lost; then, at times, evaluate and write a sheet."""
        self.kept += 1
        position = {**self.about, "steps": self.trainer.steps, "started": self.started, "kept": self.kept}
        checkpoint.save(
            self.folder / CHECKPOINT, self.trainer.tensors(), {**position, "settings": asdict(self.trainer.settings)}
        )
        line = {
            "samples": self.trainer.samples,
            "seconds": round(now - self.started),
            **{name: round(loss, 5) for name, loss in losses.items()},
            "rate": self.trainer.rate,
        }
        if look := look or self.kept % self.look_every == 0:
            line |= {name: round(figure, 4) for name, figure in self.judge.figures().items()}
        self._write(line)
        if look:
            self.judge.sheet(self.folder / "sheets" / f"{self.trainer.samples:09}.png")

    def _write(self, line: Mapping[str, float]) -> None:
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        if self.board:
            for name, figure in line.items():
                if name not in ("samples", "seconds"):
                    self.board.add_scalar(name, figure, int(line["samples"]))
            self.board.flush()


class Lately:
    """Averages the losses since the last checkpoint."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0

    def add(self, losses: Losses) -> None:
        self._count += 1
        for name, loss in losses.items():
            self._sums[name] += loss

    def means(self) -> Losses:
        return {name: total / self._count for name, total in self._sums.items()}


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings that a run was started with."""
    return checkpoint.position(folder / CHECKPOINT)["settings"]
