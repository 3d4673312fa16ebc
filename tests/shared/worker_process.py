"""The command line of a worker, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys


def run_worker_command(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean_environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    return subprocess.run(
        [sys.executable, "-m", "engine", *args],
        env=clean_environment | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
