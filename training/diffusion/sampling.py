"""Evaluates a diffusion network: v-MSE on held-out variants, and a sheet of pictures for fixed prompts and seeds.

Both are pure functions of the network, with fixed timesteps, noise and seeds, so two results can be compared.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from training.core.device import mixed_precision
from training.diffusion.latent_cache import LatentCache
from training.pictures.masked_pictures import as_pictures

SHEET_PROMPTS = (
    "terrier, looking up, cute, white background", "red apple", "blue car", "cat with sunglasses",
    "dog", "puppy, blue background", "kitten, 3d render", "automobile", "vessel, flat design",
    "pizza", "green apple, white background", "blue apple, white background", "purple octopus, black background",
    "smiling face with heart-eyes", "angry face, red background", "crying cat, blue background",
    "rocket, 3d render", "house with garden", "guitar, yellow background", "birthday cake, pink background",
    "small fish, teal background", "woman with red hair", "sunflower, 3d render, blue background",
    "ghost, black background",
)  # fmt: skip


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


@torch.inference_mode()
def measure_v_mse(
    network: UNet2DConditionModel, cache: LatentCache, alphas_cumprod: Tensor, *, batch_size: int = 64
) -> float:
    """Return the mean squared error of v over the whole cache, each variant at one stratified timestep."""
    total, steps, device = len(cache), len(alphas_cumprod), next(network.parameters()).device
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
    network: UNet2DConditionModel, states: Tensor, empty_states: Tensor, scheduler: DDIMScheduler, *, steps: int = 40,
    guidance: float = 3.5,
) -> Tensor:  # fmt: skip
    """Sample latents for each row of token states, by DDIM with classifier-free guidance; row i uses seed i."""
    config = network.config
    shape = (config["in_channels"], config["sample_size"], config["sample_size"])
    latents = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(len(states))])
    latents = latents.to(states.device)
    guided_states = torch.cat([empty_states.expand_as(states), states])
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        with mixed_precision(states.device):
            prediction = network(
                latents.repeat(2, 1, 1, 1), timestep, encoder_hidden_states=guided_states, return_dict=False
            )[0]
        unconditional, conditional = prediction.float().chunk(2)
        guided = unconditional + guidance * (conditional - unconditional)
        latents = cast(Tensor, scheduler.step(guided, int(timestep), latents, return_dict=False)[0])
    return latents


@torch.inference_mode()
def decode_latents(autoencoder: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """Decode latents to uint8 [n, h, w, 3]."""
    latents = latents.to(next(autoencoder.parameters()).device)
    return as_pictures(autoencoder.decode(latents / autoencoder.config["scaling_factor"], return_dict=False)[0])
