"""How much memory models may take where nobody says: a share of what the device has. Loads nothing."""

from __future__ import annotations

import os
from pathlib import Path

import torch

OF_A_CARD, OF_THE_HOST = 0.85, 0.7  # the rest is for pictures on their way, and for other programs
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def said(size: int) -> str:
    """`12 GB`, `1.4 GB`, `350 MB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{max(1, size // 1000)} kB"


def share(device: torch.device) -> int:
    """Bytes that models may take on this device where nobody says otherwise."""
    if device.type == "cuda":
        return int(OF_A_CARD * torch.cuda.mem_get_info(device)[1])
    return int(OF_THE_HOST * _host())


def _host() -> int:
    """Of the machine, or of the container where that has less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(limit for path in LIMITS if (limit := _limit(Path(path))))])


def _limit(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # none such, or "max"
        return None
