"""Memory: recognises out-of-memory errors, and returns freed heap pages to the system."""

from __future__ import annotations

import ctypes

import torch

M_ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h

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


def trim_heap() -> None:
    """Return the heap's free pages to the system. glibc keeps those of a decode, some 200 MB, for the next one.

    Takes about 15 ms and blocks no other thread. Does nothing with another C library.
    """
    if (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        malloc_trim(0)


def limit_heap_arenas() -> None:
    """Share two heaps between all threads, for the start of a process. A heap for each would hold 10 to 40 MB more.

    Tensors are large, so threads hardly wait for each other. Source: mallopt(3).
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_ARENA_MAX, 2)
