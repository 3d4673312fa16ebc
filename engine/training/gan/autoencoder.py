"""Trains the autoencoder: L1 on a pyramid, edges, a KL term and a discriminator; or its decoder alone.

Knows one step and what must be kept to repeat the next one exactly; knows nothing of files, clocks or where pictures
come from. With `keep_latents` encoder and quant_conv stay as they are, so that every network trained on these latents
stays right. All chance is a function of (seed, step).

Rombach 2022 (latent diffusion); Esser 2021 (adversarial autoencoder).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import FloatTensor, Tensor

from engine.training.chance import batch_at, draws_at
from engine.training.gan.contest import Contest, Terms
from engine.training.gan.losses import gradient, psnr, pyramid, ssim
from engine.training.learner import Learner
from engine.training.muon import suits
from engine.training.pictures.pixels import Pixels, as_pictures
from engine.training.run import Losses
from engine.training.validate import write_sheet

SHAPE: dict[str, Any] = {  # the embedded model's: 64 px ↔ 8×8×16, of about 6 million parameters
    "sample_size": 64, "latent_channels": 16, "layers_per_block": 1, "norm_num_groups": 8,
    "block_out_channels": (16, 48, 128, 192), "mid_block_add_attention": False, "scaling_factor": 1.0,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


@dataclass(frozen=True)
class Settings(Terms):
    """What a run keeps from its first step to its last."""

    keep_latents: bool = True
    noise: float = 0.6  # at most so much of the posterior's deviation, when only the decoder learns
    subject: float = 2.0  # what a pixel of the subject weighs more than one of the background
    edges: float = 0.5
    kl: float = 1e-4


def fresh(seed: int, shape: Mapping[str, Any] = SHAPE) -> AutoencoderKL:
    """An autoencoder that has learnt nothing."""
    torch.manual_seed(seed)
    return AutoencoderKL(**shape)


def decoded(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """The picture of these latents, as the network gives it: [n, 3, h, w], not clamped."""
    return autoencoder.decode(cast(FloatTensor, latents), return_dict=False)[0]


class Trainer:
    """An autoencoder and its discriminator at one position. `samples` counts pictures seen."""

    def __init__(self, network: AutoencoderKL, pixels: Pixels, settings: Settings) -> None:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (diffusers hides its signature)
        self.network = network.train()
        if settings.keep_latents:
            network.encoder.requires_grad_(False)
            if network.quant_conv is not None:
                network.quant_conv.requires_grad_(False)
        self.pixels, self.settings = pixels, settings
        self.batch = min(settings.batch, len(pixels))
        learner = Learner("network", network, ema=settings.ema, matrices=suits if settings.muon else None)
        self.contest = Contest(learner, settings)
        self.steps = 0

    @property
    def average(self) -> AutoencoderKL:
        return self.contest.generator.average  # pyright: ignore[reportReturnType]

    @property
    def samples(self) -> int:
        return self.steps * self.batch

    @property
    def rate(self) -> float:
        return self.contest.generator.rate

    def step(self, share: float) -> Losses:
        """One batch at this share of the run. Raises ValueError when the loss is not a number."""
        images, subjects = self.pixels.rows(self._batch())
        chance = draws_at(self.settings.seed, self.steps)
        latents, divergence = self._latents(images, chance)
        with torch.autocast("cpu", torch.bfloat16):
            made = decoded(self.network, latents)
        weight = 1 + self.settings.subject * subjects

        def measure(image: Tensor) -> Tensor:
            return pyramid(image, images, weight) + self.settings.edges * gradient(image, images)

        losses = self.contest.teach(made, images, measure, share, divergence)
        self.steps += 1
        return losses

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        return self.contest.tensors()

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Goes back to a kept position: the next step gives what it gave then. Raises KeyError on a missing tensor."""
        self.contest.restore(tensors)
        self.steps = steps

    def _batch(self) -> np.ndarray:
        return batch_at(self.settings.seed, self.steps, len(self.pixels), self.batch)

    def _latents(self, images: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """What the decoder gets, and the KL term where the encoder learns too.

        A frozen encoder's noise is drawn at every strength up to `noise`: best near the mean, yet at home with what a
        diffusion network leaves.
        """
        with torch.set_grad_enabled(not self.settings.keep_latents), torch.autocast("cpu", torch.bfloat16):
            posterior = self.network.encode(images, return_dict=False)[0]
        mean, deviation = posterior.mean.float(), posterior.std.float()
        noise = torch.randn(mean.shape, generator=chance)
        if self.settings.keep_latents:
            strength = torch.rand((len(mean), 1, 1, 1), generator=chance) * self.settings.noise
            return mean + strength * deviation * noise, None
        divergence = (mean.square() + deviation.square() - 1 - 2 * deviation.log()).mean() / 2
        return mean + deviation * noise, self.settings.kl * divergence


@torch.inference_mode()
def round_trip(autoencoder: AutoencoderKL, images: Tensor, batch: int = 32) -> Tensor:
    """The pictures encoded to the posterior's mean and decoded, fp32."""
    parts = []
    for part in images.split(batch):
        mean = autoencoder.encode(part, return_dict=False)[0].mean
        parts.append(decoded(autoencoder, mean).clamp(-1, 1))
    return torch.cat(parts)


def figures(autoencoder: AutoencoderKL, held_out: Pixels) -> Losses:
    """PSNR inside the subject and over all, SSIM and L1: means over the pictures."""
    images, subjects = held_out.rows(np.arange(len(held_out)))
    made = round_trip(autoencoder, images)
    return {
        "masked_psnr": float(psnr(made, images, subjects).mean()),
        "psnr": float(psnr(made, images).mean()),
        "ssim": float(ssim(made, images).mean()),
        "l1": float((made - images).abs().mean()),
    }


@dataclass(frozen=True)
class Judge:
    """Drawings never trained on, for the averaged network of `trainer`."""

    trainer: Trainer
    held_out: Pixels
    shown: int = 24

    def figures(self) -> Losses:
        return figures(self.trainer.average, self.held_out)

    def sheet(self, path: Path) -> None:
        """Originals, and under each line of them what came back."""
        path.parent.mkdir(parents=True, exist_ok=True)
        some = np.linspace(0, len(self.held_out) - 1, min(self.shown, len(self.held_out))).astype(int)
        images, _ = self.held_out.rows(some)
        back = as_pictures(round_trip(self.trainer.average, images))
        lines: list[np.ndarray] = []
        for start in range(0, len(some), 8):
            blank = [np.full_like(back[0], 255)] * (8 - len(some[start : start + 8]))
            lines += [*self.held_out.pictures[some[start : start + 8]], *blank, *back[start : start + 8], *blank]
        write_sheet(path, lines)
