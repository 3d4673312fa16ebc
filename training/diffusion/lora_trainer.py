"""Trains a LoRA on the attention of any Stable Diffusion network, by PEFT; the network itself stays frozen.

It supports networks that predict noise or v. It is independent of files and clocks. All randomness is a function of
(seed, step). Hu 2021 (LoRA); Ho 2020 (noise); Salimans & Ho 2022 (v).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional as F

from training.core.learner import (
    BatchTrainer,
    Learner,
    batch_indices,
    drop_conditioning,
    step_generator,
    stratified_uniforms,
    warmup_factor,
)
from training.core.run import Metrics
from training.diffusion.latent_cache import LatentCache
from training.diffusion.sampling import add_noise, decode_latents, measure_mean_loss, read_rows, sample_latents
from training.pictures.masked_pictures import write_picture_sheet

TARGET_MODULES = ["to_q", "to_k", "to_v", "to_out.0"]
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class LoraSettings:
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


def add_lora(network: Any, modules: list[str], rank: int, alpha: float, seed: int) -> nn.ParameterDict:
    """Add a LoRA that changes nothing yet to these modules of a frozen network, and return its parameters."""
    torch.manual_seed(seed)  # initial weights of the LoRA
    lora_alpha: Any = alpha  # PEFT takes a float, although its types say int
    network.add_adapter(LoraConfig(r=rank, target_modules=modules, lora_alpha=lora_alpha, init_lora_weights="gaussian"))
    return nn.ParameterDict(
        {name.replace(".", "/"): parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    )


class LoraTrainer(BatchTrainer[Learner]):
    """Trains an adapter on `network`; `scheduler` says how noise is added and what is predicted."""

    def __init__(self, network: Any, cache: LatentCache, scheduler: DDIMScheduler, settings: LoraSettings) -> None:
        self.network = network.requires_grad_(False).train()
        self.cache = cache
        self.settings = settings
        if not (len(cache) and scheduler.config["prediction_type"] in ("epsilon", "v_prediction")):
            raise ValueError("This model predicts neither noise nor v, which is all that can be trained here.")
        self.device = next(network.parameters()).device
        self.alphas = scheduler.alphas_cumprod
        self.predicts_noise = scheduler.config["prediction_type"] == "epsilon"
        lora_parameters = add_lora(network, TARGET_MODULES, settings.rank, settings.alpha, settings.seed)
        learner = Learner("lora", lora_parameters, weight_decay=settings.decay)
        super().__init__(learner, min(settings.batch, len(cache)))
        self.empty_states = torch.from_numpy(cache.empty_states).float()

    def step(self, progress: float) -> Metrics:
        """Train one batch. Raises ValueError if the loss is not a number."""
        clean, states, generator = self._next_batch()
        loss = self._loss(clean, states, generator)
        self.refuse_bad_loss(loss)
        loss.backward()
        self.learner.update(self.settings.rate * warmup_factor(self.steps, self.settings.warm) * (1.0 - 0.9 * progress))
        self.steps += 1
        return {"loss": float(loss.detach())}

    def mean_loss(self, cache: LatentCache) -> float:
        return measure_mean_loss(cache, self.batch_size, self._loss)

    def _loss(self, clean: Tensor, states: Tensor, generator: torch.Generator) -> Tensor:
        count = len(clean)
        timesteps = (stratified_uniforms(count, generator) * len(self.alphas)).long().clamp_(max=len(self.alphas) - 1)
        noise = torch.randn(clean.shape, generator=generator)
        noisy, v = add_noise(clean, noise, self.alphas[timesteps])
        target = (noise if self.predicts_noise else v).to(self.device)
        noisy = noisy.to(self.device)
        timesteps = timesteps.to(self.device)
        states = states.to(self.device)
        dtype = PRECISIONS[self.settings.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            prediction = self.network(noisy, timesteps, encoder_hidden_states=states, return_dict=False)[0]
        return F.mse_loss(prediction.float(), target)

    def _next_batch(self) -> tuple[Tensor, Tensor, torch.Generator]:
        indices = batch_indices(self.settings.seed, self.steps, len(self.cache), self.batch_size)
        clean, states = read_rows(self.cache, np.sort(indices))
        generator = step_generator(self.settings.seed, self.steps)
        return clean, drop_conditioning(states, self.empty_states, self.settings.unconditioned, generator), generator


@dataclass(frozen=True)
class LoraEvaluator:
    """Evaluates the LoRA on its own pictures and draws some of their captions."""

    trainer: LoraTrainer
    training_cache: LatentCache
    prompt_states: Tensor
    autoencoder: Any
    scheduler: DDIMScheduler

    def evaluate(self) -> Metrics:
        return {"loss_of_pictures": self.trainer.mean_loss(self.training_cache)}

    def draw_sheet(self, path: Path) -> None:
        device = self.trainer.device
        network = self.trainer.network
        states = self.prompt_states.to(device)
        empty_states = self.trainer.empty_states.to(device)
        latents = sample_latents(network, states, empty_states, self.scheduler, steps=25)
        is_large = self.trainer.settings.size > 128
        write_picture_sheet(path, list(decode_latents(self.autoencoder, latents)), columns=4, zoom=1 if is_large else 2)
