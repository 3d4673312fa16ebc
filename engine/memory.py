"""Memory: whether an error says that the device's is full, and how what was freed goes back to the system.

Knows errors and the C library; not what to do then.
"""

from __future__ import annotations

import ctypes

import torch

ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h

OUT_OF_MEMORY = (
    "allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: Exception) -> bool:
    """Libraries that allocate for themselves say so in the text alone."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(mark in str(error) for mark in OUT_OF_MEMORY)


def give_back_freed() -> None:
    """Hands the heap's free pages to the system. glibc keeps those of a decode, some 200 MB, for the next one.

    Takes about 15 ms and stops nobody. Another C library is left to itself.
    """
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def use_few_arenas() -> None:
    """glibc keeps a heap for each thread, and what each has freed; two for all of them hold 10 to 40 MB less.

    For the start of a process. Tensors are large, so that threads hardly wait for each other. (mallopt(3))
    """
    if (option := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        option(ARENA_MAX, 2)
