"""Recognises out-of-memory errors."""

from __future__ import annotations

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
