"""`darkroom bench discord`: measures the bot over the loopback Discord, in its own process. Needs a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from bot.domain.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
REQUIRED_PACKAGES = ("simcord", "jsonschema", "psutil")  # packages of the extra `dev`


def run(args: Sequence[str], root: Path = ROOT) -> int:
    """Return the exit code. Raises `UserError` if the tests or their packages are missing."""
    if obstacle := find_obstacle(root):
        raise UserError(obstacle)
    command = [sys.executable, "-m", "tools.loopback.bench", *args]
    return subprocess.run(command, env=make_environment(root), check=False).returncode


def find_obstacle(root: Path = ROOT) -> str:
    """Return why nothing can be measured over the loopback Discord, as one sentence; empty if it can."""
    missing_packages = [name for name in REQUIRED_PACKAGES if find_spec(name) is None]
    if missing_packages or not (root / "tools" / "loopback" / "bench.py").exists():
        return "This measures over the loopback Discord: run it in a checkout, after pip install -e '.[dev]'."
    return ""


def make_environment(root: Path = ROOT) -> dict[str, str]:
    """Return the environment in which the tests' modules are found."""
    return {**os.environ, "PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"}
