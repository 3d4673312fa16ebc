"""Trains the diffusion network: v-prediction over 1000 steps with zero terminal SNR, classifier-free guidance, EMA.

It holds one step and the state that repeats the next one exactly. It is independent of files, clocks and the source of
the variants. All randomness is a function of (seed, step).

Ho 2020 (DDPM); Salimans & Ho 2022 (v-prediction); Lin 2024 (zero terminal SNR); Ho & Salimans 2021 (guidance).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from torch.nn import functional as F

from engine.device.torch_device import copy_to_device
from training.core.batch_trainer import BatchTrainer
from training.core.device import mixed_precision
from training.core.learner import Learner, cosine_decay, warmup_factor
from training.core.muon import is_hidden_matrix
from training.core.rng import batch_indices, drop_conditioning, step_generator, stratified_uniforms, weighted_indices
from training.core.run import Metrics
from training.diffusion.latent_cache import LatentCache
from training.diffusion.sampling import add_noise, decode_latents, measure_v_mse, read_rows, sample_latents
from training.pictures.picture_sheet import write_picture_sheet

SCRATCH = "scratch"  # instead of a model's name: the embedded model's architecture with new network weights
ADDED_LAYERS = "add_embedding."
# Distribution of the timesteps: (share of the timesteps, share of the draws) up to there. Below 0.2 a noisy
# latent can nearly be guessed from its neighbours; above 0.65 only the prompt says what the picture shows.
TIMESTEP_DISTRIBUTION = ((0.0, 0.0), (0.2, 0.07), (0.4, 0.21), (0.65, 0.5), (1.0, 1.0))


@dataclass(frozen=True)
class DiffusionSettings:
    """The settings that stay the same for a whole run."""

    rate: float = 8e-4
    batch: int = 128
    warm: int = 40
    ema: float = 0.998
    unconditioned: float = 0.1
    decay: float = 0.01
    clip: float = 1.0
    seed: int = 0


def warp_timesteps(uniforms: Tensor) -> Tensor:
    """Map uniform numbers, float [n], to shares of the timesteps by `TIMESTEP_DISTRIBUTION`."""
    timesteps, draws = zip(*TIMESTEP_DISTRIBUTION, strict=True)
    return torch.from_numpy(np.interp(uniforms.numpy(), draws, timesteps)).float()


def add_text_embedding(source: UNet2DConditionModel) -> UNet2DConditionModel:
    """Add an embedding of the pooled text to the time embedding; the network still predicts exactly what `source` does.

    The new LayerNorm starts at weight 0 and bias 0, so it adds nothing until it is trained.
    """
    if source.config["addition_embed_type"] == "text":
        return source
    config: dict[str, Any] = {name: value for name, value in source.config.items() if not name.startswith("_")}
    config["addition_embed_type"] = "text"
    extended_network = UNet2DConditionModel(**config)
    missing, unexpected = cast(Any, extended_network).load_state_dict(source.state_dict(), strict=False)
    if unexpected or not all(name.startswith(ADDED_LAYERS) for name in missing):
        raise ValueError("the starting network has parts that the new one lacks")
    for name in ("weight", "bias"):
        torch.nn.init.zeros_(extended_network.get_parameter(f"{ADDED_LAYERS}norm2.{name}"))
    return extended_network


def load_network(folder: Path) -> UNet2DConditionModel:
    """Load a network of the diffusers layout in fp32 for training, with the added text embedding."""
    torch.manual_seed(0)  # initial weights of the added layers
    return add_text_embedding(
        UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
    )


def build_network(folder: Path, seed: int) -> UNet2DConditionModel:
    """Build an untrained network of the architecture in `folder`; the same for the same seed."""
    config = json.loads((folder / "config.json").read_text())
    torch.manual_seed(seed)
    return add_text_embedding(cast(UNet2DConditionModel, UNet2DConditionModel.from_config(config)))


class DiffusionTrainer(BatchTrainer[Learner]):
    """Trains a network, with its optimizers and moving average."""

    def __init__(
        self, network: UNet2DConditionModel, cache: LatentCache, alphas: Tensor, settings: DiffusionSettings
    ) -> None:
        cast(Any, network).to(memory_format=torch.channels_last)
        network.set_attn_processor(AttnProcessor())  # at 64 pixels 10 % faster a step than fused attention
        self.network = network.train()
        self.cache = cache
        self.alphas = alphas
        self.settings = settings
        learner = Learner(
            "network", network, ema=settings.ema, is_muon_matrix=is_hidden_matrix, weight_decay=settings.decay
        )
        super().__init__(learner, min(settings.batch, len(cache)))
        self.device = next(network.parameters()).device
        self.empty_states = torch.from_numpy(cache.empty_states).float()

    @property
    def average(self) -> UNet2DConditionModel:
        return self.learner.average  # pyright: ignore[reportReturnType]  (a copy of the network)

    def step(self, progress: float) -> Metrics:
        """Train one batch at this share of the run. Raises ValueError if the loss is not a number."""
        noisy, timesteps, states, target = (copy_to_device(tensor, self.device) for tensor in self._next_batch())
        with mixed_precision(self.device):
            prediction = self.network(noisy, timesteps, encoder_hidden_states=states, return_dict=False)[0]
        loss = F.mse_loss(prediction.float(), target)
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is not a number after {self.samples} samples: lower the learning rate")
        loss.backward()
        rate = self.settings.rate * warmup_factor(self.steps, self.settings.warm) * cosine_decay(progress)
        self.learner.update(rate, clip=self.settings.clip)
        self.steps += 1
        return {"loss": float(loss.detach())}

    def _choose_rows(self) -> np.ndarray:
        seed = self.settings.seed
        shares = self.cache.shares
        if shares is None:
            return batch_indices(seed, self.steps, len(self.cache), self.batch_size)
        return weighted_indices(seed, self.steps, shares, self.batch_size)

    def _next_batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        settings = self.settings
        clean, states = read_rows(self.cache, np.sort(self._choose_rows()))
        generator = step_generator(settings.seed, self.steps)
        timesteps = (
            (warp_timesteps(stratified_uniforms(self.batch_size, generator)) * len(self.alphas))
            .long()
            .clamp_(max=len(self.alphas) - 1)
        )
        states = drop_conditioning(states, self.empty_states, settings.unconditioned, generator)
        noisy, target = add_noise(clean, torch.randn(clean.shape, generator=generator), self.alphas[timesteps])
        return noisy.contiguous(memory_format=torch.channels_last), timesteps, states, target


@dataclass(frozen=True)
class DiffusionEvaluator:
    """Evaluates the averaged network of `trainer` on variants and on fixed prompts [n, tokens, width].

    `metric_name` names the error over the variants: `v_mse` only if they are never trained on.
    """

    trainer: DiffusionTrainer
    validation_cache: LatentCache
    prompt_states: Tensor
    autoencoder: AutoencoderKL
    scheduler: DDIMScheduler
    metric_name: str = "v_mse"

    def evaluate(self) -> Metrics:
        return {self.metric_name: measure_v_mse(self.trainer.average, self.validation_cache, self.trainer.alphas)}

    def draw_sheet(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        prompt_states, empty_states = (
            tensor.to(self.trainer.device) for tensor in (self.prompt_states, self.trainer.empty_states)
        )
        latents = sample_latents(self.trainer.average, prompt_states, empty_states, self.scheduler)
        write_picture_sheet(path, list(decode_latents(self.autoencoder, latents)))
