"""One step of a batch of images: the network on the rows of all of them, guidance, and the samplers' update."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.batching.batch_math import Coefficients, Prediction, RowLayout, predict, roll_tiles
from engine.batching.trajectory import Trajectory
from engine.models.family import Family, denoise
from engine.models.guidance_norm import NormalizesGuidance


def predict_batch(images: Sequence[Trajectory], layout: RowLayout, family: Family) -> Prediction:
    """Return the next latents and x0 of each image, and change none of them."""
    coefficients = Coefficients.build(images)
    latents = torch.stack([image.x for image in images])
    network_inputs = roll_tiles(coefficients["c"] * latents, images)[layout.owner]
    timesteps = coefficients["t"].flatten()[layout.owner]
    dtype = images[0].dtype
    loras = images[0].loras
    rows = zip(
        torch.split(network_inputs, layout.forward_rows),
        torch.split(timesteps, layout.forward_rows),
        layout.conditioning_by_forward,
        layout.pictures_by_forward,
        strict=True,
    )
    out = torch.cat([denoise(family, x, t, texts, dtype, loras, pictures) for x, t, texts, pictures in rows])
    measure_norm = family.measure_norm if isinstance(family, NormalizesGuidance) else None
    return predict(images, latents, roll_tiles(layout.apply_guidance(out, measure_norm), images, -1), coefficients)
