"""Trains the autoencoder, or only its decoder: L1 on a pyramid, edges, a perceptual loss, KL, a discriminator.

It holds one step and the state that repeats the next one exactly. It is independent of files, clocks and the source of
the pictures. With `keep_latents` encoder and quant_conv stay frozen, so every network trained on these latents stays
valid. All randomness is a function of (seed, step).

Rombach 2022 (latent diffusion); Esser 2021 (adversarial autoencoder).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from engine.device.torch_device import copy_to_device
from training.core.batch_trainer import BatchTrainer
from training.core.device import mixed_precision
from training.core.learner import Learner
from training.core.muon import is_hidden_matrix
from training.core.rng import batch_indices, step_generator
from training.core.run import Metrics
from training.gan.gan_learner import GanLearner, GanSettings
from training.gan.kl_weight import adapt_log_weight
from training.gan.latent_coding import Posterior, decode_images, encode_pictures
from training.gan.losses import gradient_loss, pyramid_loss
from training.gan.perceptual_loss import PerceptualLoss, draw_offset
from training.gan.poses import apply_pose, draw_pose
from training.pictures.masked_pictures import MaskedPictures

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


class AutoencoderTrainer(BatchTrainer[GanLearner]):
    """Trains an autoencoder with a discriminator. `samples` counts pictures seen."""

    def __init__(
        self,
        network: AutoencoderKL,
        pixels: MaskedPictures,
        settings: AutoencoderSettings,
        perception: PerceptualLoss | None = None,
    ) -> None:
        cast(Any, network).to(memory_format=torch.channels_last)
        self.network = network.train()
        self.device = next(network.parameters()).device
        if settings.keep_latents:
            network.encoder.requires_grad_(False)
            if network.quant_conv is not None:
                network.quant_conv.requires_grad_(False)
        self.pixels = pixels
        self.settings = settings
        self.perception = perception
        learner = Learner(
            "network", network, ema=settings.ema, is_muon_matrix=is_hidden_matrix if settings.muon else None
        )
        super().__init__(GanLearner(learner, settings), min(settings.batch, len(pixels)))
        self.log_kl = math.log(settings.kl)

    @property
    def average(self) -> AutoencoderKL:
        return self.learner.generator_learner.average  # pyright: ignore[reportReturnType]

    def step(self, progress: float) -> Metrics:
        """Train one batch at this share of the run. Raises ValueError if the loss is not a number."""
        rows = self.pixels.read_rows(self._batch_indices())
        images, subject_masks = (copy_to_device(tensor, self.device) for tensor in rows)
        generator = step_generator(self.settings.seed, self.steps)
        posterior = self._encode(images)
        latents = self._draw_latents(posterior, generator)
        task = self._apply_random_pose(
            DecoderTask(latents, images, 1 + self.settings.subject * subject_masks), generator
        )
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
