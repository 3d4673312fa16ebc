"""From the host's memory to the device's, without waiting: a card copies from pinned memory while it computes."""

from __future__ import annotations

import torch


def onto(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device. What it is copied from must not be written to again."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
