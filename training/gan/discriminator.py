"""A patch discriminator, and its gradient for the generator.

It works on images of any generator. Isola 2017 (patches); Miyato 2018 (spectral norm); Lim & Ye 2017 (hinge); Esser
2021 (its weight follows the reconstruction's gradient, here measured at the picture itself).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from training.core.device import mixed_precision

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
