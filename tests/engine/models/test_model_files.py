"""Loading models: by name, from a folder, and never from a pickle; the properties of a family."""

from __future__ import annotations

import logging as levels
import shutil
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import logging
from safetensors.torch import save_file

from engine.contract import JobRejected
from engine.models import load_model, make_model_name, prompt_chunks, text_embedder
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.files import model_source
from engine.models.files.model_source import fingerprint_folder
from engine.models.library_logging import silence_libraries


def test_the_embedded_model_has_its_known_properties(embedded: StableDiffusion) -> None:
    assert (embedded.name, embedded.size, embedded.multiple, embedded.tokens) == ("embedded", 64, 16, 24)
    assert embedded.latent_shape(64, 96) == (8, 24, 16)
    assert len(embedded.revision) == 12


def test_texts_are_encoded_alone_in_one_shape_and_cached(
    embedded: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_chunks, "MAX_TEXTS", 3)
    first = embedded.encode_text("a cat")
    assert first.shape == embedded.encode_text("a very " + "very " * 50 + "long text").shape == (24, 384)
    assert embedded.encode_text("a cat") is first
    for text in ("one", "two", "three"):
        embedded.encode_text(text)
    repeated_encoding = embedded.encode_text("a cat")
    assert repeated_encoding is not first
    assert torch.equal(repeated_encoding, first)


def test_a_folder_is_loaded_by_path_and_by_name_in_the_data_folder(small_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(small_folder, tmp_path / "models" / "tiny")
    by_path = load_model(str(small_folder), tmp_path)
    by_name = load_model("tiny", tmp_path)
    assert by_name.name == "tiny"
    assert by_path.name == make_model_name(str(small_folder))
    assert by_path.revision == by_name.revision
    assert isinstance(by_path, StableDiffusion)
    assert isinstance(by_name, StableDiffusion)
    assert torch.equal(by_path.encode_text("cat"), by_name.encode_text("cat"))
    assert by_name.decode(torch.zeros(by_name.latent_shape(32, 48))).size == (32, 48)


def test_a_changed_weight_changes_the_revision(small_folder: Path, tmp_path: Path) -> None:
    changed_folder = tmp_path / "changed"
    shutil.copytree(small_folder, changed_folder)
    weights = next((changed_folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert fingerprint_folder(changed_folder) != fingerprint_folder(small_folder)


def test_the_fingerprint_of_a_large_file_covers_the_ends_of_each_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_source, "FULL_HASH_BYTES", 1000)
    path = tmp_path / "large.safetensors"
    weights = {name: torch.zeros(5000) for name in "abc"}
    save_file(weights, path)
    fingerprints = {model_source.fingerprint_file(path)}
    for name, index in (("a", 0), ("b", 0), ("b", -1), ("c", -1)):
        save_file(weights | {name: torch.zeros(5000).index_fill(0, torch.tensor(index), 1.0)}, path)
        fingerprints.add(model_source.fingerprint_file(path))
    save_file({"d" if name == "c" else name: each for name, each in weights.items()}, path)
    assert len(fingerprints | {model_source.fingerprint_file(path)}) == 6


@pytest.mark.parametrize("content", [b"\xff" * 3000, (2).to_bytes(8, "little") + b"[]" + bytes(3000), bytes(3000)])
def test_the_fingerprint_of_any_other_large_file_covers_its_ends(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_source, "FULL_HASH_BYTES", 1000)
    path = tmp_path / "large.model"
    path.write_bytes(content)
    before = model_source.fingerprint_file(path)
    path.write_bytes(content[:-1] + b"x")
    assert model_source.fingerprint_file(path) != before


def test_a_changed_tokenizer_changes_the_revision(small_folder: Path, tmp_path: Path) -> None:
    changed_folder = tmp_path / "changed"
    shutil.copytree(small_folder, changed_folder)
    before = fingerprint_folder(changed_folder)
    (changed_folder / "tokenizer").mkdir(exist_ok=True)
    (changed_folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\nc a</w>\n")
    assert fingerprint_folder(changed_folder) != before


def test_libraries_stay_quiet_until_the_last_load_ends() -> None:
    before = logging.get_verbosity()
    first = ExitStack()
    second = ExitStack()
    first.enter_context(silence_libraries())
    second.enter_context(silence_libraries())
    first.close()
    assert logging.get_verbosity() == levels.ERROR
    second.close()
    assert logging.get_verbosity() == before != levels.ERROR


def test_pickled_weights_are_refused(small_folder: Path, tmp_path: Path) -> None:
    pickle_folder = tmp_path / "pickled"
    shutil.copytree(small_folder, pickle_folder)
    next((pickle_folder / "unet").glob("*.safetensors")).unlink()
    torch.save({}, pickle_folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(JobRejected, match="only as a pickle, which can run code") as error:
        load_model(str(pickle_folder), tmp_path)
    assert error.value.blame == "model"


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobRejected, match=r"The model empty has no model_index\.json that can be read"):
        load_model(str(tmp_path / "empty"), tmp_path)


def test_corrupt_weights_are_refused(small_folder: Path, tmp_path: Path) -> None:
    corrupt_folder = tmp_path / "spoilt"
    shutil.copytree(small_folder, corrupt_folder)
    next((corrupt_folder / "unet").glob("*.safetensors")).write_bytes(b"rubbish")
    with pytest.raises(JobRejected, match="weights of the model's unet cannot be read: they are no safetensors"):
        load_model(str(corrupt_folder), tmp_path)


def test_a_network_that_also_takes_depth_is_refused(small_folder: Path, tmp_path: Path) -> None:
    depth_folder = tmp_path / "depth"
    shutil.copytree(small_folder, depth_folder)
    network: Any = import_module("diffusers").UNet2DConditionModel
    network.from_config(network.load_config(small_folder / "unet") | {"in_channels": 5}).save_pretrained(
        depth_folder / "unet"
    )
    with pytest.raises(JobRejected, match="The model depth needs more than a prompt") as error:
        load_model(str(depth_folder), tmp_path)
    assert error.value.blame == "model"


def test_an_altered_text_encoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_embedder, "MINILM_SHA256", "0" * 64)
    with pytest.raises(JobRejected, match="not the one we know"):
        text_embedder.load_text_encoder()


@pytest.mark.parametrize(
    ("model_name", "name"),
    [
        ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5"),
        ("/models/my model/", "my-model"),
        ("..hidden", "hidden"),
    ],
)
def test_a_name_is_safe_in_a_subject_and_a_file(model_name: str, name: str) -> None:
    assert make_model_name(model_name) == name


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(JobRejected, match="needs a name"):
        make_model_name("///")
