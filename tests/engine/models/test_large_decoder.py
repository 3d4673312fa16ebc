"""The large decoder: a folder `decoder/` beside a model's parts decodes finished pictures; a broken one is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file

from engine.contract import JobRejected
from engine.models import load_folder
from engine.models.autoencoder.large_decoder import LARGE_FACTOR, WEIGHTS_FILE, LargeDecoder
from engine.models.families.embedded import load_embedded
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.files.model_source import ModelSource, fingerprint_folder
from engine.models.loading.memory_estimate import estimate_bytes
from engine.models.loading.pipeline_loader import FormatChooser
from engine.output.decode_worker import decode_tiled
from engine.process.model_settings import WEIGHTS_FOLDER
from engine.upscaling import super_resolver
from shared.small_families import write_decoder


@pytest.fixture
def folder(small_folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "model"
    shutil.copytree(small_folder, target)
    write_decoder(target)
    return target


def load(folder: Path, **options: Any) -> StableDiffusion:
    family = load_folder(str(folder), "small", **options)
    assert isinstance(family, StableDiffusion)
    return family


def have_same_pixels(one: Image, other: Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def draw_latents(family: StableDiffusion, width: int, height: int) -> torch.Tensor:
    return torch.randn(family.latent_shape(width, height), generator=torch.Generator().manual_seed(1))


def test_finished_pictures_are_decoded_in_one_pass_four_times_as_wide(
    folder: Path, small_folder: Path, weights: Callable[..., Path]
) -> None:
    resolver = super_resolver.SuperResolver(weights())
    family = load(folder, resolver=resolver)
    plain = load(small_folder, resolver=resolver)
    latents = draw_latents(family, 32, 48)
    finished = family.finish(latents)
    assert finished.size == (128, 192)
    assert family.upscale_factor == LARGE_FACTOR
    assert family.upscaler == "large decoder"
    assert have_same_pixels(finished, load(folder).finish(latents))  # no super-resolver takes part
    config = family.pipeline.vae.config
    network = LargeDecoder.load(folder, family.pipeline.vae)
    assert network is not None
    with torch.inference_mode():
        pixels = network(latents[None] / config.scaling_factor)[0]
    expected = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    assert abs(np.asarray(finished, np.int16) - expected).max() <= 1
    assert have_same_pixels(family.decode(latents), plain.decode(latents))  # previews stay small
    assert plain.finish(latents).size == (128, 192)
    assert plain.upscaler != family.upscaler


def test_a_folder_without_a_large_decoder_stays_as_it_was(small_folder: Path) -> None:
    family = load(small_folder)
    latents = draw_latents(family, 32, 32)
    assert family.upscale_factor == 1
    assert have_same_pixels(family.finish(latents), family.decode(latents))
    assert family.revision == fingerprint_folder(small_folder)


def test_the_revision_and_the_memory_of_a_model_cover_its_large_decoder(folder: Path, small_folder: Path) -> None:
    one = load(folder).revision
    assert one != load(small_folder).revision
    chooser = FormatChooser(torch.device("cpu"))
    parameters = sum(tensor.numel() for tensor in load_file(folder / "decoder" / WEIGHTS_FILE).values())
    sizes = [estimate_bytes(ModelSource("small", each), chooser) for each in (folder, small_folder)]
    assert sizes[0] - sizes[1] == 4 * parameters
    write_decoder(folder, seed=4)
    assert load(folder).revision != one


def test_tiles_are_decoded_large_and_too_large_pictures_at_their_own_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load(folder)
    assert decode_tiled(family.finish, draw_latents(family, 32, 48), tile=True).size == (128, 192)
    monkeypatch.setattr("engine.models.families.stable_diffusion.MAX_SIDE", 128)
    assert family.finish(draw_latents(family, 32, 32)).size == (128, 128)
    assert family.finish(draw_latents(family, 32, 48)).size == (32, 48)


def test_the_embedded_model_loads_a_large_decoder(tmp_path: Path) -> None:
    for part in ("unet", "vae", "scheduler"):
        (tmp_path / part).symlink_to(WEIGHTS_FOLDER / part)
    write_decoder(tmp_path)
    family = load_embedded(weights=tmp_path)
    assert family.finish(torch.zeros(family.latent_shape(64, 64))).size == (256, 256)


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def spoil_weights(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({name: torch.full_like(tensor, torch.inf) for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json that can be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "has no config.json that can be read"),
        (lambda folder: (folder / "config.json").write_text(" " * 70_000), "has no config.json that can be read"),
        (lambda folder: change_config(folder, block_out_channels=[10**9] * 5), "has no config.json that can be read"),
        (lambda folder: change_config(folder, scaling_factor=0), "has no config.json that can be read"),
        (lambda folder: change_config(folder, norm_num_groups=7), "has widths that its groups do not divide"),
        (lambda folder: change_config(folder, latent_channels=3), "is not for the latents of its autoencoder"),
        (lambda folder: change_config(folder, scaling_factor=0.7), "is not for the latents of its autoencoder"),
        (lambda folder: change_config(folder, layers_per_block=2), "are damaged or do not fit its config.json"),
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), "has no diffusion_pytorch_model.safetensors of at most"),
        (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"no"), "are damaged or do not fit its config.json"),
        (spoil_weights, "does not give pictures"),
    ],
)
def test_a_broken_large_decoder_is_refused_in_one_sentence(
    damage: Callable[[Path], Any], sentence: str, folder: Path
) -> None:
    damage(folder / "decoder")
    with pytest.raises(JobRejected, match="The large decoder of the model") as refusal:
        load(folder)
    assert sentence in refusal.value.sentence


def test_too_large_weights_are_not_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.models.autoencoder.large_decoder.MAX_WEIGHTS_BYTES", 1000)
    with pytest.raises(JobRejected, match="of at most"):
        load(folder)
