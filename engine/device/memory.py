"""The device that an engine runs on: which it is, copies to it, its free memory, and how its lack shows."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

OUT_OF_MEMORY_MESSAGES = (
    "allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out. Libraries with their own allocators say so only in the text."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        message in str(error) for message in OUT_OF_MEMORY_MESSAGES
    )


# the rest is for running images and other programs
GPU_SHARE = 0.85
HOST_SHARE = 0.7
MEMINFO = Path("/proc/meminfo")
CGROUP_FILES = (  # a container's limit, its usage, and the file cache in it, which can be reclaimed
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
)


def model_budget(device: torch.device) -> int:
    """Return the default budget for models on this device, in bytes."""
    return int((GPU_SHARE if device.type == "cuda" else HOST_SHARE) * _total_memory(device))


def memory_for_pictures(device: torch.device) -> int:
    """Return the bytes that models leave on this device: constant, unless other programs have taken them."""
    return min(_total_memory(device) - model_budget(device), free_memory(device))


def free_memory(device: torch.device) -> int:
    """Return the bytes that can be allocated now."""
    if device.type == "cuda":
        cached_free = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached_free
    available = re.search(r"^MemAvailable:\s+(\d+) kB$", _read_text(MEMINFO), re.MULTILINE)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([1024 * int(available[1]) if available else physical, *_free_in_cgroups()])


def _total_memory(device: torch.device) -> int:
    """Return the memory of the GPU or of the machine; of the container if its limit is lower."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (_parse_int(_read_text(folder / limit)) for folder, limit, _, _ in CGROUP_FILES)
    return min([physical, *(limit for limit in limits if limit is not None)])


def _free_in_cgroups() -> list[int]:
    free_bytes: list[int] = []
    for folder, limit_file, usage_file, cache_key in CGROUP_FILES:
        limit_bytes = _parse_int(_read_text(folder / limit_file))
        usage = _parse_int(_read_text(folder / usage_file))
        if limit_bytes is not None and usage is not None:
            cached = re.search(rf"^{cache_key} (\d+)$", _read_text(folder / "memory.stat"), re.MULTILINE)
            free_bytes.append(limit_bytes - usage + (int(cached[1]) if cached else 0))
    return free_bytes


def _parse_int(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def choose_device() -> torch.device:
    """Return an NVIDIA or AMD GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def copy_to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on the device. Never write to the source again."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
