"""Evaluates an autoencoder on drawings that were never trained on, in figures and side by side.

Its results repeat exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from training.core.run import Metrics
from training.gan.autoencoder_trainer import AutoencoderTrainer
from training.gan.latent_coding import Posterior, decode_all, encode_all, round_trip
from training.gan.losses import psnr, ssim
from training.pictures.masked_pictures import MaskedPictures, as_pictures
from training.pictures.picture_sheet import write_picture_sheet

LATENT_ERROR = 0.3  # of the signal: a diffusion network's typical error in latents


def measure_autoencoder(autoencoder: AutoencoderKL, held_out: MaskedPictures) -> Metrics:
    """Return the pictures' means (PSNR inside the subject and overall, SSIM, L1), and the latents' noise and signal.

    `disturbed_psnr` is the PSNR inside the subject for latents with a diffusion network's error.
    """
    indices = np.arange(len(held_out))
    device = next(autoencoder.parameters()).device
    images, subject_masks = (tensor.to(device) for tensor in held_out.read_rows(indices))
    posterior = encode_all(autoencoder, images)
    output = decode_all(autoencoder, posterior.mean)
    return {
        "masked_psnr": float(psnr(output, images, subject_masks).mean()),
        "disturbed_psnr": float(
            psnr(decode_all(autoencoder, _add_latent_error(posterior)), images, subject_masks).mean()
        ),
        "psnr": float(psnr(output, images).mean()),
        "ssim": float(ssim(output, images).mean()),
        "l1": float((output - images).abs().mean()),
        "signal": posterior.signal,
        "noise": posterior.noise,
        "noise_to_signal": posterior.noise_to_signal,
    }


def _add_latent_error(posterior: Posterior) -> Tensor:
    """Return the means with noise of a fixed share of each channel's signal, always the same."""
    deviation = posterior.mean.transpose(0, 1).flatten(1).std(1).view(1, -1, 1, 1)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    return posterior.mean + LATENT_ERROR * deviation * noise.to(deviation.device)


@dataclass(frozen=True)
class AutoencoderEvaluator:
    """Evaluates the averaged network of `trainer` on drawings that were never trained on."""

    trainer: AutoencoderTrainer
    held_out: MaskedPictures
    picture_count: int = 24

    def evaluate(self) -> Metrics:
        return measure_autoencoder(self.trainer.average, self.held_out)

    def draw_sheet(self, path: Path) -> None:
        """Write a sheet of originals, with the decoded pictures under each line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        index = np.linspace(0, len(self.held_out) - 1, min(self.picture_count, len(self.held_out))).astype(int)
        images, _ = self.held_out.read_rows(index)
        device = self.trainer.device
        rows = [self.held_out.pictures[index], as_pictures(round_trip(self.trainer.average, images.to(device)))]
        lines: list[np.ndarray] = []
        for start in range(0, len(index), 8):
            blank = [np.full_like(rows[0][0], 255)] * (8 - len(index[start : start + 8]))
            for row in rows:
                lines += [*row[start : start + 8], *blank]
        write_picture_sheet(path, lines)
