"""From names on the hub to a picture: a small SDXL and a ControlNet are added, and drawn with."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from typing import Any, cast

import pytest
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from PIL import Image, ImageDraw

from benchmarks.fixtures.small_controls import build_controlnet, save_control
from benchmarks.fixtures.small_pipelines import save_small_pipeline
from bot.__main__ import app
from tools.model_hub.repositories import make_repository, read_folder
from tools.model_hub.server import ModelHub


def draw_sketch() -> Image.Image:
    sketch = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(sketch).rectangle((16, 24, 48, 60), outline="black", width=3)
    return sketch


@pytest.mark.slow
def test_a_small_sdxl_and_a_control_network_are_added_and_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    out = tmp_path / "out"
    save_small_pipeline("sdxl", tmp_path / "tiny-sdxl")
    pipeline = cast(Any, StableDiffusionXLPipeline).from_pretrained(tmp_path / "tiny-sdxl")
    save_control(build_controlnet(pipeline), tmp_path / "canny")
    draw_sketch().save(tmp_path / "sketch.png")
    repositories = {name: make_repository(read_folder(tmp_path / name)) for name in ("tiny-sdxl", "canny")}

    def run(command: str) -> None:
        app([*shlex.split(command), "--data", str(data)], standalone_mode=False)

    with ModelHub(repositories).open() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        run("models add canny")
        run("models add tiny-sdxl --quantize int8")
    run("models default tiny-sdxl --steps 3 --sampler euler")
    run("models default tiny-sdxl")
    capsys.readouterr()
    run(f"imagine 'a castle' --out '{out}' --json --seed 1 --count 1 --control 'canny:{tmp_path}/sketch.png'")
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert "tiny-sdxl is loaded with its network in int8" in captured.err
    assert (result["steps"], result["sampler"]) == (3, "euler")
    [content] = [Path(path).read_bytes() for path in result["pictures"]]
    assert Image.open(io.BytesIO(content)).size == (64, 64)
    assert b"tiny-sdxl" in content
    assert b"canny" in content
