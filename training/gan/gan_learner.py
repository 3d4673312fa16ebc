"""A patch discriminator, and one adversarial training step of it and a generator, with a rate that falls to zero.

It works on images of any generator, with any reconstruction loss. The discriminator begins at a share of the run:
earlier pictures are not worth judging.

Isola 2017 (patches); Miyato 2018 (spectral norm); Lim & Ye 2017 (hinge); Esser 2021 (its weight follows the
reconstruction's gradient, here measured at the picture itself).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from training.core.learner import BatchTrainer, Learner, cosine_decay, is_hidden_matrix, mixed_precision, warmup_factor
from training.core.run import Metrics

DISCRIMINATOR_HEAD_START = 0.05  # of the run, in which only the discriminator learns


@dataclass(frozen=True)
class GanSettings:
    """The settings that both trainers share for a whole run."""

    rate: float = 5e-4
    batch: int = 16
    warm: int = 40
    ema: float = 0.995
    gan_from: float = 0.6  # share of the run
    gan_weight: float = 0.1  # length of its gradient relative to the reconstruction's
    gan_rate: float = 4e-4
    muon: bool = True
    seed: int = 0


class GanLearner:
    """Trains a generator and its discriminator."""

    def __init__(self, generator_learner: Learner, settings: GanSettings) -> None:
        self.generator_learner = generator_learner
        self.settings = settings
        torch.manual_seed(settings.seed)  # initial weights of the discriminator
        self.discriminator_network = Discriminator().to(next(generator_learner.network.parameters()).device)
        self.discriminator_learner = Learner("discriminator", self.discriminator_network, betas=(0.5, 0.9))

    @property
    def rate(self) -> float:
        """Return the generator's learning rate of the last update."""
        return self.generator_learner.rate

    def update(
        self,
        output: Tensor,
        real: Tensor,
        measure_loss: Callable[[Tensor], Tensor],
        progress: float,
        extra_loss: Tensor | None = None,
    ) -> Metrics:
        """Run one step that reduces `measure_loss` of `output`, and `extra_loss`.

        Raises ValueError if the loss is not a number.
        """
        trains_discriminator = self.settings.gan_weight > 0 and progress >= self.settings.gan_from
        is_adversarial = trains_discriminator and progress >= self.settings.gan_from + DISCRIMINATOR_HEAD_START
        self.discriminator_network.eval()  # the generator's step must not change it
        gradient, loss = picture_gradient(
            output, measure_loss, self.discriminator_network if is_adversarial else None, self.settings.gan_weight
        )
        total = loss + (float(extra_loss.detach()) if extra_loss is not None else 0.0)
        if not math.isfinite(total):
            raise ValueError(
                f"the loss is not a number after {self.generator_learner.updates} steps: lower the learning rate"
            )
        roots: list[Tensor] = [output] if extra_loss is None else [output, extra_loss]
        torch.autograd.backward(roots, [gradient.to(output.dtype), *([None] * (len(roots) - 1))])
        self.generator_learner.update(self._current_rate(self.settings.rate, progress))
        return {
            "loss": total,
            **(self._update_discriminator(output.detach(), real, progress) if trains_discriminator else {}),
        }

    def state_tensors(self) -> dict[str, Tensor]:
        return self.generator_learner.state_tensors() | self.discriminator_learner.state_tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.generator_learner.restore(tensors)
        self.discriminator_learner.restore(tensors)

    def _update_discriminator(self, output: Tensor, real: Tensor, progress: float) -> Metrics:
        self.discriminator_network.train()
        with mixed_precision(real.device):
            scores = self.discriminator_network(torch.cat([real, output.float()]))
        real_scores, fake_scores = scores.float().chunk(2)
        loss = hinge_loss(real_scores, fake_scores)
        loss.backward()
        self.discriminator_learner.update(self._current_rate(self.settings.gan_rate, progress))
        return {"discriminator": float(loss.detach())}

    def _current_rate(self, peak: float, progress: float) -> float:
        return peak * warmup_factor(self.generator_learner.updates, self.settings.warm) * cosine_decay(progress)


CHANNELS = (32, 64, 128)


class Discriminator(nn.Module):
    """Returns one score for each patch; above 0 it looks real. Three halvings: a patch is 46 pixels wide."""

    def __init__(self, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        widths = (3, *channels)
        layers = [
            spectral_norm(nn.Conv2d(in_width, out_width, 4, 2, 1))
            for in_width, out_width in zip(widths, channels, strict=False)
        ]
        self.layers = nn.ModuleList(layers)
        self.score = spectral_norm(nn.Conv2d(channels[-1], 1, 4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers:
            images = F.leaky_relu(layer(images), 0.2)
        return self.score(images)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss: real patches above 1, generated ones below −1."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def picture_gradient(
    output: Tensor, measure_loss: Callable[[Tensor], Tensor], discriminator: Discriminator | None, weight: float
) -> tuple[Tensor, float]:
    """Return the gradient of `measure_loss` at the picture, and the loss. A `discriminator` adds its own gradient.

    `weight` is the length of that part relative to the loss's: 0.1 is a tenth, at any scale.
    """
    image = output.detach().float().requires_grad_()
    loss = measure_loss(image)
    (gradient,) = torch.autograd.grad(loss, image)
    if discriminator is not None and weight > 0:
        with mixed_precision(image.device):
            scores = discriminator(image)
        (adversarial_gradient,) = torch.autograd.grad(-scores.float().mean(), image)
        gradient = gradient + adversarial_gradient * (
            weight * cast(Tensor, gradient.norm()) / cast(Tensor, adversarial_gradient.norm()).clamp_min(1e-12)
        )
    return gradient, float(loss.detach())


N = TypeVar("N", bound=nn.Module)


class GanTrainer(BatchTrainer[GanLearner], Generic[N]):
    """Trains `network` with a discriminator, the matrices of `is_muon_matrix` by Muon if the settings say so."""

    def __init__(
        self,
        network: N,
        settings: GanSettings,
        batch_size: int,
        is_muon_matrix: Callable[[str, Tensor], bool] = is_hidden_matrix,
    ) -> None:
        self.network: N = cast(Any, network).to(memory_format=torch.channels_last).train()
        self.device = next(network.parameters()).device
        learner = Learner(
            "network", network, ema=settings.ema, is_muon_matrix=is_muon_matrix if settings.muon else None
        )
        super().__init__(GanLearner(learner, settings), batch_size)

    @property
    def average(self) -> N:
        return cast(N, self.learner.generator_learner.average)
