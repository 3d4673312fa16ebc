"""The device of a training: opens it by name, and chooses its number format.

All randomness is drawn on the processor, so a seed means the same batches and the same noise on every device.
"""

from __future__ import annotations

import torch

from engine.device.torch_device import choose_device


def open_device(name: str | None) -> torch.device:
    """Return the device `cpu`, `cuda` or `mps`; without a name a GPU if there is one. Raises ValueError if absent."""
    if name is None:
        return choose_device()
    is_available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not is_available[name]:
        raise ValueError(f"--device {name}: torch finds no such device on this machine. Leave the option out.")
    return torch.device(name)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return autocast to bf16 on this device; on a GPU that computes no bf16 it does nothing."""
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bf16)
