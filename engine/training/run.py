"""One training run in a folder: `checkpoint.safetensors`, `log.jsonl`, `sheets/`; killed at any time, it can go on.

Knows when to keep and what to show; the clock comes from outside. Knows nothing of the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from engine.training import checkpoint
from engine.training.diffusion import Budget, Settings, Trainer
from engine.training.latents import Cached
from engine.training.validate import develop, sample, v_mse, write_sheet

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Judge:
    """What a checkpoint is looked at with: variants never trained on, and fixed prompts [n, tokens, width]."""

    held_back: Cached
    prompts: Tensor
    autoencoder: AutoencoderKL
    scheduler: DDIMScheduler

    def sheet(self, path: Path, trainer: Trainer) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        latents = sample(trainer.average, self.prompts, trainer.empty, self.scheduler)
        write_sheet(path, list(develop(self.autoencoder, latents)))


@dataclass
class Run:
    """A trainer whose position is kept in `folder`; `started` and `now` are seconds of the same clock."""

    folder: Path
    trainer: Trainer
    judge: Judge
    budget: Budget
    started: float
    look_every: int = 4  # looking costs as much as a thousand samples
    kept: int = 0

    def resume(self) -> None:
        """Goes back to the last checkpoint. Raises FileNotFoundError where there is none."""
        tensors, position = checkpoint.load(self.folder / CHECKPOINT)
        self.trainer.restore(tensors, position["steps"])
        self.started, self.kept = position["started"], position["kept"]

    def share(self, now: float) -> float:
        return self.budget.share(self.trainer.samples, self.started, now)

    def go(
        self, now: Callable[[], float], stopping: Callable[[], bool], told: Callable[[float], None], every: float
    ) -> None:
        """Trains until the budget is spent or `stopping`; keeps a checkpoint every `every` seconds and at the end."""
        due, losses = now() + every, []
        while (share := self.share(now())) < 1 and not stopping():
            losses.append(self.trainer.step(share))
            told(losses[-1])
            if now() >= due:
                self.keep(now(), losses)
                due, losses = now() + every, []
        self.keep(now(), losses, last=True)

    def keep(self, now: float, losses: list[float], *, last: bool = False) -> None:
        """Checkpoint first (it must not be lost); now and then the number and the pictures."""
        self.kept += 1
        position = {"steps": self.trainer.steps, "started": self.started, "kept": self.kept}
        settings = {"settings": asdict(self.trainer.settings), "batch": self.trainer.batch}
        checkpoint.save(self.folder / CHECKPOINT, self.trainer.tensors(), {**position, **settings})
        line = {
            "samples": self.trainer.samples,
            "seconds": round(now - self.started),
            "loss": round(sum(losses) / len(losses), 4) if losses else None,
            "rate": self.trainer.optimizer.param_groups[0]["lr"],
        }
        if look := last or self.kept % self.look_every == 0:
            line["v_mse"] = round(v_mse(self.trainer.average, self.judge.held_back, self.trainer.alphas), 4)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        if look:
            self.judge.sheet(self.folder / "sheets" / f"{self.trainer.samples:09}.png", self.trainer)


def settings_of(folder: Path) -> Settings:
    """The settings that a run was started with."""
    _, position = checkpoint.load(folder / CHECKPOINT)
    return Settings(**position["settings"])
