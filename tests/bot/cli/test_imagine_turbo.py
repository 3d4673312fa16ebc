"""`darkroom imagine --turbo` of the embedded model, from the command's text to the picture."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from bot.app.settings import load_settings
from bot.cli.imagine.job_inputs import ImagineRequest
from bot.cli.imagine.local_engine import generate
from bot.cli.imagine.progress_display import ProgressDisplay
from bot.cli.options import EngineOptions, load_engine
from engine.calibration.calibration import Calibration
from engine.models.families.embedded import build_pipeline, load_embedded
from engine.process.model_settings import WEIGHTS_FOLDER
from shared.small_families import write_turbo

CALIBRATION = Calibration("float32", 4, 30, "ddim", 1.0, 1.0, 1.0, {1: 1.0}, {"float32": 1.0})

UNQUANTIZED = EngineOptions(quantize="none", quantize_text="none")


@pytest.mark.slow
def test_the_embedded_model_draws_with_its_turbo_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    for part in WEIGHTS_FOLDER.iterdir():
        if part.name != "turbo":
            (weights / part.name).symlink_to(part)
    write_turbo(weights, build_pipeline())
    monkeypatch.setattr("engine.models.families.embedded.load_embedded", partial(load_embedded, weights=weights))
    monkeypatch.setattr("engine.calibration.calibration.calibrate", lambda family, path: CALIBRATION)
    output = io.StringIO()
    request = ImagineRequest("a red fox --count 2 --seed 7 --turbo", {}, with_film=True)
    settings = load_settings(data=tmp_path / "data")
    with ProgressDisplay(Console(file=output), 2) as screen:
        result = generate(request, settings, load_engine(settings, UNQUANTIZED), screen)
    assert (result.steps, result.sampler, len(result.pictures)) == (4, "lcm", 2)
    assert result.film
    parameters = Image.open(io.BytesIO(result.pictures[0])).info["parameters"]
    assert all(part in parameters for part in ("<lora:turbo:1>", "Steps: 4, Sampler: LCM", "CFG scale: 1,")), parameters
    assert "has no turbo" not in output.getvalue()
