"""A thread that has computed leaves no team of OpenMP threads behind, and its next result has the same bits."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, os
import torch
from engine.device.core_turns import CoreTurns, WorkKind
from engine.device.core_turns import compute_in_thread, release_team

def count_threads():
    return len(os.listdir("/proc/self/task"))

def multiply():
    return torch.ones(512, 512) @ torch.ones(512, 512)

async def count_threads_after_computing():
    await compute_in_thread(multiply)
    return count_threads() - 1  # the pool's own thread stays

torch.set_num_threads(3)
counts = [count_threads()]
first = multiply()
counts.append(count_threads())
release_team()
counts.append(count_threads())
assert torch.equal(multiply(), first)
release_team()
counts.append(asyncio.run(count_threads_after_computing()))
cores = CoreTurns()
for kind in (WorkKind.STEP, WorkKind.PICTURE):
    with cores.hold(kind):
        multiply()
    counts.append(count_threads())
print(*(count - counts[0] for count in counts))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it counts the threads in /proc")
def test_a_team_ends_when_another_thread_may_compute() -> None:
    process = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["0", "2", "0", "0", "2", "0"]
