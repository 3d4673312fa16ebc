"""Trains the autoencoder, or only its decoder: L1 on a pyramid, edges, a perceptual loss, KL, a discriminator.

Knows one step and the state that repeats the next one exactly; knows nothing of files, clocks or the source of the
pictures. With `keep_latents` encoder and quant_conv stay frozen, so every network trained on these latents stays valid.
All randomness is a function of (seed, step).

Rombach 2022 (latent diffusion); Esser 2021 (adversarial autoencoder).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from engine.training.chance import batch_at, draws_at
from engine.training.gan.coding import Posterior, decoded, encode_pictures
from engine.training.gan.contest import Contest, Terms
from engine.training.gan.kl_weight import adapt_log_weight
from engine.training.gan.losses import gradient, pyramid
from engine.training.gan.perception import Perception, draw_offset
from engine.training.gan.poses import apply_pose, draw_pose
from engine.training.learner import Learner
from engine.training.muon import suits
from engine.training.pictures.pixels import Pixels
from engine.training.run import Losses

LOG_KL = "kl:log_weight"


@dataclass(frozen=True)
class Settings(Terms):
    """The settings that stay the same for a whole run."""

    shape: str = ""  # of `shapes`; empty if the run began with an autoencoder
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
class Task:
    """The decoder's input and target picture; `weight` is the weight of each pixel."""

    latents: Tensor
    images: Tensor
    weight: Tensor


class Trainer:
    """Trains an autoencoder with a discriminator. `samples` counts pictures seen."""

    def __init__(
        self, network: AutoencoderKL, pixels: Pixels, settings: Settings, perception: Perception | None = None
    ) -> None:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (diffusers hides its signature)
        self.network = network.train()
        if settings.keep_latents:
            network.encoder.requires_grad_(False)
            if network.quant_conv is not None:
                network.quant_conv.requires_grad_(False)
        self.pixels, self.settings, self.perception = pixels, settings, perception
        self.batch = min(settings.batch, len(pixels))
        learner = Learner("network", network, ema=settings.ema, matrices=suits if settings.muon else None)
        self.contest = Contest(learner, settings)
        self.steps, self.log_kl = 0, math.log(settings.kl)

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
        """Train one batch at this share of the run. Raises ValueError if the loss is not a number."""
        images, subjects = self.pixels.rows(self._batch())
        chance = draws_at(self.settings.seed, self.steps)
        posterior = self._posterior(images)
        latents = self._draw_latents(posterior, chance)
        task = self._choose_pose(Task(latents, images, 1 + self.settings.subject * subjects), chance)
        offset = draw_offset(chance)
        with torch.autocast("cpu", torch.bfloat16):
            made = decoded(self.network, task.latents)

        def measure(image: Tensor) -> Tensor:
            return self._measure(image, task, offset)

        losses = self.contest.teach(made, task.images, measure, share, self._divergence(posterior))
        self.steps += 1
        return {**losses, **self._follow_noise(posterior)}

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, by name."""
        return self.contest.tensors() | {LOG_KL: torch.tensor(self.log_kl, dtype=torch.float64)}

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Restore a saved position: the next step repeats exactly. Raises KeyError for a missing tensor."""
        self.contest.restore(tensors)
        self.steps, self.log_kl = steps, float(tensors[LOG_KL])

    def _batch(self) -> np.ndarray:
        return batch_at(self.settings.seed, self.steps, len(self.pixels), self.batch)

    def _posterior(self, images: Tensor) -> Posterior:
        with torch.set_grad_enabled(not self.settings.keep_latents), torch.autocast("cpu", torch.bfloat16):
            return encode_pictures(self.network, images)

    def _draw_latents(self, posterior: Posterior, chance: torch.Generator) -> Tensor:
        """Draw the decoder's input.

        With a frozen encoder the noise has any strength up to `noise`: the decoder is best near the mean, and robust to
        the errors of a diffusion network.
        """
        noise = torch.randn(posterior.mean.shape, generator=chance)
        if self.settings.keep_latents:
            strength = torch.rand((len(noise), 1, 1, 1), generator=chance) * self.settings.noise
            noise = strength * noise
        return posterior.mean + posterior.deviation * noise

    def _choose_pose(self, task: Task, chance: torch.Generator) -> Task:
        """At random, put latents and picture into another pose; never with frozen latents."""
        chosen = float(torch.rand((), generator=chance)) < self.settings.equivariance
        if self.settings.keep_latents or not chosen:
            return task
        pose, scale = draw_pose(task.latents.size(-1), chance), task.images.size(-1) // task.latents.size(-1)
        images, weight = (apply_pose(pose, one, scale) for one in (task.images, task.weight))
        return Task(apply_pose(pose, task.latents), images, weight)

    def _measure(self, image: Tensor, task: Task, offset: tuple[int, int]) -> Tensor:
        wrong = pyramid(image, task.images, task.weight) + self.settings.edges * gradient(image, task.images)
        if self.perception is not None and self.settings.perceptual > 0:
            wrong = wrong + self.settings.perceptual * self.perception.distance(image, task.images, offset)
        return wrong

    def _divergence(self, posterior: Posterior) -> Tensor | None:
        """Return the weighted KL term; None with a frozen encoder."""
        return None if self.settings.keep_latents else math.exp(self.log_kl) * posterior.divergence

    def _follow_noise(self, posterior: Posterior) -> Losses:
        """Adapt the KL term's weight for the next step."""
        if self.settings.keep_latents:
            return {}
        self.log_kl = adapt_log_weight(self.log_kl, posterior.noise_to_signal, self.settings.noise_to_signal)
        return {"noise_to_signal": posterior.noise_to_signal, "log10_kl": self.log_kl / math.log(10)}
