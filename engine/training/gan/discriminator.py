"""A patch discriminator, and its gradient for the generator.

Knows images; knows nothing of the generator. Isola 2017 (patches); Miyato 2018 (spectral norm); Lim & Ye 2017 (hinge);
Esser 2021 (its weight follows the reconstruction's gradient, here measured at the picture itself).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

CHANNELS = (32, 64, 128)


class Discriminator(nn.Module):
    """Returns one score for each patch; above 0 it looks real. Three halvings: a patch is 46 pixels wide."""

    def __init__(self, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        widths = (3, *channels)
        halved = [spectral_norm(nn.Conv2d(a, b, 4, 2, 1)) for a, b in zip(widths, channels, strict=False)]
        self.halved = nn.ModuleList(halved)
        self.score = spectral_norm(nn.Conv2d(channels[-1], 1, 4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.halved:
            images = F.leaky_relu(layer(images), 0.2)
        return self.score(images)


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """Return the discriminator's loss: real patches above 1, generated ones below −1."""
    return (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2


def picture_gradient(
    made: Tensor, measure: Callable[[Tensor], Tensor], judge: Discriminator | None, weight: float
) -> tuple[Tensor, float]:
    """Return the gradient of `measure` at the picture, and the measure.

    With `judge`, the discriminator's gradient is added.

    `weight` is the length of that part relative to the measure's: 0.1 is a tenth, at any scale.
    """
    image = made.detach().float().requires_grad_()
    loss = measure(image)
    (towards,) = torch.autograd.grad(loss, image)
    if judge is not None and weight > 0:
        with torch.autocast("cpu", torch.bfloat16):
            pleased = judge(image)
        (pleasing,) = torch.autograd.grad(-pleased.float().mean(), image)
        towards = towards + pleasing * (weight * towards.norm() / pleasing.norm().clamp_min(1e-12))
    return towards, float(loss.detach())
