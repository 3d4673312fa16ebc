"""Which files of a repository are downloaded."""

from __future__ import annotations

import json

import pytest

from engine.hub.part_selection import read_parts, select_files
from engine.hub.repository import HubError, RepositoryFile
from shared.hub_models import FILES, INDEX, OTHER_FILES


def files_of(*paths: str) -> list[RepositoryFile]:
    return [RepositoryFile(path, 1) for path in ("model_index.json", *paths)]


def selected(*paths: str, part: str = "unet") -> list[str]:
    return [file.path.removeprefix(f"{part}/") for file in select_files(files_of(*paths), [part], "o/n")[1:]]


def test_only_weights_configurations_and_tokenizers_of_the_parts_are_taken() -> None:
    parts = read_parts(json.dumps(INDEX).encode(), "o/n")
    assert parts == ["unet", "tokenizer", "scheduler"]
    files = [RepositoryFile(path, len(content)) for path, content in (FILES | OTHER_FILES).items()]
    assert {file.path for file in select_files(files, parts, "o/n")} == set(FILES)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["config.json", "model.safetensors"], ["config.json", "model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], ["model.fp16.safetensors"]),
        (["model.safetensors", "model.non_ema.safetensors"], ["model.safetensors"]),
        (
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "model.bin.index.json",
            ],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (
            [
                "model.fp16-00001-of-00001.safetensors",
                "model.safetensors.index.fp16.json",
                "model-00001-of-00001.safetensors",
                "model.safetensors.index.json",
            ],
            ["model.fp16-00001-of-00001.safetensors", "model.safetensors.index.fp16.json"],
        ),
        (["tokenizer.json", "spiece.model", "chat_template.jinja", "run.py"], None),
    ],
)
def test_one_set_of_weights_is_taken(paths: list[str], expected: list[str] | None) -> None:
    expected = ["chat_template.jinja", "spiece.model", "tokenizer.json"] if expected is None else expected
    assert selected(*(f"unet/{path}" for path in paths)) == expected


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        (b"[]", "names no pipeline"),
        (b"{", "cannot be read"),
        (b'{"_class_name": ["custom", "Pipeline"]}', "brings its own code"),
        (b'{"_class_name": "P", "unet": ["my_code", "Net"]}', "no part of diffusers"),
        (b'{"_class_name": "P", "../up": ["diffusers", "Net"]}', "no part of diffusers"),
    ],
)
def test_an_index_that_cannot_be_used_is_refused(index: bytes, sentence: str) -> None:
    with pytest.raises(HubError, match=sentence):
        read_parts(index, "o/n")


def test_pickles_and_missing_parts_are_refused() -> None:
    with pytest.raises(HubError, match="only there as a pickle"):
        selected("unet/config.json", "unet/diffusion_pytorch_model.bin")
    with pytest.raises(HubError, match="lacks the folder unet"):
        selected("vae/config.json")
