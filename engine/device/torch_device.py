"""Chooses the device that an engine on this machine runs on, and copies tensors to it."""

from __future__ import annotations

import torch


def choose_device() -> torch.device:
    """Return an NVIDIA or AMD GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def copy_to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on the device. Never write to the source again."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
