"""Chooses the device that an engine on this machine runs on."""

from __future__ import annotations

import torch


def choose_device() -> torch.device:
    """Return an NVIDIA or AMD GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
