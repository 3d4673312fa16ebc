"""Types are learned by one thread at a time: msgspec dies if a second one reads a type meanwhile."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, threading
import msgspec
from engine.contract import decode, encode, convert

sys.setswitchinterval(1e-7)
for number in range(40):
    inner = [msgspec.defstruct(f"Inner{number}_{i}", [(f"f{j}", int | None, None) for j in range(8)]) for i in range(8)]
    outer = msgspec.defstruct(f"Outer{number}", [(f"a{i}", each) for i, each in enumerate(inner)])
    value = outer(*(each(*range(8)) for each in inner))
    payload, plain, barrier, seen = encode(value), msgspec.to_builtins(value), threading.Barrier(6), []

    def read(odd):
        barrier.wait()
        seen.append(convert(plain, outer) if odd else decode(payload, outer))

    threads = [threading.Thread(target=read, args=(i % 2,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [value] * 6
"""


def test_six_threads_read_a_new_type_at_once() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100, check=False)
    assert (result.returncode, result.stderr) == (0, "")
