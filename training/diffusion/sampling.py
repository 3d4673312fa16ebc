"""Evaluates a diffusion network: v-MSE on held-out variants, and a sheet of pictures for fixed prompts and seeds.

Both are pure functions of the network, with fixed timesteps, noise and seeds, so two results can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from engine.contract import FULL_INTERVAL, is_in_interval
from training.core.learner import mixed_precision
from training.diffusion.latent_cache import LatentCache
from training.pictures.masked_pictures import as_pictures

SHEET_TEXT = (
    "terrier, looking up, cute, white background; red apple; blue car; cat with sunglasses; dog; "
    "puppy, blue background; kitten, 3d render; automobile; vessel, flat design; pizza; green apple, white background; "
    "blue apple, white background; purple octopus, black background; smiling face with heart-eyes; "
    "angry face, red background; crying cat, blue background; rocket, 3d render; house with garden; "
    "guitar, yellow background; birthday cake, pink background; small fish, teal background; woman with red hair; "
    "sunflower, 3d render, blue background; ghost, black background"
)
SHEET_PROMPTS = tuple(SHEET_TEXT.split("; "))


def add_noise(clean: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """Return x_t and v: x_t = a·x + s·ε, v = a·ε − s·x; ᾱ has one value a row.

    Salimans & Ho 2022, eq. 11, appendix D.
    """
    signal = alphas_cumprod.sqrt().view(-1, 1, 1, 1)
    sigma = (1 - alphas_cumprod).sqrt().view(-1, 1, 1, 1)
    return signal * clean + sigma * noise, signal * noise - sigma * clean


def read_rows(cache: LatentCache, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return latents and token states of these variants, fp32."""
    return torch.from_numpy(cache.latents[indices]).float(), torch.from_numpy(cache.states[indices]).float()


@torch.no_grad()
def measure_mean_loss(
    cache: LatentCache, batch_size: int, measure_loss: Callable[[Tensor, Tensor, torch.Generator], Tensor]
) -> float:
    """Return the mean loss over a cache, always with the same noise and timesteps."""
    total = 0.0
    for start in range(0, len(cache), batch_size):
        clean, states = read_rows(cache, np.arange(start, min(start + batch_size, len(cache))))
        total += float(measure_loss(clean, states, torch.Generator().manual_seed(start))) * len(clean)
    return total / len(cache)


@torch.inference_mode()
def measure_v_mse(
    network: UNet2DConditionModel, cache: LatentCache, alphas_cumprod: Tensor, *, batch_size: int = 64
) -> float:
    """Return the mean squared error of v over the whole cache, each variant at one stratified timestep."""
    total = len(cache)
    steps = len(alphas_cumprod)
    device = next(network.parameters()).device
    permutation = np.random.default_rng(0).permutation(total)
    timesteps = torch.from_numpy(((permutation + 0.5) * steps / total).astype(np.int64))
    noise = torch.randn((total, *cache.latents.shape[1:]), generator=torch.Generator().manual_seed(0))
    error_sum = 0.0
    for start in range(0, total, batch_size):
        indices = np.arange(start, min(start + batch_size, total))
        clean, states = read_rows(cache, indices)
        noisy, target = add_noise(clean, noise[indices], alphas_cumprod[timesteps[indices]])
        noisy, batch_timesteps, states = (tensor.to(device) for tensor in (noisy, timesteps[indices], states))
        with mixed_precision(device):
            prediction = network(noisy, batch_timesteps, encoder_hidden_states=states, return_dict=False)[0]
        error_sum += float((prediction.float().cpu() - target).square().mean(dim=(1, 2, 3)).sum())
    return error_sum / total


@torch.inference_mode()
def sample_latents(
    network: UNet2DConditionModel,
    states: Tensor,
    empty_states: Tensor,
    scheduler: DDIMScheduler,
    *,
    steps: int = 40,
    guidance: float = 3.5,
    interval: tuple[float, float] = FULL_INTERVAL,
) -> Tensor:
    """Sample latents for each row of token states, by DDIM with classifier-free guidance; row i uses seed i.

    Guidance holds in `interval`, a pair of fractions of the steps.
    """
    latents = seed_generators(network.config, len(states))[0].to(states.device)
    guided_states = torch.cat([empty_states.expand_as(states), states])
    scheduler.set_timesteps(steps)
    for step, timestep in enumerate(scheduler.timesteps):
        rows, row_states = (2, guided_states) if is_in_interval(interval, step, steps) else (1, states)
        with mixed_precision(states.device):
            noisy = latents.repeat(rows, 1, 1, 1)
            prediction = network(noisy, timestep, encoder_hidden_states=row_states, return_dict=False)[0]
        *unconditional, guided = prediction.float().chunk(rows)
        for base in unconditional:
            guided = base + guidance * (guided - base)
        latents = cast(Tensor, scheduler.step(guided, int(timestep), latents, return_dict=False)[0])
    return latents


def seed_generators(config: Mapping[str, Any], count: int) -> tuple[Tensor, list[torch.Generator]]:
    """Return the initial noise [count, c, h, w] of a network's own size, and each row's generator; row i has seed i."""
    shape = (config["in_channels"], config["sample_size"], config["sample_size"])
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]), generators


@torch.inference_mode()
def decode_latents(autoencoder: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """Decode latents to uint8 [n, h, w, 3]."""
    latents = latents.to(next(autoencoder.parameters()).device)
    return as_pictures(autoencoder.decode(latents / autoencoder.config["scaling_factor"], return_dict=False)[0])
