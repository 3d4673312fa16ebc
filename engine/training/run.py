"""One training run in a folder: `checkpoint.safetensors`, `log.jsonl`, `sheets/`. Killed at any time, it can go on.

Knows when to keep and what to show, whatever is trained; the clock comes from outside. Knows nothing of the terminal.
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
    """When a run ends: after so many samples or steps, at a time of the clock (seconds), or whichever comes first."""

    samples: int | None = None
    until: float | None = None
    steps: int | None = None

    def share(self, samples: int, started: float, now: float, steps: int = 0) -> float:
        """How much of the run is behind us, 0 to 1."""
        by_samples = max(samples / self.samples if self.samples else 0.0, steps / self.steps if self.steps else 0.0)
        by_clock = (now - started) / max(self.until - started, 1e-9) if self.until else 0.0
        return min(max(by_samples, by_clock, 0.0), 1.0)


class Trainer(Protocol):
    """What is trained, at one position. All chance is a function of (seed, step), so the position is all there is."""

    settings: Any  # a frozen dataclass of plain values, kept in the checkpoint
    steps: int

    @property
    def samples(self) -> int:
        """Pictures seen."""
        ...

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        ...

    def step(self, share: float) -> Losses:
        """One batch at this share of the run. Raises ValueError when the loss is not a number."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Goes back to a kept position: the next step gives what it gave then. Raises KeyError on a missing tensor."""
        ...


class Judge(Protocol):
    """What a checkpoint is looked at with: things never trained on. The same every time."""

    def figures(self) -> Mapping[str, float]: ...

    def sheet(self, path: Path) -> None:
        """One PNG, replaced atomically (`validate.write_sheet`)."""
        ...


class Board(Protocol):
    """Where the figures go besides the log: TensorBoard's writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...

    def flush(self) -> None: ...


@dataclass
class Run:
    """A trainer whose position is kept in `folder`; `started` and `now` are seconds of the same clock."""

    folder: Path
    trainer: Trainer
    judge: Judge
    budget: Budget
    started: float
    look_every: int = 4  # looking costs as much as a thousand samples
    board: Board | None = None
    kept: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)  # what the checkpoint also says, in the same one file

    def resume(self) -> None:
        """Goes back to the last checkpoint. Raises FileNotFoundError where there is none."""
        tensors, position = checkpoint.load(self.folder / CHECKPOINT)
        self.trainer.restore(tensors, position["steps"])
        self.started, self.kept = position["started"], position["kept"]

    def share(self, now: float) -> float:
        return self.budget.share(self.trainer.samples, self.started, now, self.trainer.steps)

    def go(
        self, now: Callable[[], float], stopping: Callable[[], bool], told: Callable[[Losses], None], every: float
    ) -> None:
        """Trains until the budget is spent or `stopping`; keeps a checkpoint every `every` seconds and at the end."""
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
        """Checkpoint first (it must not be lost); now and then the figures and the pictures."""
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
    """The means of the losses since the last checkpoint."""

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
    """The settings that a run was started with."""
    return checkpoint.position(folder / CHECKPOINT)["settings"]
