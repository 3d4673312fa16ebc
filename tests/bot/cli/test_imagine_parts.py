"""`darkroom imagine` with further parts of a model: from the command's text to the picture of the real engine."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from bot.app.settings import load_settings
from bot.cli.imagine.job_inputs import JobInputs
from bot.cli.imagine.local_engine import generate
from bot.cli.imagine.progress_display import ProgressDisplay
from bot.cli.imagine.result import ImagineResult
from bot.domain.errors import UserError
from engine.calibration.calibration import Calibration
from tests.engine.models.test_textual_inversion import write_embedding
from tests.engine.models.text_models import save_model

CALIBRATION = Calibration("float32", 4, 10, "ddim", 1.0, 1.0, 1.0, {1: 1.0}, {"float32": 1.0})
OPTIONS = "--count 1 --steps 3 --seed 7"


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`draw(text, **inputs)`: draws with a small model, whose data folder is `tmp_path`."""
    model = save_model("sd", tmp_path / "small")
    monkeypatch.setattr("engine.calibration.calibration.calibrate", lambda family, path: CALIBRATION)

    def run(text: str, **inputs: Any) -> ImagineResult:
        settings, prompt = load_settings(data=tmp_path), f"{text} {OPTIONS}"
        with ProgressDisplay(Console(file=io.StringIO()), 1) as display:
            return generate(
                prompt, {"model": str(model)}, settings, inputs=JobInputs(**inputs), film=False, display=display
            )

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
    plain, changed = draw("a cat"), draw("a cat by <toy> --vae mse --clip-skip 2")
    assert "Clip skip" not in read_parameters(plain)
    parameters = read_parameters(changed)
    assert all(part in parameters for part in ("VAE: mse, VAE hash: ", "Clip skip: 2", 'TI hashes: "Toy: ')), parameters
    assert read_pixels(draw("a cat by TOY --vae MSE --clip-skip 2")) == read_pixels(changed) != read_pixels(plain)
