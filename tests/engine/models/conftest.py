"""Fixtures of the tests of model families: small models of random weights, each with its unmodified pipeline."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine.models import load_folder


@pytest.fixture(scope="module")
def load_small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Any]]:
    """(family, pipeline) of a kind, loaded separately from one folder."""
    loaded_models: dict[str, tuple[Any, Any]] = {}

    def open_kind(kind: str) -> tuple[Any, Any]:
        if kind not in loaded_models:
            folder: Path = tmp_path_factory.mktemp("small") / kind
            save_small_pipeline(kind, folder)
            pipeline = import_module("diffusers").DiffusionPipeline.from_pretrained(folder)
            pipeline.set_progress_bar_config(disable=True)
            loaded_models[kind] = load_folder(str(folder), kind), pipeline
        return loaded_models[kind]

    return open_kind


@pytest.fixture
def watch_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[int]]:
    """Returns the rows of each forward that a family runs from now on."""

    def watch(family: Any) -> list[int]:
        rows: list[int] = []
        denoise = family.denoise

        def count_rows(x: Any, *arguments: Any) -> Any:
            rows.append(len(x))
            return denoise(x, *arguments)

        monkeypatch.setattr(family, "denoise", count_rows)
        return rows

    return watch
