"""From a name on the hub to a picture: a small SDXL is added, and drawn with under the operator's defaults."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from bot.__main__ import app
from model_hub.repositories import make_repository, read_folder
from model_hub.server import ModelHub


@pytest.mark.slow
def test_a_small_sdxl_is_added_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    save_small_pipeline("sdxl", tmp_path / "tiny-sdxl")
    files = read_folder(tmp_path / "tiny-sdxl")
    with ModelHub({"tiny-sdxl": make_repository(files)}).open() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        app(["models", "add", "tiny-sdxl", "--quantize", "int8", "--data", str(data)], standalone_mode=False)
    app(["models", "default", "tiny-sdxl", "--steps", "3", "--sampler", "euler", "--data", str(data)],
        standalone_mode=False)  # fmt: skip
    app(["models", "default", "tiny-sdxl", "--data", str(data)], standalone_mode=False)
    capsys.readouterr()
    app(["imagine", "a castle", "--out", str(out), "--json", "--seed", "1", "--count", "1", "--data", str(data)],
        standalone_mode=False)  # fmt: skip
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert "tiny-sdxl is loaded with its network in int8" in captured.err
    assert (result["steps"], result["sampler"]) == (3, "euler")
    [content] = [Path(path).read_bytes() for path in result["pictures"]]
    assert Image.open(io.BytesIO(content)).size == (64, 64)
    assert b"tiny-sdxl" in content
