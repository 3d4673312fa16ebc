"""What the libraries tell of a device without CUDA does not reach the terminal, whichever module imports them first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_diffusers_says_nothing_where_it_is_imported_before_the_models() -> None:
    code = "import engine.contract, diffusers.models.modeling_utils"
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stderr) == (0, "")
