"""Trains and evaluates the autoencoder, or its decoder: L1 on a pyramid, edges, perceptual loss, KL, discriminator.

It is independent of files, clocks and the source of the pictures. With `keep_latents` encoder and quant_conv stay
frozen, so every network trained on these latents stays valid. Otherwise latents are rotated and rescaled with their
pictures, so that they keep the symmetries of pictures and stay learnable. All randomness is a function of (seed, step).

Rombach 2022 (latent diffusion); Esser 2021 (adversarial autoencoder); Kouzelis 2025 (EQ-VAE, the poses).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from engine.device.memory import copy_to_device
from training.core.learner import batch_indices, mixed_precision, spread_rows, step_generator
from training.core.run import Metrics
from training.gan.gan_learner import GanSettings, GanTrainer
from training.gan.latent_coding import Posterior, decode_all, decode_images, encode_all, encode_pictures, round_trip
from training.gan.losses import PerceptualLoss, draw_offset, gradient_loss, psnr, pyramid_loss, ssim
from training.pictures.masked_pictures import MaskedPictures, as_pictures, write_picture_sheet

LOG_KL_KEY = "kl:log_weight"


@dataclass(frozen=True)
class AutoencoderSettings(GanSettings):
    """The settings that stay the same for a whole run."""

    shape: str = ""  # of `AUTOENCODER_SHAPES`; empty if the run began with an autoencoder
    variants: int = 4  # of each drawing of the built-in artwork
    ema: float = 0.999
    keep_latents: bool = True
    noise: float = 0.6  # the most noise, as a share of the posterior's deviation, if only the decoder learns
    subject: float = 2.0  # added weight of a pixel of the subject
    edges: float = 0.5
    kl: float = 1e-4  # its first weight
    noise_to_signal: float = 0.1  # the latents' ratio to which the KL term's weight adapts; 0: it stays
    equivariance: float = 0.3  # the share of batches that are decoded in another pose
    perceptual: float = 0.1


@dataclass(frozen=True)
class DecoderTask:
    """The decoder's input and target picture; `weight` is the weight of each pixel."""

    latents: Tensor
    images: Tensor
    weight: Tensor


class AutoencoderTrainer(GanTrainer[AutoencoderKL]):
    """Trains an autoencoder with a discriminator. `samples` counts pictures seen."""

    def __init__(
        self,
        network: AutoencoderKL,
        pixels: MaskedPictures,
        settings: AutoencoderSettings,
        perception: PerceptualLoss | None = None,
    ) -> None:
        if settings.keep_latents:
            network.encoder.requires_grad_(False)
            if network.quant_conv is not None:
                network.quant_conv.requires_grad_(False)
        self.pixels = pixels
        self.settings = settings
        self.perception = perception
        super().__init__(network, settings, min(settings.batch, len(pixels)))
        self.log_kl = math.log(settings.kl)

    def step(self, progress: float) -> Metrics:
        """Train one batch at this share of the run. Raises ValueError if the loss is not a number."""
        rows = self.pixels.read_rows(self._batch_indices())
        images, subject_masks = (copy_to_device(tensor, self.device) for tensor in rows)
        generator = step_generator(self.settings.seed, self.steps)
        posterior = self._encode(images)
        latents = self._draw_latents(posterior, generator)
        weight = 1 + self.settings.subject * subject_masks
        task = self._apply_random_pose(DecoderTask(latents, images, weight), generator)
        offset = draw_offset(generator)
        with mixed_precision(self.device):
            output = decode_images(self.network, task.latents)

        def measure_loss(image: Tensor) -> Tensor:
            return self._reconstruction_loss(image, task, offset)

        losses = self.learner.update(output, task.images, measure_loss, progress, self._kl_loss(posterior))
        self.steps += 1
        return {**losses, **self._adapt_kl_weight(posterior)}

    def state_tensors(self) -> dict[str, Tensor]:
        return super().state_tensors() | {LOG_KL_KEY: torch.tensor(self.log_kl, dtype=torch.float64)}

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        super().restore(tensors, steps)
        self.log_kl = float(tensors[LOG_KL_KEY])

    def _batch_indices(self) -> np.ndarray:
        return batch_indices(self.settings.seed, self.steps, len(self.pixels), self.batch_size)

    def _encode(self, images: Tensor) -> Posterior:
        with torch.set_grad_enabled(not self.settings.keep_latents), mixed_precision(self.device):
            return encode_pictures(self.network, images)

    def _draw_latents(self, posterior: Posterior, generator: torch.Generator) -> Tensor:
        """Draw the decoder's input.

        With a frozen encoder the noise has any strength up to `noise`: the decoder is best near the mean, and robust to
        the errors of a diffusion network.
        """
        noise = torch.randn(posterior.mean.shape, generator=generator)
        if self.settings.keep_latents:
            strength = torch.rand((len(noise), 1, 1, 1), generator=generator) * self.settings.noise
            noise = strength * noise
        return posterior.mean + posterior.deviation * copy_to_device(noise, self.device)

    def _apply_random_pose(self, task: DecoderTask, generator: torch.Generator) -> DecoderTask:
        """At random, put latents and picture into another pose; never with frozen latents."""
        is_chosen = float(torch.rand((), generator=generator)) < self.settings.equivariance
        if self.settings.keep_latents or not is_chosen:
            return task
        pose = draw_pose(task.latents.size(-1), generator)
        scale = task.images.size(-1) // task.latents.size(-1)
        images, weight = (apply_pose(pose, tensor, scale) for tensor in (task.images, task.weight))
        return DecoderTask(apply_pose(pose, task.latents), images, weight)

    def _reconstruction_loss(self, image: Tensor, task: DecoderTask, offset: tuple[int, int]) -> Tensor:
        loss = pyramid_loss(image, task.images, task.weight) + self.settings.edges * gradient_loss(image, task.images)
        if self.perception is not None and self.settings.perceptual > 0:
            loss = loss + self.settings.perceptual * self.perception.distance(image, task.images, offset)
        return loss

    def _kl_loss(self, posterior: Posterior) -> Tensor | None:
        """Return the weighted KL term; None with a frozen encoder."""
        return None if self.settings.keep_latents else math.exp(self.log_kl) * posterior.divergence

    def _adapt_kl_weight(self, posterior: Posterior) -> Metrics:
        """Adapt the KL term's weight for the next step."""
        if self.settings.keep_latents:
            return {}
        self.log_kl = adapt_log_weight(self.log_kl, posterior.noise_to_signal, self.settings.noise_to_signal)
        return {"noise_to_signal": posterior.noise_to_signal, "log10_kl": self.log_kl / math.log(10)}


