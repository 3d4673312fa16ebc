"""Evaluates an autoencoder on drawings that were never trained on, in figures and side by side.

Knows pictures and a network; knows nothing of optimizers. Its results repeat exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from engine.training.gan.autoencoder import Trainer
from engine.training.gan.coding import Posterior, decode_all, encode_all, round_trip
from engine.training.gan.losses import psnr, ssim
from engine.training.pictures.pixels import Pixels, as_pictures
from engine.training.run import Losses
from engine.training.validate import write_sheet

DISTURBED = 0.3  # of the signal: a diffusion network's typical error in latents


def figures(autoencoder: AutoencoderKL, held_out: Pixels) -> Losses:
    """Return the pictures' means (PSNR inside the subject and overall, SSIM, L1), and the latents' noise and signal.

    `disturbed_psnr` is the PSNR inside the subject for latents with a diffusion network's error.
    """
    images, subjects = held_out.rows(np.arange(len(held_out)))
    posterior = encode_all(autoencoder, images)
    made = decode_all(autoencoder, posterior.mean)
    return {
        "masked_psnr": float(psnr(made, images, subjects).mean()),
        "disturbed_psnr": float(psnr(decode_all(autoencoder, _disturb(posterior)), images, subjects).mean()),
        "psnr": float(psnr(made, images).mean()),
        "ssim": float(ssim(made, images).mean()),
        "l1": float((made - images).abs().mean()),
        "signal": posterior.signal,
        "noise": posterior.noise,
        "noise_to_signal": posterior.noise_to_signal,
    }


def _disturb(posterior: Posterior) -> Tensor:
    """Return the means with noise of a fixed share of each channel's signal, always the same."""
    deviation = posterior.mean.transpose(0, 1).flatten(1).std(1).view(1, -1, 1, 1)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    return posterior.mean + DISTURBED * deviation * noise


@dataclass(frozen=True)
class Judge:
    """Evaluates the averaged network of `trainer` on drawings that were never trained on."""

    trainer: Trainer
    held_out: Pixels
    shown: int = 24

    def figures(self) -> Losses:
        return figures(self.trainer.average, self.held_out)

    def sheet(self, path: Path) -> None:
        """Write a sheet of originals, with the decoded pictures under each line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        some = np.linspace(0, len(self.held_out) - 1, min(self.shown, len(self.held_out))).astype(int)
        images, _ = self.held_out.rows(some)
        back = as_pictures(round_trip(self.trainer.average, images))
        lines: list[np.ndarray] = []
        for start in range(0, len(some), 8):
            blank = [np.full_like(back[0], 255)] * (8 - len(some[start : start + 8]))
            lines += [*self.held_out.pictures[some[start : start + 8]], *blank, *back[start : start + 8], *blank]
        write_sheet(path, lines)
