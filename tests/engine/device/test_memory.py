"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from engine.process.system import trim_heap

# 100 MB in blocks that the heap keeps
BLOCK = 64 * 1024
COUNT = 1600


def resident_mb() -> float:
    """The resident memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and glibc are Linux's")
def test_the_heap_returns_freed_memory_to_the_system() -> None:
    c_library = ctypes.CDLL(None)
    c_library.malloc.restype = ctypes.c_void_p
    c_library.malloc.argtypes = [ctypes.c_size_t]
    c_library.free.argtypes = [ctypes.c_void_p]
    blocks = [c_library.malloc(BLOCK) for _ in range(COUNT)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    for block in blocks[:-1]:  # the last one keeps the heap from shrinking at its end
        c_library.free(block)
    before = resident_mb()
    trim_heap()
    assert resident_mb() < before - 80
    c_library.free(blocks[-1])


RETURNS_BLOCKS = """
from engine.process.system import limit_heap_arenas, return_freed_blocks
from pathlib import Path
def resident():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) // 1024
limit_heap_arenas(), return_freed_blocks()
for size in (1, 4, 16):  # glibc would raise its threshold to each of them
    del_me = bytearray(size * 2**20)
    del del_me
before = resident()
blocks = [b"x" * (2**20 + number) for number in range(100)]
del blocks[:-1]  # the last one keeps the heap from shrinking at its end
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and glibc are Linux's")
def test_freed_blocks_go_back_at_once() -> None:
    completed = subprocess.run([sys.executable, "-c", RETURNS_BLOCKS], capture_output=True, text=True, check=True)
    assert int(completed.stdout) < 20


EXEMPT_AND_COLLECT = """
import gc
from engine.process.system import exempt_from_collection

class Node: pass

def make_cycle():
    node = Node()
    node.itself = node

exempt_from_collection()
assert gc.get_freeze_count() > 1000
gc.collect()
make_cycle()
assert gc.collect() > 0
"""


def test_only_what_exists_at_the_start_is_exempt_from_collections() -> None:
    subprocess.run([sys.executable, "-c", EXEMPT_AND_COLLECT], check=True)
