"""The default memory budget for models, and how much memory is free for pictures. Allocates nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

OF_A_CARD, OF_THE_HOST = 0.85, 0.7  # the rest is for running images and other programs
MEMORY = Path("/proc/meminfo")
GROUPS = (  # a container's limit, its usage, and the file cache in it, which can be reclaimed
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
)


def share(device: torch.device) -> int:
    """Return the default budget for models on this device, in bytes."""
    return int((OF_A_CARD if device.type == "cuda" else OF_THE_HOST) * _whole(device))


def room_for_pictures(device: torch.device) -> int:
    """Return the bytes that models leave on this device: constant, unless other programs have taken them."""
    return min(_whole(device) - share(device), free(device))


def free(device: torch.device) -> int:
    """Return the bytes that can be allocated now."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(MEMORY), re.MULTILINE)
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([1024 * int(found[1]) if found else pages, *_free_in_groups()])


def _whole(device: torch.device) -> int:
    """Return the memory of the GPU or of the machine; of the container if its limit is lower."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (_number(_text(folder / limit)) for folder, limit, _, _ in GROUPS)
    return min([pages, *(limit for limit in limits if limit is not None)])


def _free_in_groups() -> list[int]:
    free: list[int] = []
    for folder, limit, taken, pages in GROUPS:
        most, now = _number(_text(folder / limit)), _number(_text(folder / taken))
        if most is not None and now is not None:
            cached = re.search(rf"^{pages} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
            free.append(most - now + (int(cached[1]) if cached else 0))
    return free


def _number(text: str) -> int | None:
    """Return the number; None if the text is none, such as "max"."""
    try:
        return int(text)
    except ValueError:
        return None


def _text(path: Path) -> str:
    """Return the file's text; empty if there is no file."""
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
