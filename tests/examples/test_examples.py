"""Each example of `examples/` draws a picture with a running Darkroom and saves it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from shared.running_darkroom import ROOT, Darkroom

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
EXAMPLES = ROOT / "examples"
PROGRAMS = {".py": sys.executable, ".sh": "bash", ".mjs": "node"}
NEEDS = {".sh": ("bash", "curl", "python3"), ".mjs": ("node",), ".py": ()}


@pytest.mark.parametrize(
    "name", ["draw.sh", "draw.mjs", "draw.py", "mcp_client.py", "openai_stream.py", "webui_txt2img.py"]
)
async def test_an_example_draws_and_saves_a_picture(darkroom: Darkroom, tmp_path: Path, name: str) -> None:
    kind = Path(name).suffix
    if missing := [program for program in NEEDS[kind] if shutil.which(program) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "DARKROOM_DATA": str(darkroom.data),
        "DARKROOM_URL": darkroom.url,
        "DARKROOM_API_KEY": darkroom.key,
    }
    process = await asyncio.create_subprocess_exec(
        PROGRAMS[kind],
        str(EXAMPLES / name),
        'a "lamp"',
        cwd=tmp_path,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    with Image.open(tmp_path / output.decode().strip()) as picture:
        assert picture.format == "PNG"
