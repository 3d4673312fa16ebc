"""Trains the diffusion network: v-prediction over 1000 steps with zero terminal SNR, classifier-free guidance, EMA.

Knows one step and what must be kept to repeat the next one exactly; knows nothing of files, clocks or where variants
come from. All chance is a function of (seed, step), so the position *is* the state of the random numbers.

Ho 2020 (DDPM); Salimans & Ho 2022 (v-prediction); Lin 2024 (zero terminal SNR); Ho & Salimans 2021 (guidance).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from engine.training.latents import Cached
from engine.training.validate import noised, rows

GRAFTED = "add_embedding."


@dataclass(frozen=True)
class Settings:
    """What a run keeps from its first step to its last."""

    rate: float = 1.5e-4
    grafted_rate: float = 6e-4  # the new text pooling starts from nothing
    batch: int = 64
    warm: int = 40
    ema: float = 0.9995
    unconditioned: float = 0.1
    decay: float = 0.01
    clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Budget:
    """When a run ends: after so many samples, at a time of the clock (seconds), or whichever comes first."""

    samples: int | None = None
    until: float | None = None

    def share(self, samples: int, started: float, now: float) -> float:
        """How much of the run is behind us, 0 to 1."""
        by_samples = samples / self.samples if self.samples else 0.0
        by_clock = (now - started) / max(self.until - started, 1e-9) if self.until else 0.0
        return min(max(by_samples, by_clock, 0.0), 1.0)


def graft(source: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same network with the text also pooled into its time embedding; it predicts exactly what `source` does.

    The addition's last LayerNorm begins at weight 0 and bias 0: nothing is added until training finds a use for it.
    """
    if source.config["addition_embed_type"] == "text":
        return source
    said = {name: value for name, value in source.config.items() if not name.startswith("_")}
    grown = UNet2DConditionModel(**{**said, "addition_embed_type": "text"})
    missing, unexpected = grown.load_state_dict(source.state_dict(), strict=False)
    if unexpected or not all(name.startswith(GRAFTED) for name in missing):
        raise ValueError("the starting network has parts that this one has not")
    for name in ("weight", "bias"):
        torch.nn.init.zeros_(grown.get_parameter(f"{GRAFTED}norm2.{name}"))
    return grown


def open_network(folder: Path) -> UNet2DConditionModel:
    """A network of the diffusers layout, in fp32, grafted, ready to train."""
    torch.manual_seed(0)  # the grafted layers' start
    return graft(UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32))


class Trainer:
    """A network, its moving average and its optimizer at one position. `samples` counts pictures seen."""

    def __init__(self, network: UNet2DConditionModel, cache: Cached, alphas: Tensor, settings: Settings) -> None:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (diffusers hides its signature)
        self.network = network.train()
        self.network.set_attn_processor(AttnProcessor())  # 64 pixels: written out it is 10 % faster a step than fused
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.cache, self.alphas, self.settings = cache, alphas, settings
        self.empty = torch.from_numpy(cache.empty).float()
        self.batch = min(settings.batch, len(cache))
        self.steps = 0
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=0.0, weight_decay=settings.decay, betas=(0.9, 0.99), fused=True
        )

    @property
    def samples(self) -> int:
        return self.steps * self.batch

    def step(self, share: float) -> float:
        """One batch at this share of the run; returns its loss. Raises ValueError when the loss is not a number."""
        self._set_rate(share)
        mixed, times, states, wanted = self._next()
        with torch.autocast("cpu", torch.bfloat16):
            guess = self.network(mixed, times, encoder_hidden_states=states, return_dict=False)[0]
        loss = F.mse_loss(guess.float(), wanted)
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is not a number after {self.samples} samples: lower the learning rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self._follow()
        return float(loss.detach())

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        kept: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            kept[f"network.{name}"] = parameter.detach()
            for moment in ("exp_avg", "exp_avg_sq"):
                if parameter in self.optimizer.state:
                    kept[f"{moment}.{name}"] = self.optimizer.state[parameter][moment]
        kept.update((f"average.{name}", parameter) for name, parameter in self.average.named_parameters())
        return kept

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Goes back to a kept position: the next step gives what it gave then. Raises KeyError on a missing tensor."""
        average = dict(self.average.named_parameters())
        for name, parameter in self.network.named_parameters():
            parameter.copy_(tensors[f"network.{name}"])
            average[name].copy_(tensors[f"average.{name}"])
            if steps:
                moments = {
                    moment: torch.empty_like(parameter).copy_(tensors[f"{moment}.{name}"])
                    for moment in ("exp_avg", "exp_avg_sq")
                }
                self.optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **moments}
        self.steps = steps

    def _groups(self) -> list[dict[str, object]]:
        named = list(self.network.named_parameters())
        return [
            {"params": [p for name, p in named if not name.startswith(GRAFTED)], "peak": self.settings.rate},
            {"params": [p for name, p in named if name.startswith(GRAFTED)], "peak": self.settings.grafted_rate},
        ]

    def _set_rate(self, share: float) -> None:
        warm = min(1.0, (self.steps + 1) / self.settings.warm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * warm * (0.5 + 0.5 * math.cos(math.pi * share))

    def _next(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        epoch, place = divmod(self.steps, len(self.cache) // self.batch)
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.cache))
        clean, states = rows(self.cache, np.sort(order[place * self.batch : (place + 1) * self.batch]))
        chance = torch.Generator().manual_seed((self.settings.seed << 32) + self.steps)
        strata = torch.randperm(self.batch, generator=chance) + torch.rand(self.batch, generator=chance)
        times = (strata * len(self.alphas) / self.batch).long().clamp_(max=len(self.alphas) - 1)
        silent = torch.rand(self.batch, generator=chance) < self.settings.unconditioned
        states = torch.where(silent.view(-1, 1, 1), self.empty, states)
        mixed, wanted = noised(clean, torch.randn(clean.shape, generator=chance), self.alphas[times])
        return mixed.contiguous(memory_format=torch.channels_last), times, states, wanted

    @torch.no_grad()
    def _follow(self) -> None:
        # A short run forgets its start sooner: the average covers about a ninth of the steps until it reaches `ema`.
        decay = min(self.settings.ema, (1 + self.steps) / (10 + self.steps))
        for kept, current in zip(self.average.parameters(), self.network.parameters(), strict=True):
            kept.lerp_(current, 1 - decay)
