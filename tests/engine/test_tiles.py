"""Decoding in tiles where memory asks for it: nearly the same pixels, no seams, and the job is finished."""

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

from engine import budget
from engine.alone import develop
from engine.families import tiles
from engine.families.embedded import WEIGHTS
from engine.families.stable_diffusion import StableDiffusion
from engine.families.tiles import activation_bytes, decode_tiles, decode_within_memory, pixels_a_latent, spans

Make = Callable[..., Any]
HOST = torch.device("cpu")


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 128)
    monkeypatch.setattr(tiles, "OVERLAP", 32)


@given(st.integers(1, 300), st.integers(2, 64), st.integers(1, 40), st.sampled_from((1, 8, 32)))
def test_tiles_cover_a_side_with_weights_that_sum_to_one(length: int, tile: int, overlap: int, factor: int) -> None:
    total, size = torch.zeros(length * factor), min(tile, length)
    for start, weight in spans(length, tile, min(overlap, tile - 1), factor):
        assert 0 <= start <= length - size
        assert len(weight) == size * factor
        total[start * factor : (start + size) * factor] += weight
    torch.testing.assert_close(total, torch.ones_like(total))


def test_what_knows_no_surroundings_is_the_same_in_tiles(small_tiles: None) -> None:
    def decode(latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)

    latents = torch.randn(1, 4, 37, 16)
    torch.testing.assert_close(decode_tiles(decode, latents, 8), decode(latents))


@pytest.fixture(scope="module")
def pictured(embedded: StableDiffusion) -> torch.Tensor:
    """Latents of a trained autoencoder, of a picture of 256 pixels."""
    with Image.open(WEIGHTS / "sheet.webp") as sheet:
        return embedded.encode_image(sheet.convert("RGB").crop((0, 0, 256, 256)))


@torch.inference_mode()
def test_a_trained_autoencoder_s_tiles_are_near_the_whole_and_have_no_seams(
    embedded: StableDiffusion, pictured: torch.Tensor, small_tiles: None
) -> None:
    vae = embedded.pipeline.vae

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return vae.decode(latents, return_dict=False)[0]

    assert pixels_a_latent(vae) == embedded.factor
    whole = decode(pictured[None]).clamp(-1, 1)
    tiled = decode_tiles(decode, pictured[None], embedded.factor).clamp(-1, 1)
    off = tiled - whole
    assert 10 * np.log10(4 / float((off**2).mean())) > 38
    for steps in (off.diff(dim=3).abs().mean((0, 1, 2)), off.diff(dim=2).abs().mean((0, 1, 3))):
        edges = [64, 128, 192]  # of tiles; the picture's own edges differ more
        nearby = torch.stack([steps[edge - 1] for edge in edges])
        assert float(nearby.max()) < 2 * float(steps[8:-8].mean())  # the difference jumps nowhere


@torch.inference_mode()
def test_a_decode_that_would_not_fit_is_one_in_tiles_every_time(
    embedded: StableDiffusion, pictured: torch.Tensor, small_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = embedded.pipeline.vae
    size = activation_bytes(vae, pictured[None])
    assert size == 6 * 256 * 256 * 16 * 4 or size == 8 * 256 * 256 * 16 * 4
    monkeypatch.setattr(tiles, "room_for_pictures", lambda _: size)
    whole = decode_within_memory(vae, pictured[None])
    monkeypatch.setattr(tiles, "room_for_pictures", lambda _: size - 1)
    first, second = (decode_within_memory(vae, pictured[None]) for _ in range(2))
    assert not torch.equal(first, whole)
    assert torch.equal(first, second)


def test_an_autoencoder_that_does_not_say_its_size_is_decoded_whole() -> None:
    assert activation_bytes(SimpleNamespace(config={}), torch.zeros(1, 4, 64, 64)) == 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_job_whose_whole_decode_runs_out_of_memory_is_finished_in_tiles(
    embedded: StableDiffusion, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(tiles, "TILE", 64)
    monkeypatch.setattr(tiles, "OVERLAP", 16)
    vae, sides = embedded.pipeline.vae, list[int]()
    decode = vae.decode

    def short(latents: torch.Tensor, *given: Any, **named: Any) -> Any:
        sides.append(max(latents.shape[-2:]))
        if sides[-1] > 8:
            raise error
        return decode(latents, *given, **named)

    monkeypatch.setattr(vae, "decode", short)
    one = job(recipe("a red cat", model="embedded", width=128, height=64, steps=2), ladder=False)
    found = develop(one, {"embedded": embedded})
    assert 16 in sides
    assert 8 in sides
    with Image.open(BytesIO(found.pictures[0])) as picture:
        assert picture.size == (128, 64)


@torch.inference_mode()
def test_another_error_is_no_reason_for_tiles(embedded: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()

    def broken(*_: Any, **__: Any) -> Any:
        calls.append(1)
        raise ValueError("broken")

    monkeypatch.setattr(embedded.pipeline.vae, "decode", broken)
    with pytest.raises(ValueError, match="broken"):
        embedded.decode(torch.zeros(16, 8, 8))
    assert len(calls) == 1


def test_room_is_what_models_leave_and_less_where_a_container_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"memory.max": "8000", "memory.current": "7900", "memory.stat": "anon 6000\nfile 1000\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(budget, "GROUPS", ((tmp_path, "memory.max", "memory.current", "file"),))
    assert budget.share(HOST) == 5600
    assert budget.room_for_pictures(HOST) == 1100
    (tmp_path / "memory.current").write_text("5000")
    assert budget.room_for_pictures(HOST) == 8000 - 5600
    (tmp_path / "memory.max").write_text("max")
    assert budget.room_for_pictures(HOST) > 10**6
