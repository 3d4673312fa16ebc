"""What a process asks of the operating system: whole files, a child that ends with it, a small heap."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write the file, creating its folder. Raises OSError, and then the old file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        temporary_path = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            temporary_path.replace(path)
        except BaseException:
            temporary_path.unlink(missing_ok=True)
            raise


_BIND_AND_EXEC = """\
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(parent):
    sys.exit(1)
os.execv(command[0], command)
"""  # 1: PR_SET_PDEATHSIG; a parent that died before the call sends no signal


def bind_to_parent(command: Sequence[str]) -> list[str]:
    """Return a command line that runs `command`, and ends it with SIGTERM when this process ends.

    Start it from a thread that lives as long as the process: the kernel looks at the thread. `command` begins with the
    program's path.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _BIND_AND_EXEC, str(os.getpid()), *command]


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
