"""Trains the autoencoder: L1 on a pyramid, edges, perception, a KL term, a discriminator; or its decoder alone.

Knows one step and what must be kept to repeat the next one exactly; knows nothing of files, clocks or where pictures
come from. With `keep_latents` encoder and quant_conv stay as they are, so that every network trained on these latents
stays right. All chance is a function of (seed, step).

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
    """What a run keeps from its first step to its last."""

    shape: str = ""  # of `shapes`; none where the run began with an autoencoder
    variants: int = 4  # of each drawing of the built-in artwork
    ema: float = 0.999
    keep_latents: bool = True
    noise: float = 0.6  # at most so much of the posterior's deviation, when only the decoder learns
    subject: float = 2.0  # what a pixel of the subject weighs more than one of the background
    edges: float = 0.5
    kl: float = 1e-4  # where its weight begins
    noise_to_signal: float = 0.1  # of the latents, which the KL term's weight is moved towards; 0: it stays
    equivariance: float = 0.3  # how often a batch is decoded in another pose
    perceptual: float = 0.1


@dataclass(frozen=True)
class Task:
    """What the decoder gets, and the picture that it should make of it; `weight` is what each pixel weighs."""

    latents: Tensor
    images: Tensor
    weight: Tensor


class Trainer:
    """An autoencoder and its discriminator at one position. `samples` counts pictures seen."""

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
        """One batch at this share of the run. Raises ValueError when the loss is not a number."""
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
        """Everything that the next step depends on, by name."""
        return self.contest.tensors() | {LOG_KL: torch.tensor(self.log_kl, dtype=torch.float64)}

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Goes back to a kept position: the next step gives what it gave then. Raises KeyError on a missing tensor."""
        self.contest.restore(tensors)
        self.steps, self.log_kl = steps, float(tensors[LOG_KL])

    def _batch(self) -> np.ndarray:
        return batch_at(self.settings.seed, self.steps, len(self.pixels), self.batch)

    def _posterior(self, images: Tensor) -> Posterior:
        with torch.set_grad_enabled(not self.settings.keep_latents), torch.autocast("cpu", torch.bfloat16):
            return encode_pictures(self.network, images)

    def _draw_latents(self, posterior: Posterior, chance: torch.Generator) -> Tensor:
        """What the decoder gets.

        A frozen encoder's noise is drawn at every strength up to `noise`: best near the mean, yet at home with what a
        diffusion network leaves.
        """
        noise = torch.randn(posterior.mean.shape, generator=chance)
        if self.settings.keep_latents:
            strength = torch.rand((len(noise), 1, 1, 1), generator=chance) * self.settings.noise
            noise = strength * noise
        return posterior.mean + posterior.deviation * noise

    def _choose_pose(self, task: Task, chance: torch.Generator) -> Task:
        """Now and then latents and picture in another pose; never with latents that stay as they are."""
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
        """The KL term, where the encoder learns too."""
        return None if self.settings.keep_latents else math.exp(self.log_kl) * posterior.divergence

    def _follow_noise(self, posterior: Posterior) -> Losses:
        """Moves the KL term's weight for the next step."""
        if self.settings.keep_latents:
            return {}
        self.log_kl = adapt_log_weight(self.log_kl, posterior.noise_to_signal, self.settings.noise_to_signal)
        return {"noise_to_signal": posterior.noise_to_signal, "log10_kl": self.log_kl / math.log(10)}
