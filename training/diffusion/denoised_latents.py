"""Pictures' latents with the errors of a diffusion network, computed once: noised, then denoised with the caption.

A network that draws from pure noise gives no latents of a given picture. One that begins with a part of the noise does:
it makes its own errors, and the picture stays the same drawing. A row is a function of (seed, row), so a killed
computation goes on where it stopped.

Song 2021 (DDIM); Meng 2022 (SDEdit).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from training.core.learner import mixed_precision
from training.diffusion.latent_cache import CaptionEncoder, encode_latents
from training.diffusion.sampling import add_noise
from training.pictures.masked_pictures import ProgressCallback

CACHE_FORMAT = 1  # raise it when levels, steps or draws change, so that old caches are not used
# The first timestep, as a share of all. Below 0.2 the network adds few errors. Above 0.5 it loses or replaces parts of
# the drawing, in latents of 8×8 and of 16×16: a decoder cannot mend these, and learns to blur instead.
MIN_LEVEL = 0.2
MAX_LEVEL = 0.5
STEPS = 5
BATCH = 64


@dataclass(frozen=True)
class Denoiser:
    """A v-predicting network, the ᾱ of its timesteps [t], and the encoders of its latents and captions."""

    network: UNet2DConditionModel
    alphas_cumprod: Tensor
    autoencoder: AutoencoderKL
    caption_encoder: CaptionEncoder | Callable[[Sequence[str]], Tensor]


def open_denoised_latents(
    folder: Path,
    fingerprint: str,
    load_denoiser: Callable[[], Denoiser],
    pictures: np.ndarray,
    captions: Sequence[str],
    seed: int,
    on_progress: ProgressCallback = lambda finished, total: None,
) -> np.ndarray:
    """Open or compute the denoised latents of pictures uint8 [n, side, side, 3], as the decoder takes them.

    Returns fp16 [n, c, h, w], mapped from the only such file in `folder`. `fingerprint` names network and autoencoder.
    """
    digest = hashlib.sha256(f"{CACHE_FORMAT}/{seed}/{fingerprint}/{pictures.shape}/{list(captions)}".encode())
    digest.update(np.ascontiguousarray(pictures).data)
    path = folder / f"denoised-{digest.hexdigest()[:12]}.npy"
    if not path.exists():
        partial_path = path.with_suffix(".partial")
        complete_path = path.with_suffix(".complete")
        latents = _denoise_all(load_denoiser(), pictures, captions, seed, partial_path, on_progress)
        with complete_path.open("wb") as file:
            np.save(file, latents)
        complete_path.replace(path)
    for stale_path in set(folder.glob("denoised-*")) - {path}:
        stale_path.unlink()
    return np.load(path, mmap_mode="r")


def _denoise_all(
    denoiser: Denoiser,
    pictures: np.ndarray,
    captions: Sequence[str],
    seed: int,
    partial_path: Path,
    on_progress: ProgressCallback,
) -> np.ndarray:
    """Compute the latents batch by batch into `partial_path`; whole batches that are there already stay."""
    config = denoiser.autoencoder.config
    side = pictures.shape[1] >> (len(config["block_out_channels"]) - 1)
    shape = (config["latent_channels"], side, side)
    batch_bytes = BATCH * math.prod(shape) * np.dtype(np.float16).itemsize
    with partial_path.open("ab") as file:
        finished_batches = file.tell() // batch_bytes
        file.truncate(finished_batches * batch_bytes)
        for start in range(finished_batches * BATCH, len(pictures), BATCH):
            rows = range(start, min(start + BATCH, len(pictures)))
            latents = encode_latents(denoiser.autoencoder, pictures[rows.start : rows.stop])
            states = denoiser.caption_encoder(captions[rows.start : rows.stop])
            denoised_latents = denoise_latents(denoiser, latents, states, *_draw_noise(seed, rows, latents))
            file.write((denoised_latents / config["scaling_factor"]).half().numpy().tobytes())
            file.flush()
            on_progress(rows.stop, len(pictures))
    return np.fromfile(partial_path, np.float16).reshape(-1, *shape)


def _draw_noise(seed: int, rows: range, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the level of each row [n], a share of the timesteps, and its noise [n, c, h, w]."""
    generators = [np.random.default_rng([seed, row, CACHE_FORMAT]) for row in rows]
    levels = torch.tensor([generator.uniform(MIN_LEVEL, MAX_LEVEL) for generator in generators])
    noise = np.stack([generator.standard_normal(latents.shape[1:], dtype=np.float32) for generator in generators])
    return levels, torch.from_numpy(noise)


@torch.inference_mode()
def denoise_latents(denoiser: Denoiser, latents: Tensor, states: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
    """Noise latents [n, c, h, w] to `levels` [n] and denoise them by DDIM, without guidance; fp32."""
    network = denoiser.network
    alphas = denoiser.alphas_cumprod
    device = next(network.parameters()).device
    first_timesteps = (levels * len(alphas)).long()
    noisy, _ = add_noise(latents, noise, alphas[first_timesteps])
    clean = latents
    states = states.to(device)
    for step in range(STEPS):
        timesteps = first_timesteps * (STEPS - step) // STEPS
        with mixed_precision(device):
            inputs = (noisy.to(device), timesteps.to(device))
            prediction = network(*inputs, encoder_hidden_states=states, return_dict=False)[0]
        velocity = prediction.float().cpu()
        signal, sigma = (share.sqrt().view(-1, 1, 1, 1) for share in (alphas[timesteps], 1 - alphas[timesteps]))
        clean = signal * noisy - sigma * velocity
        noise = sigma * noisy + signal * velocity
        noisy, _ = add_noise(clean, noise, alphas[first_timesteps * (STEPS - step - 1) // STEPS])
    return clean
