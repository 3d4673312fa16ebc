"""Which device an engine of this machine runs on. Knows torch's devices; no model."""

from __future__ import annotations

import torch


def best() -> torch.device:
    """An NVIDIA or AMD card where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