ADAPTATION_RATE = 0.005  # change of the logarithm in a step, for each factor e between ratio and target
MIN_LOG_WEIGHT = math.log(1e-9)
MAX_LOG_WEIGHT = math.log(1e-1)


def adapt_log_weight(log_weight: float, ratio: float, target: float) -> float:
    """Run one step of the controller. With a `target` of 0 the weight stays."""
    if target <= 0:
        return log_weight
    log_error = math.log(target / max(ratio, 1e-12))
    return min(MAX_LOG_WEIGHT, max(MIN_LOG_WEIGHT, log_weight + ADAPTATION_RATE * min(1.0, max(-1.0, log_error))))


MIN_SIDE_SHARE = 0.5  # of a side of the latents


@dataclass(frozen=True)
class Pose:
    """The `side` of the latents afterwards, `quarter_turns` of 90 degrees, and whether they are `mirrored` first."""

    side: int
    quarter_turns: int
    mirrored: bool


def draw_pose(side: int, generator: torch.Generator) -> Pose:
    """Draw a pose of latents of this side; all are equally likely."""
    min_side = max(1, round(MIN_SIDE_SHARE * side))
    extra_side, quarter_turns, mirrored = (
        int(torch.randint(count, (), generator=generator)) for count in (side - min_side + 1, 4, 2)
    )
    return Pose(min_side + extra_side, quarter_turns, bool(mirrored))


def apply_pose(pose: Pose, images: Tensor, scale: int = 1) -> Tensor:
    """Apply a pose to [n, c, side, side]; `scale` is the width of one latent position in pixels."""
    side = pose.side * scale
    if images.size(-1) != side:
        images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    mirrored_images = images.flip(-1) if pose.mirrored else images
    return torch.rot90(mirrored_images, pose.quarter_turns, (-2, -1))


def _make_shape(latent_channels: int, *widths: int) -> dict[str, Any]:
    levels = len(widths)
    return {
        "sample_size": 64,
        "latent_channels": latent_channels,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "block_out_channels": widths,
        "mid_block_add_attention": False,
        "scaling_factor": 1.0,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }


AUTOENCODER_SHAPES: dict[str, dict[str, Any]] = {
    "compact": _make_shape(16, 16, 48, 128, 192),  # 8×8×16, 6.4 M parameters
    "deep": _make_shape(32, 32, 64, 128, 256),  # 8×8×32, 10.5 M
    "wide": _make_shape(8, 32, 64, 192),  # 16×16×8: the embedded model's, 5.3 M
}


def build_autoencoder(seed: int, shape: Mapping[str, Any] = AUTOENCODER_SHAPES["compact"]) -> AutoencoderKL:
    """Build an untrained autoencoder."""
    torch.manual_seed(seed)
    return AutoencoderKL(**shape)


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
    disturbed = decode_all(autoencoder, _add_latent_error(posterior))
    return {
        "masked_psnr": float(psnr(output, images, subject_masks).mean()),
        "disturbed_psnr": float(psnr(disturbed, images, subject_masks).mean()),
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
        index = spread_rows(len(self.held_out), self.picture_count)
        images, _ = self.held_out.read_rows(index)
        device = self.trainer.device
        rows = [self.held_out.pictures[index], as_pictures(round_trip(self.trainer.average, images.to(device)))]
        lines: list[np.ndarray] = []
        for start in range(0, len(index), 8):
            blank = [np.full_like(rows[0][0], 255)] * (8 - len(index[start : start + 8]))
            for row in rows:
                lines += [*row[start : start + 8], *blank]
        write_picture_sheet(path, lines)
