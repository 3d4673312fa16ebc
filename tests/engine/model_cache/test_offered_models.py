"""A worker without `--model` offers what was added, with the operator's defaults; what does not fit is left out."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine.contract import JobRejected
from engine.hub.added_models import MANIFEST_FILE, ModelManifest, list_offered, write_manifest
from engine.model_cache.discovery import LoadContext, discover_models, load_models
from engine.model_cache.loaded_models import LoadedModels
from engine.model_cache.offered_models import choose_models
from engine.process.memory_requests import QuantizationRequests
from engine.process.model_settings import ModelSettings, ModelSettingsFile, write_model_settings


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with the added models `good` and `broken`, and a folder of the operator's."""
    for name in ("good", "broken", "own"):
        save_small_pipeline("sd", tmp_path / "models" / name)
    for name in ("good", "broken"):
        write_manifest(tmp_path / "models" / name / MANIFEST_FILE, ModelManifest(f"owner/{name}", "a" * 40, ()))
    shutil.rmtree(tmp_path / "models" / "broken" / "unet")
    return tmp_path


def context(data: Path) -> LoadContext:
    return LoadContext(data, torch.device("cpu"), None, "test")


def test_the_default_model_is_first_and_what_cannot_be_used_is_left_out(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert list_offered(data) == ["embedded", "broken", "good"]
    write_model_settings(data, ModelSettingsFile("own"))
    assert list_offered(data) == ["own", "embedded", "broken", "good"]
    with caplog.at_level(logging.WARNING):
        assert choose_models(("added",), context(data), 10**12) == ["own", "embedded", "good"]
    assert "broken is not offered: " in caplog.text
    assert choose_models(("added", "broken"), context(data), 10**12)[-1] == "good", "a model named is not left out"


def test_a_model_that_does_not_fit_is_left_out(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    [good] = discover_models(["good"], context(data))
    with caplog.at_level(logging.WARNING):
        assert choose_models(("added", "own"), context(data), good.size - 1) == ["own"]
    assert "good is not offered: The model good needs about" in caplog.text
    assert choose_models(("good",), context(data), good.size - 1) == ["good"]


def test_where_nothing_can_be_used_the_sentence_says_why(data: Path) -> None:
    shutil.rmtree(data / "models")
    with pytest.raises(JobRejected, match="The model embedded needs about"):
        choose_models(("added",), context(data), 1)


def test_a_look_at_each_model_says_nothing_of_how_it_is_loaded(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen = dataclasses.replace(context(data), quantize=QuantizationRequests("int8"), offload="auto")
    with caplog.at_level(logging.INFO):
        names = choose_models(("added",), chosen, 10**12)
        assert "good is loaded" not in caplog.text
        discover_models(names, chosen)
    assert "good is loaded with its" in caplog.text


@pytest.mark.may_block("loads a model")
def test_the_operators_defaults_are_announced_and_not_stored(data: Path) -> None:
    settings = ModelSettings(steps=7, sampler="euler", guidance=3.0)
    write_model_settings(data, ModelSettingsFile().with_model("good", settings))
    [(entry, calibration)] = load_models(discover_models(["good"], context(data)), context(data), LoadedModels(10**12))
    assert (entry.profile.steps, entry.profile.sampler, entry.profile.guidance) == (7, "euler", 3.0)
    assert calibration.sampler != "euler" or calibration.steps != 7
    write_model_settings(data, ModelSettingsFile())
    [again] = discover_models(["good"], context(data))
    assert again.catalog_entry is not None
    assert again.catalog_entry.model_profile.steps == calibration.steps
