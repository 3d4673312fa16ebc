"""Whether an error says that the device's memory is full. Knows errors; not what to do then."""

from __future__ import annotations

import torch

OUT_OF_MEMORY = (
    "allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: Exception) -> bool:
    """Libraries that allocate for themselves say so in the text alone."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(mark in str(error) for mark in OUT_OF_MEMORY)
