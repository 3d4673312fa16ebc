"""Trains the diffusion network: v-prediction over 1000 steps with zero terminal SNR, classifier-free guidance, EMA.

Knows one step and what must be kept to repeat the next one exactly; knows nothing of files, clocks or where variants
come from. All chance is a function of (seed, step), so the position *is* the state of the random numbers.

Ho 2020 (DDPM); Salimans & Ho 2022 (v-prediction); Lin 2024 (zero terminal SNR); Ho & Salimans 2021 (guidance).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from torch.nn import functional as F

from engine.training.latents import Cached
from engine.training.muon import Muon, suits
from engine.training.run import Losses
from engine.training.validate import develop, noised, rows, sample, v_mse, write_sheet

SCRATCH = "scratch"  # said instead of a model: the built-in one's shape, and none of its network's weights
GRAFTED = "add_embedding."
# Where the timesteps are drawn: (share of the timesteps, share of the draws) up to there. Below 0.2 the noise is less
# than what our autoencoder adds by itself (deviation 0.59); above 0.65 only the words can tell what is to be seen.
DRAWN = ((0.0, 0.0), (0.2, 0.04), (0.4, 0.16), (0.65, 0.45), (1.0, 1.0))


@dataclass(frozen=True)
class Settings:
    """What a run keeps from its first step to its last."""

    rate: float = 8e-4
    batch: int = 128
    warm: int = 40
    ema: float = 0.998
    unconditioned: float = 0.1
    decay: float = 0.01
    clip: float = 1.0
    seed: int = 0


def warped(shares: Tensor) -> Tensor:
    """Even shares of 1, float [n], as shares of the timesteps, as `DRAWN` has them."""
    timesteps, draws = zip(*DRAWN, strict=True)
    return torch.from_numpy(np.interp(shares.numpy(), draws, timesteps)).float()


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
    return graft(UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True))


def fresh_network(folder: Path, seed: int) -> UNet2DConditionModel:
    """A network that has learnt nothing, of the shape that `folder` describes: the same for the same seed."""
    config = json.loads((folder / "config.json").read_text())
    torch.manual_seed(seed)
    return graft(cast(UNet2DConditionModel, UNet2DConditionModel.from_config(config)))


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
        self.optimizers = self._optimizers()

    @property
    def samples(self) -> int:
        return self.steps * self.batch

    def step(self, share: float) -> Losses:
        """One batch at this share of the run. Raises ValueError when the loss is not a number."""
        self._set_rate(share)
        mixed, times, states, wanted = self._next()
        with torch.autocast("cpu", torch.bfloat16):
            guess = self.network(mixed, times, encoder_hidden_states=states, return_dict=False)[0]
        loss = F.mse_loss(guess.float(), wanted)
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is not a number after {self.samples} samples: lower the learning rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self._follow()
        return {"loss": float(loss.detach())}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        kept: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            kept[f"network.{name}"] = parameter.detach()
            for moment in self._moments(name, parameter):
                if parameter in (state := self._optimizer(name, parameter).state):
                    kept[f"{moment}.{name}"] = state[parameter][moment]
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
                    for moment in self._moments(name, parameter)
                }
                self._optimizer(name, parameter).state[parameter] = {"step": torch.tensor(float(steps)), **moments}
        self.steps = steps

    def _optimizers(self) -> Mapping[bool, torch.optim.Optimizer]:
        """By whether it `suits` a parameter: Muon for the matrices, AdamW for all else."""
        named = list(self.network.named_parameters())
        matrices = [parameter for name, parameter in named if suits(name, parameter)]
        others = [parameter for name, parameter in named if not suits(name, parameter)]
        adam = torch.optim.AdamW(others, lr=0.0, weight_decay=self.settings.decay, betas=(0.9, 0.99), fused=True)
        return {False: adam} | ({True: Muon(matrices, weight_decay=self.settings.decay)} if matrices else {})

    def _optimizer(self, name: str, parameter: Tensor) -> torch.optim.Optimizer:
        return self.optimizers[suits(name, parameter)]

    def _moments(self, name: str, parameter: Tensor) -> tuple[str, ...]:
        return ("momentum",) if suits(name, parameter) else ("exp_avg", "exp_avg_sq")

    @property
    def rate(self) -> float:
        return self.optimizers[False].param_groups[0]["lr"]

    def _set_rate(self, share: float) -> None:
        warm = min(1.0, (self.steps + 1) / self.settings.warm)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.settings.rate * warm * (0.5 + 0.5 * math.cos(math.pi * share))

    def _next(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        epoch, place = divmod(self.steps, len(self.cache) // self.batch)
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.cache))
        clean, states = rows(self.cache, np.sort(order[place * self.batch : (place + 1) * self.batch]))
        chance = torch.Generator().manual_seed((self.settings.seed << 32) + self.steps)
        strata = torch.randperm(self.batch, generator=chance) + torch.rand(self.batch, generator=chance)
        times = (warped(strata / self.batch) * len(self.alphas)).long()
        times.clamp_(max=len(self.alphas) - 1)
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


@dataclass(frozen=True)
class Judge:
    """Variants, and fixed prompts [n, tokens, width], for the averaged network of `trainer`.

    `figure` says what the error over the variants is: `v_mse` only where they are never trained on.
    """

    trainer: Trainer
    held_back: Cached
    prompts: Tensor
    autoencoder: AutoencoderKL
    scheduler: DDIMScheduler
    figure: str = "v_mse"

    def figures(self) -> Losses:
        return {self.figure: v_mse(self.trainer.average, self.held_back, self.trainer.alphas)}

    def sheet(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        latents = sample(self.trainer.average, self.prompts, self.trainer.empty, self.scheduler)
        write_sheet(path, list(develop(self.autoencoder, latents)))
