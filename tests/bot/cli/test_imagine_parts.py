"""`darkroom imagine` with further parts of a model: from the command's text to the picture of the real engine."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from benchmarks.fixtures.small_controls import build_controlnet, save_small_ip_adapter
from bot.app.settings import load_settings
from bot.cli.imagine.job_inputs import ImagineRequest, JobInputs, split_controls, split_references
from bot.cli.imagine.local_engine import generate
from bot.cli.imagine.progress_display import ProgressDisplay
from bot.cli.imagine.result import ImagineResult
from bot.cli.options import EngineOptions, load_engine
from bot.domain.errors import UserError
from engine.calibration.calibration import Calibration
from shared.text_models import load_pipeline, save_model, write_embedding

CALIBRATION = Calibration("float32", 4, 10, "ddim", 1.0, 1.0, 1.0, {1: 1.0}, {"float32": 1.0})
OPTIONS = "--count 1 --steps 3 --seed 7"

UNQUANTIZED = EngineOptions(quantize="none", quantize_text="none")


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`draw(text, controls, references)`: draws with a small model, whose data folder is `tmp_path`."""
    model = save_model("sd", tmp_path / "small")
    monkeypatch.setattr("engine.calibration.calibration.calibrate", lambda family, path: CALIBRATION)

    def run(text: str, controls: Sequence[str] = (), references: Sequence[str] = ()) -> ImagineResult:
        settings = load_settings(data=tmp_path)
        (controls, sketches), (references, faces) = split_controls(controls), split_references(references)
        options = {"model": str(model), "control": controls, "reference": references}
        job_inputs = JobInputs(controls=tuple(sketches), references=tuple(faces))
        request = ImagineRequest(f"{text} {OPTIONS}", options, inputs=job_inputs)
        with ProgressDisplay(Console(file=io.StringIO()), 1) as display:
            return generate(request, settings, load_engine(settings, UNQUANTIZED), display)

    return run


def read_parameters(result: ImagineResult) -> str:
    with Image.open(io.BytesIO(result.pictures[0])) as picture:
        return str(picture.info["parameters"])


def read_pixels(result: ImagineResult) -> bytes:
    with Image.open(io.BytesIO(result.pictures[0])) as picture:
        return picture.tobytes()


@pytest.mark.slow
def test_a_small_model_draws_with_a_textual_inversion_another_autoencoder_and_clip_skip(
    draw: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="There are no further autoencoders for small"):
        draw("a cat --vae mse")
    write_embedding(tmp_path, "sd", "Toy", 2)
    shutil.copytree(tmp_path / "small" / "vae", tmp_path / "vaes" / "mse")
    plain = draw("a cat")
    changed = draw("a cat by <toy> --vae mse --clip-skip 2")
    assert "Clip skip" not in read_parameters(plain)
    parameters = read_parameters(changed)
    assert all(part in parameters for part in ("VAE: mse, VAE hash: ", "Clip skip: 2", 'TI hashes: "Toy: ')), parameters
    assert read_pixels(draw("a cat by TOY --vae MSE --clip-skip 2")) == read_pixels(changed) != read_pixels(plain)


@pytest.mark.slow
def test_a_small_model_follows_the_edges_of_a_sketch(draw: Any, tmp_path: Path) -> None:
    """As in `darkroom imagine "a castle" --control canny:sketch.png:0.8`."""
    build_controlnet(load_pipeline(tmp_path / "small")).save_pretrained(tmp_path / "controlnets" / "canny")
    sketch = tmp_path / "sketch.png"
    with Image.new("RGB", (32, 32)) as picture:
        picture.paste("white", (8, 8, 24, 24))
        picture.save(sketch)
    plain = draw("a castle")
    followed = draw("a castle", [f"canny:{sketch}:0.8"])
    parameters = read_parameters(followed)
    assert '"Module: canny, Model: canny [' in parameters, parameters
    assert "], Weight: 0.8, Guidance Start: 0, Guidance End: 1, Picture: " in parameters
    assert read_pixels(followed) == read_pixels(draw("a castle", [f"canny:{sketch}:0.8"])) != read_pixels(plain)
    weaker = draw("a castle", [f"canny:{sketch}:0"])
    assert read_pixels(weaker) == read_pixels(plain), "at a scale of 0 a control changes nothing"
    with pytest.raises(UserError, match="--control takes: canny"):
        draw("a castle", [f"pose:{sketch}"])


@pytest.mark.slow
def test_a_small_model_takes_over_a_reference_picture_beside_a_control(draw: Any, tmp_path: Path) -> None:
    """As in `darkroom imagine "a castle" --control canny:sketch.png --reference face.png:0.9`."""
    pipeline = load_pipeline(tmp_path / "small")
    build_controlnet(pipeline).save_pretrained(tmp_path / "controlnets" / "canny")
    save_small_ip_adapter(tmp_path / "ip-adapters" / "face", pipeline.unet)
    pictures = [tmp_path / f"{colour}.png" for colour in ("red", "blue")]
    for path in pictures:
        with Image.new("RGB", (32, 32), path.stem) as picture:
            picture.paste("white", (8, 8, 24, 24))
            picture.save(path)
    controls = [f"canny:{pictures[0]}"]
    results = [draw("a castle", controls, [f"{path}:0.9"]) for path in pictures]
    parameters = read_parameters(results[0])
    assert '"Module: canny, Model: canny [' in parameters, parameters
    assert 'ControlNet 1: "Module: ip-adapter, Model: face [' in parameters
    assert "Weight: 0.9, Picture: " in parameters
    pixels = [read_pixels(each) for each in (*results, draw("a castle", controls), draw("a castle"))]
    assert len(set(pixels)) == 4, "each picture and each network changes what is drawn"
