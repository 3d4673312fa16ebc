"""The operator's choices for models, and how a worker's profile takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.jobs.model_catalog import SHIPPED_MODEL
from engine.contract import JobRejected
from engine.process.memory_requests import QuantizationRequests
from engine.process.model_settings import (
    SETTINGS_FILE,
    ModelSettings,
    ModelSettingsError,
    ModelSettingsFile,
    find_requests,
    read_model_settings,
    write_model_settings,
)


def test_they_are_written_and_read(tmp_path: Path) -> None:
    assert read_model_settings(tmp_path) == ModelSettingsFile()
    chosen = ModelSettingsFile("sdxl").with_model("sdxl", ModelSettings(steps=30, sampler="dpmpp_2m", guidance=6.5))
    write_model_settings(tmp_path, chosen)
    assert read_model_settings(tmp_path) == chosen
    assert chosen.without_model("sdxl") == ModelSettingsFile()


@pytest.mark.parametrize("content", ["{", "[]", '{"models": {"a": {"steps": 0}}}', '{"models": {"../a": {}}}'])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / SETTINGS_FILE).write_text(content)
    with pytest.raises(ModelSettingsError, match=r"models\.json cannot be read .*: mend it, or delete it"):
        read_model_settings(tmp_path)


def test_a_profile_takes_them_as_its_defaults() -> None:
    profile = ModelSettings(steps=12, sampler="euler", guidance=2.0).apply(SHIPPED_MODEL)
    assert (profile.steps, profile.sampler, profile.guidance) == (12, "euler", 2.0)
    assert ModelSettings().apply(SHIPPED_MODEL) == SHIPPED_MODEL
    assert ModelSettings(guidance=2.0).apply(SHIPPED_MODEL).steps == SHIPPED_MODEL.steps


def test_a_sampler_that_the_model_lacks_leaves_its_steps_too() -> None:
    assert "lcm" not in SHIPPED_MODEL.samplers
    profile = ModelSettings(steps=4, sampler="lcm", guidance=1.5).apply(SHIPPED_MODEL)
    assert (profile.steps, profile.sampler) == (SHIPPED_MODEL.steps, SHIPPED_MODEL.sampler)
    assert profile.guidance == 1.5


def test_the_operators_quantisation_holds_unless_the_command_line_names_one(tmp_path: Path) -> None:
    write_model_settings(tmp_path, ModelSettingsFile().with_model("sdxl", ModelSettings(quantize="int8")))
    automatic = QuantizationRequests()
    none = QuantizationRequests("none")
    assert find_requests("sdxl", automatic, tmp_path) == ("sdxl", QuantizationRequests("int8"))
    assert find_requests("sdxl=nf4", automatic, tmp_path) == ("sdxl", QuantizationRequests("nf4"))
    assert find_requests("sdxl=auto", automatic, tmp_path) == ("sdxl", automatic)
    assert find_requests("sdxl", none, tmp_path) == ("sdxl", none)
    assert find_requests("other", automatic, tmp_path) == ("other", automatic)
    (tmp_path / SETTINGS_FILE).write_text("{")
    with pytest.raises(JobRejected, match="mend it, or delete it"):
        find_requests("sdxl", automatic, tmp_path)
