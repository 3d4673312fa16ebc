"""The process's memory: the C library's heap stays small (without glibc, this does nothing), and no collection of
garbage looks at the objects of a start.
"""

from __future__ import annotations

import ctypes
import gc

# of glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_ARENA_MAX = -8
TRIM_BYTES = 128 * 1024  # glibc's own threshold, before it raises it


def trim_heap() -> None:
    """Return the heap's free pages to the system. glibc keeps those of a decode, some 200 MB, for the next one.

    Takes about 15 ms and blocks no other thread. Does nothing with another C library.
    """
    if (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        malloc_trim(0)


def return_freed_blocks() -> None:
    """Return large blocks to the system as soon as they are freed, for the start of a process.

    Else glibc raises its threshold with each block, and the memory of a film stays. A worker does not want this: it
    allocates the same tensors at every step. Source: mallopt(3).
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


def limit_heap_arenas() -> None:
    """Share two heaps between all threads, for the start of a process. A heap for each would hold 10 to 40 MB more.

    Tensors and pictures are large, so threads hardly wait for each other. Source: mallopt(3).
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_ARENA_MAX, 2)


def exempt_from_collection() -> None:
    """Exempt every object of now from garbage collections, for the start of a process.

    A full collection looks at all objects and blocks every thread: the modules' cost it 0.08 s in the bot and 0.2 s in
    a worker. What a later collection should free, as a model, must not exist yet.
    """
    gc.freeze()
