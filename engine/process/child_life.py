"""Starts a program that ends when its parent ends, however the parent ends. Linux only; elsewhere it just starts it.

The new process asks the kernel for SIGTERM at its parent's death, then becomes the program. It cannot be done between
fork and exec in the parent, which has threads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

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
