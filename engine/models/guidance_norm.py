"""`NormalizesGuidance`, the extension of `engine.models.family` for models that keep the norm of a prediction."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class NormalizesGuidance(Protocol):
    """A family whose pipeline scales the guided prediction to the norm of the prompt's own prediction."""

    def measure_norm(self, prediction: torch.Tensor) -> torch.Tensor:
        """Return the norms of predictions `[images, channels, height, width]`, in a shape that multiplies them."""
        ...
