"""Decoding in tiles when memory is short: nearly the same pixels, no seams, and the job finishes."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.device import memory
from engine.models.autoencoder import autoencoder
from engine.models.autoencoder.autoencoder import (
    decode_tiles,
    decode_within_memory,
    estimate_decode_bytes,
    get_pixels_per_latent,
    split_into_spans,
)
from engine.models.families.stable_diffusion import StableDiffusion
from engine.process.model_settings import WEIGHTS_FOLDER
from engine.worker.local_run import run_locally

Make = Callable[..., Any]
HOST = torch.device("cpu")


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "TILE", 128)
    monkeypatch.setattr(autoencoder, "OVERLAP", 32)


@given(st.integers(1, 300), st.integers(2, 64), st.integers(1, 40), st.sampled_from((1, 8, 32)))
def test_tiles_cover_a_side_with_weights_that_sum_to_one(length: int, tile: int, overlap: int, factor: int) -> None:
    total = torch.zeros(length * factor)
    size = min(tile, length)
    for start, weight in split_into_spans(length, tile, min(overlap, tile - 1), factor):
        assert 0 <= start <= length - size
        assert len(weight) == size * factor
        total[start * factor : (start + size) * factor] += weight
    torch.testing.assert_close(total, torch.ones_like(total))


def test_a_decoder_without_context_gives_the_same_in_tiles(small_tiles: None) -> None:
    def decode(latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)

    latents = torch.randn(1, 4, 37, 16)
    torch.testing.assert_close(decode_tiles(decode, latents, 8), decode(latents))


@pytest.fixture(scope="module")
def picture_latents(embedded: StableDiffusion) -> torch.Tensor:
    """Latents of a picture of 256 pixels from a trained autoencoder."""
    with Image.open(WEIGHTS_FOLDER / "sheet.webp") as sheet:
        return embedded.encode_image(sheet.convert("RGB").crop((0, 0, 256, 256)))


@pytest.mark.slow
@torch.inference_mode()
def test_a_tiled_decode_is_close_to_a_whole_one_and_has_no_seams(
    embedded: StableDiffusion, picture_latents: torch.Tensor, small_tiles: None
) -> None:
    vae = embedded.pipeline.vae

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return vae.decode(latents, return_dict=False)[0]

    assert get_pixels_per_latent(vae) == embedded.pixels_per_latent
    untiled = decode(picture_latents[None]).clamp(-1, 1)
    tiled = decode_tiles(decode, picture_latents[None], embedded.pixels_per_latent).clamp(-1, 1)
    difference = tiled - untiled
    assert 10 * np.log10(4 / float((difference**2).mean())) > 38
    for steps in (difference.diff(dim=3).abs().mean((0, 1, 2)), difference.diff(dim=2).abs().mean((0, 1, 3))):
        edges = [64, 128, 192]  # edges of tiles; the picture's own edges differ more
        edge_steps = torch.stack([steps[edge - 1] for edge in edges])
        assert float(edge_steps.max()) < 2 * float(steps[8:-8].mean())  # no jump at a tile's edge


@pytest.mark.slow
@torch.inference_mode()
def test_a_decode_that_does_not_fit_memory_is_always_tiled(
    embedded: StableDiffusion, picture_latents: torch.Tensor, small_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = embedded.pipeline.vae
    size = estimate_decode_bytes(vae, picture_latents[None])
    largest = 256 * 256 * 4 * vae.config.block_out_channels[0]  # of one layer, in bytes
    assert size in (6 * largest, 8 * largest)
    monkeypatch.setattr(autoencoder, "memory_for_pictures", lambda _: size)
    untiled = decode_within_memory(vae, picture_latents[None])
    monkeypatch.setattr(autoencoder, "memory_for_pictures", lambda _: size - 1)
    first, second = (decode_within_memory(vae, picture_latents[None]) for _ in range(2))
    assert not torch.equal(first, untiled)
    assert torch.equal(first, second)


def test_an_autoencoder_of_unknown_size_is_decoded_whole() -> None:
    assert estimate_decode_bytes(SimpleNamespace(config={}), torch.zeros(1, 4, 64, 64)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_job_whose_decode_runs_out_of_memory_finishes_in_tiles(
    embedded: StableDiffusion, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(autoencoder, "TILE", 64)
    monkeypatch.setattr(autoencoder, "OVERLAP", 16)
    monkeypatch.setattr(embedded, "_large_decoder", None)
    monkeypatch.setattr(embedded, "upscale_factor", 1)
    vae = embedded.pipeline.vae
    sides = list[int]()
    decode = vae.decode

    def decode_or_fail(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sides.append(max(latents.shape[-2:]))
        if sides[-1] > 16:
            raise error
        return decode(latents, *args, **kwargs)

    monkeypatch.setattr(vae, "decode", decode_or_fail)
    one = job(recipe("a red cat", model="embedded", width=128, height=64, steps=2), ladder=False)
    result = run_locally(one, {"embedded": embedded})
    assert 32 in sides
    assert 16 in sides
    with Image.open(BytesIO(result.pictures[0])) as picture:
        assert picture.size == (128, 64)


@torch.inference_mode()
def test_other_errors_do_not_start_a_tiled_decode(embedded: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()

    def fail(*_: Any, **__: Any) -> Any:
        calls.append(1)
        raise ValueError("broken")

    monkeypatch.setattr(embedded.pipeline.vae, "decode", fail)
    with pytest.raises(ValueError, match="broken"):
        embedded.decode(torch.zeros(embedded.latent_shape(64, 64)))
    assert len(calls) == 1


def test_memory_for_pictures_is_what_models_and_the_container_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"memory.max": "8000", "memory.current": "7900", "memory.stat": "anon 6000\nfile 1000\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "CGROUP_FILES", ((tmp_path, "memory.max", "memory.current", "file"),))
    assert memory.model_budget(HOST) == 5600
    assert memory.memory_for_pictures(HOST) == 1100
    (tmp_path / "memory.current").write_text("5000")
    assert memory.memory_for_pictures(HOST) == 8000 - 5600
    (tmp_path / "memory.max").write_text("max")
    assert memory.memory_for_pictures(HOST) > 10**6
