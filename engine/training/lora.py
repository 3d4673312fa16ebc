"""Trains a LoRA on the attention of any Stable Diffusion network, by PEFT; the network itself stays frozen.

Supports networks that predict noise or v; knows nothing of files or clocks. All randomness is a function of (seed,
step). Hu 2021 (LoRA); Ho 2020 (noise); Salimans & Ho 2022 (v).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional as F

from engine.training.chance import batch_at, draws_at, silenced, strata
from engine.training.latents import Cached
from engine.training.learner import Learner, warming
from engine.training.run import Losses
from engine.training.validate import develop, noised, rows, sample, write_sheet

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Settings:
    """The settings that stay the same for a whole run; `size` is the side of the pictures in pixels."""

    size: int
    rank: int = 8
    alpha: float = 8.0
    rate: float = 2e-4
    batch: int = 4
    warm: int = 10
    unconditioned: float = 0.1
    decay: float = 0.01
    precision: str = "bf16"
    seed: int = 0


class Trainer:
    """Trains an adapter on `network`; `scheduler` says how noise is added and what is predicted."""

    def __init__(self, network: Any, cache: Cached, scheduler: DDIMScheduler, settings: Settings) -> None:
        self.network, self.cache, self.settings, self.steps = network.requires_grad_(False).train(), cache, settings, 0
        if not (len(cache) and scheduler.config["prediction_type"] in ("epsilon", "v_prediction")):
            raise ValueError("This model predicts neither noise nor v, which is all that can be trained here.")
        self.device = next(network.parameters()).device
        self.alphas = scheduler.alphas_cumprod
        self.of_noise = scheduler.config["prediction_type"] == "epsilon"
        self.batch = min(settings.batch, len(cache))
        torch.manual_seed(settings.seed)  # initial weights of the adapter
        alpha: Any = settings.alpha  # PEFT takes a float, although its types say int
        network.add_adapter(
            LoraConfig(r=settings.rank, target_modules=ATTENTION, lora_alpha=alpha, init_lora_weights="gaussian")
        )
        adapter = {name.replace(".", "/"): one for name, one in network.named_parameters() if one.requires_grad}
        self.learner = Learner("lora", nn.ParameterDict(adapter), decay=settings.decay)
        self.empty = torch.from_numpy(cache.empty).float()

    @property
    def samples(self) -> int:
        return self.steps * self.batch

    @property
    def rate(self) -> float:
        return self.learner.rate

    def step(self, share: float) -> Losses:
        """Train one batch. Raises ValueError if the loss is not a number."""
        clean, states, chance = self._next()
        loss = self._loss(clean, states, chance)
        if not torch.isfinite(loss):
            raise ValueError(f"The loss is not a number after {self.samples} pictures: lower the learning rate.")
        loss.backward()
        self.learner.move(self.settings.rate * warming(self.steps, self.settings.warm) * (1.0 - 0.9 * share))
        self.steps += 1
        return {"loss": float(loss.detach())}

    def tensors(self) -> dict[str, Tensor]:
        return self.learner.tensors()

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        self.learner.restore(tensors)
        self.steps = steps

    @torch.no_grad()
    def loss_on(self, cache: Cached) -> float:
        """Return the mean loss over a cache, always with the same noise and timesteps."""
        total = 0.0
        for start in range(0, len(cache), self.batch):
            clean, states = rows(cache, np.arange(start, min(start + self.batch, len(cache))))
            total += float(self._loss(clean, states, torch.Generator().manual_seed(start))) * len(clean)
        return total / len(cache)

    def _loss(self, clean: Tensor, states: Tensor, chance: torch.Generator) -> Tensor:
        count = len(clean)
        times = (strata(count, chance) * len(self.alphas)).long().clamp_(max=len(self.alphas) - 1)
        noise = torch.randn(clean.shape, generator=chance)
        mixed, v = noised(clean, noise, self.alphas[times])
        wanted = (noise if self.of_noise else v).to(self.device)
        mixed, times, states = mixed.to(self.device), times.to(self.device), states.to(self.device)
        kind = PRECISIONS[self.settings.precision]
        with torch.autocast(self.device.type, kind, enabled=kind != torch.float32):
            guess = self.network(mixed, times, encoder_hidden_states=states, return_dict=False)[0]
        return F.mse_loss(guess.float(), wanted)

    def _next(self) -> tuple[Tensor, Tensor, torch.Generator]:
        clean, states = rows(self.cache, np.sort(batch_at(self.settings.seed, self.steps, len(self.cache), self.batch)))
        chance = draws_at(self.settings.seed, self.steps)
        return clean, silenced(states, self.empty, self.settings.unconditioned, chance), chance


@dataclass(frozen=True)
class Judge:
    """Evaluates the LoRA on its own pictures and draws some of their captions."""

    trainer: Trainer
    seen: Cached
    prompts: Tensor
    autoencoder: Any
    scheduler: DDIMScheduler

    def figures(self) -> Losses:
        return {"loss_of_pictures": self.trainer.loss_on(self.seen)}

    def sheet(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        device, network = self.trainer.device, self.trainer.network
        states, empty = self.prompts.to(device), self.trainer.empty.to(device)
        latents = sample(network, states, empty, self.scheduler, steps=25)
        large = self.trainer.settings.size > 128
        write_sheet(path, list(develop(self.autoencoder, latents.cpu())), columns=4, enlarge=1 if large else 2)
