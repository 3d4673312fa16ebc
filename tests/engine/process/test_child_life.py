"""A child that is bound to its parent ends when the parent is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.process.system import bind_to_parent

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a child of its parent's death")
PARENT = """
import subprocess, sys, time
from engine.process.system import bind_to_parent
child = subprocess.Popen(bind_to_parent([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"]))
print(child.pid, flush=True)
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@ON_LINUX
def test_the_child_of_a_killed_parent_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().strip() for _ in range(2)}
        child = max(int(line) for line in lines)  # the other line is the child's
        assert is_alive(child)
        os.kill(parent.pid, signal.SIGKILL)
    for _ in range(100):
        if not is_alive(child):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {child} outlives its parent")


@ON_LINUX
def test_a_child_whose_parent_is_dead_already_does_not_start() -> None:
    command = bind_to_parent([sys.executable, "-c", "print('started')"])
    command[command.index(str(os.getpid()))] = "1"
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")


def test_arguments_and_exit_code_pass_through() -> None:
    command = bind_to_parent([sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "a b", "-c"])
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (7, "['a b', '-c']\n")
