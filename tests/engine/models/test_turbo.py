"""A model's own turbo LoRA, in its folder: found, announced and applied, without any folder of LoRAs."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine.contract import JobRejected, Lora
from engine.models import load_folder
from engine.models.files.model_source import fingerprint_folder
from engine.models.lora_files import find_loras
from shared.small_families import build_recipe, by_engine, error, write_turbo

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

Make = Callable[..., Any]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """The folder of a small model without a turbo LoRA."""
    save_small_pipeline("sd", tmp_path / "model")
    return tmp_path / "model"


def test_the_models_own_turbo_changes_pictures_but_not_its_revision(
    model_folder: Path, recipe: Make, job: Make, finish: Make
) -> None:
    plain: Any = load_folder(str(model_folder), "sd")
    assert plain.list_loras() == ()
    with pytest.raises(JobRejected, match="has no LoRA called turbo"):
        plain.with_loras(build_recipe(recipe, plain, loras=(Lora("turbo"),)))
    write_turbo(model_folder, plain.pipeline)
    family: Any = load_folder(str(model_folder), "sd")
    assert (family.revision, fingerprint_folder(model_folder)) == (plain.revision, plain.revision)
    (turbo,) = family.list_loras()
    assert (turbo.name, turbo.weight) == ("turbo", 1.0)
    settings: dict[str, Any] = {"sampler": "lcm", "steps": 4, "guidance": 1.0}
    (with_turbo,) = by_engine(family, build_recipe(recipe, family, loras=(turbo,), **settings), job, finish)
    (without,) = by_engine(family, build_recipe(recipe, family, **settings), job, finish)
    assert error(with_turbo, without) > 1e-3
    assert error(without, by_engine(plain, build_recipe(recipe, plain, **settings), job, finish)[0]) == 0


def test_the_models_own_turbo_wins_over_one_in_the_folder_of_loras(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family: Any = load_folder(str(model_folder), "sd")
    write_turbo(tmp_path / "loras", family.pipeline, seed=2)
    family.lora_folder = tmp_path / "loras"
    (shared,) = family.list_loras()
    write_turbo(model_folder, family.pipeline)
    with caplog.at_level(logging.WARNING):
        (own,) = family.list_loras()
        assert family.list_loras() == (own,)
    assert (shared.name, own.name) == ("turbo", "turbo")
    assert own.revision != shared.revision
    assert [one.path for one in find_loras(tmp_path / "loras", model_folder)] == [
        model_folder / "turbo" / "pytorch_lora_weights.safetensors"
    ]
    assert sum("is left out for models that have their own" in record.message for record in caplog.records) == 1


def test_a_lora_called_turbo_in_other_letters_gives_way_too(model_folder: Path, tmp_path: Path) -> None:
    """Prompts name LoRAs in any case, so of two the last would win."""
    family: Any = load_folder(str(model_folder), "sd")
    write_turbo(model_folder, family.pipeline)
    (tmp_path / "loras").mkdir()
    own = model_folder / "turbo" / "pytorch_lora_weights.safetensors"
    for copied in (tmp_path / "loras" / "Turbo.safetensors", model_folder / "turbo.safetensors"):
        shutil.copyfile(own, copied)
    family.lora_folder = tmp_path / "loras"
    assert [lora.name for lora in family.list_loras()] == ["turbo"]
    assert [one.path for one in find_loras(tmp_path / "loras", model_folder)] == [own]


def test_a_folder_called_turbo_without_weights_is_no_turbo(model_folder: Path) -> None:
    (model_folder / "turbo").mkdir()
    (model_folder / "turbo" / "notes.txt").write_text("in training")
    family: Any = load_folder(str(model_folder), "sd")
    assert family.list_loras() == ()
