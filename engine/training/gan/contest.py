"""One adversarial training step of generator and discriminator, with a learning rate that falls to zero.

Knows two learners and a reconstruction loss; knows nothing of the source of the pictures. The discriminator begins at a
share of the run: earlier pictures are not worth judging.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.training.gan.discriminator import Discriminator, hinge, picture_gradient
from engine.training.learner import Learner, falling, warming
from engine.training.run import Losses

HEAD_START = 0.05  # of the run, in which only the discriminator learns


@dataclass(frozen=True)
class Terms:
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


class Contest:
    """Trains a generator and its discriminator."""

    def __init__(self, generator: Learner, terms: Terms) -> None:
        self.generator, self.terms = generator, terms
        torch.manual_seed(terms.seed)  # initial weights of the discriminator
        self.judge = Discriminator()
        self.discriminator = Learner("discriminator", self.judge, betas=(0.5, 0.9))

    def teach(
        self,
        made: Tensor,
        real: Tensor,
        measure: Callable[[Tensor], Tensor],
        share: float,
        also: Tensor | None = None,
    ) -> Losses:
        """Run one step that reduces `measure` of `made`, and `also`. Raises ValueError if the loss is not a number."""
        judging = self.terms.gan_weight > 0 and share >= self.terms.gan_from
        against = judging and share >= self.terms.gan_from + HEAD_START
        self.judge.eval()  # the generator's step must not change it
        gradient, loss = picture_gradient(made, measure, self.judge if against else None, self.terms.gan_weight)
        total = loss + (float(also.detach()) if also is not None else 0.0)
        if not math.isfinite(total):
            raise ValueError(f"the loss is not a number after {self.generator.moves} steps: lower the learning rate")
        roots: list[Tensor] = [made] if also is None else [made, also]
        torch.autograd.backward(roots, [gradient.to(made.dtype), *([None] * (len(roots) - 1))])  # pyright: ignore[reportArgumentType]
        self.generator.move(self._rate(self.terms.rate, share))
        return {"loss": total, **(self._judge(made.detach(), real, share) if judging else {})}

    def tensors(self) -> dict[str, Tensor]:
        return self.generator.tensors() | self.discriminator.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.generator.restore(tensors)
        self.discriminator.restore(tensors)

    def _judge(self, made: Tensor, real: Tensor, share: float) -> Losses:
        self.judge.train()
        with torch.autocast("cpu", torch.bfloat16):
            scores = self.judge(torch.cat([real, made.float()]))
        seen, faked = scores.float().chunk(2)
        loss = hinge(seen, faked)
        loss.backward()
        self.discriminator.move(self._rate(self.terms.gan_rate, share))
        return {"discriminator": float(loss.detach())}

    def _rate(self, peak: float, share: float) -> float:
        return peak * warming(self.generator.moves, self.terms.warm) * falling(share)
