"""One adversarial training step of generator and discriminator, with a learning rate that falls to zero.

It combines two learners and a reconstruction loss, whatever the source of the pictures. The discriminator begins at a
share of the run: earlier pictures are not worth judging.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from training.core.device import mixed_precision
from training.core.learner import Learner, cosine_decay, warmup_factor
from training.core.run import Metrics
from training.gan.discriminator import Discriminator, hinge_loss, picture_gradient

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
