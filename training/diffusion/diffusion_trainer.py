"""Trains the diffusion network: v-prediction over 1000 steps with zero terminal SNR, classifier-free guidance, EMA.

It is independent of files, clocks and the source of the variants. All randomness is a function of (seed, step).

`fit_latents` fits a trained network to the latents of another autoencoder: for 16×16 latents instead of 8×8 it gets one
more level outside. Its inner levels, its attention to the text and its sense of time stay. Only the new outer layers
begin from nothing.

Ho 2020 (DDPM); Salimans & Ho 2022 (v-prediction); Lin 2024 (zero terminal SNR); Ho & Salimans 2021 (guidance).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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

from engine.device.memory import copy_to_device
from training.core.checkpoint import copy_common_part
from training.core.learner import (
    BatchTrainer,
    Learner,
    batch_indices,
    cosine_decay,
    drop_conditioning,
    is_hidden_matrix,
    mixed_precision,
    step_generator,
    stratified_uniforms,
    warmup_factor,
    weighted_indices,
)
from training.core.run import Metrics
from training.diffusion.latent_cache import LatentCache
from training.diffusion.sampling import add_noise, decode_latents, measure_v_mse, read_rows, sample_latents
from training.pictures.masked_pictures import write_picture_sheet

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
        prompt_states, empty_states = (
            tensor.to(self.trainer.device) for tensor in (self.prompt_states, self.trainer.empty_states)
        )
        latents = sample_latents(self.trainer.average, prompt_states, empty_states, self.scheduler)
        write_picture_sheet(path, list(decode_latents(self.autoencoder, latents)))


OUTER_PARTS = ("conv_in.", "conv_norm_out.", "conv_out.")  # they follow the outermost width
TIME_WEIGHT = "time_embedding.linear_1.weight"
# settings of diffusers that may be a list with one value for each level, the outermost first
LEVEL_SETTINGS = (
    "attention_head_dim",
    "num_attention_heads",
    "layers_per_block",
    "cross_attention_dim",
    "only_cross_attention",
    "transformer_layers_per_block",
)
DEFAULT_GROUPS = 32  # diffusers' `norm_num_groups`


def fit_latents(source: UNet2DConditionModel, channels: int, side: int) -> UNet2DConditionModel:
    """Return a network for latents [channels, side, side] with all that it can keep of `source`.

    It returns `source` itself if the latents already fit. The weights of new layers come from torch's generator. Raises
    ValueError if no number of levels fits.
    """
    config = {name: value for name, value in source.config.items() if not name.startswith("_")}
    if config["sample_size"] == side and config["in_channels"] == config["out_channels"] == channels:
        return source
    network = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(fit_config(config, channels, side)))
    _copy_weights(source, network, len(network.config["block_out_channels"]) - len(config["block_out_channels"]))
    return network


def fit_config(config: Mapping[str, Any], channels: int, side: int) -> dict[str, Any]:
    """Return the configuration of a network for other latents. Each new level has half the width of the one within.

    Raises ValueError if no number of levels fits.
    """
    fitted_config = dict(config)
    for _ in range(_count_added_levels(config, side)):
        fitted_config = _add_outer_level(fitted_config)
    time_width = config.get("time_embedding_dim") or 4 * config["block_out_channels"][0]
    return fitted_config | {
        "in_channels": channels,
        "out_channels": channels,
        "sample_size": side,
        "time_embedding_dim": time_width,
    }


def _count_added_levels(config: Mapping[str, Any], side: int) -> int:
    sides = list[int]()
    groups = int(config.get("norm_num_groups") or DEFAULT_GROUPS)
    width = int(config["block_out_channels"][0])
    while width and width % groups == 0:
        sides.append(int(config["sample_size"]) << len(sides))
        width //= 2
    if side not in sides:
        raise ValueError(
            f"The autoencoder's latents have {side}×{side} values, and this network can only learn to draw "
            f"{' or '.join(f'{each}×{each}' for each in sides)}."
        )
    return sides.index(side)


def _add_outer_level(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with one more level outside, without attention: there are too many places for it."""
    per_level = {name: [config[name][0], *config[name]] for name in LEVEL_SETTINGS if _is_list(config.get(name))}
    return {
        **config,
        **per_level,
        "block_out_channels": [config["block_out_channels"][0] // 2, *config["block_out_channels"]],
        "down_block_types": ["DownBlock2D", *config["down_block_types"]],
        "up_block_types": [*config["up_block_types"], "UpBlock2D"],
    }


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


@torch.no_grad()
def _copy_weights(source: UNet2DConditionModel, network: UNet2DConditionModel, added_levels: int) -> None:
    """Copy each tensor of `source` to its new level, as far as the shapes agree."""
    targets = network.state_dict()
    for name, tensor in source.state_dict().items():
        if name == TIME_WEIGHT:
            targets[name].copy_(_halve_frequencies(tensor, added_levels))
        elif not (added_levels and name.startswith(OUTER_PARTS)):
            target = targets.get(_shift_level(name, added_levels))
            if target is not None:
                copy_common_part(tensor, target)  # on the way up, the first are those from within


def _shift_level(name: str, added_levels: int) -> str:
    """Return a tensor's name in the new network. Only the levels on the way down count from outside."""
    if not name.startswith("down_blocks."):
        return name
    prefix, level, rest = name.split(".", 2)
    return f"{prefix}.{int(level) + added_levels}.{rest}"


def _halve_frequencies(weight: Tensor, added_levels: int) -> Tensor:
    """Return the time embedding's first layer for the sinusoids of a narrower network, [rows, width / 2**levels].

    These have every second frequency, for sine and cosine alike. So each takes over its left-out neighbour.
    """
    for _ in range(added_levels):
        rows, width = weight.shape
        weight = weight.view(rows, 2, width // 4, 2).sum(-1).reshape(rows, -1)
    return weight
