"""Types are learned by one thread at a time: msgspec dies if a second one reads a type meanwhile."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, threading
import msgspec
from engine.contract import convert, decode, decode_json, encode

sys.setswitchinterval(1e-7)
for number in range(40):
    inner = [msgspec.defstruct(f"Inner{number}_{i}", [(f"f{j}", int | None, None) for j in range(8)]) for i in range(8)]
    outer = msgspec.defstruct(f"Outer{number}", [(f"a{i}", each) for i, each in enumerate(inner)])
    value = outer(*(each(*range(8)) for each in inner))
    sources = (decode, encode(value)), (convert, msgspec.to_builtins(value)), (decode_json, msgspec.json.encode(value))
    barrier, seen = threading.Barrier(6), []

    def read(function, source):
        barrier.wait()
        seen.append(function(source, outer))

    threads = [threading.Thread(target=read, args=each) for each in sources * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [value] * 6
"""


def test_six_threads_read_a_new_type_at_once() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100, check=False)
    assert (result.returncode, result.stderr) == (0, "")
