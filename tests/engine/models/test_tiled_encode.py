"""Encoding in tiles when memory is short, and whole pipelines whose autoencoder then works in diffusers' own tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from benchmarks.report.measures import psnr
from engine import models
from engine.models.autoencoder import autoencoder
from engine.models.autoencoder.autoencoder import (
    encode_tiles,
    encode_within_memory,
    estimate_encode_bytes,
    fit_to_memory,
)
from engine.models.families.stable_diffusion import StableDiffusion
from engine.process.model_settings import WEIGHTS_FOLDER

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "TILE", 128)
    monkeypatch.setattr(autoencoder, "OVERLAP", 32)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    with Image.open(WEIGHTS_FOLDER / "sheet.webp") as sheet:
        return sheet.convert("RGB").crop((0, 0, 256, 256))


def test_an_encoder_without_context_gives_the_same_in_tiles(small_tiles: None) -> None:
    pixels = torch.rand(1, 3, 8 * 37, 8 * 16)
    torch.testing.assert_close(
        encode_tiles(lambda part: torch.nn.functional.avg_pool2d(part, 8), pixels, 8),
        torch.nn.functional.avg_pool2d(pixels, 8),
    )


@torch.inference_mode()
def test_a_tiled_encode_is_close_to_a_whole_one_and_has_no_seams(
    embedded: StableDiffusion, picture: Image.Image, small_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = embedded.encode_image(picture)
    monkeypatch.setattr(autoencoder, "memory_for_pictures", lambda _: 0)
    tiled = embedded.encode_image(picture)
    assert not torch.equal(tiled, whole)
    difference = tiled - whole
    assert psnr(embedded.decode(tiled), embedded.decode(whole)) > 40
    for steps in (difference.diff(dim=2).abs().mean((0, 1)), difference.diff(dim=1).abs().mean((0, 2))):
        edges = [int(edge * whole.shape[-1]) for edge in (0.25, 0.5, 0.75)]
        edge_steps = torch.stack([steps[edge - 1] for edge in edges])
        assert float(edge_steps.max()) < 3 * float(steps[1:-1].mean())


@torch.inference_mode()
def test_an_encode_that_fits_is_whole_and_one_that_does_not_is_tiled(
    embedded: StableDiffusion, small_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = embedded.pipeline.vae
    pixels = torch.rand(1, 3, 256, 256)
    size = estimate_encode_bytes(vae, pixels)
    sides = list[int]()
    encode = vae.encode

    def record(part: torch.Tensor) -> Any:
        sides.append(part.shape[-1])
        return encode(part)

    monkeypatch.setattr(vae, "encode", record)
    for free, expected in ((size, [256]), (size - 1, [128] * 9)):
        monkeypatch.setattr(autoencoder, "memory_for_pictures", lambda _, free=free: free)
        sides.clear()
        encode_within_memory(vae, pixels)
        assert sides == expected


@pytest.mark.parametrize("kind", ["sd", "sana"])
@torch.inference_mode()
def test_families_encode_in_tiles_where_memory_is_short(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_small_pipeline(kind, tmp_path / kind)
    family = models.load_folder(str(tmp_path / kind), kind)
    monkeypatch.setattr(autoencoder, "TILE", 32)
    monkeypatch.setattr(autoencoder, "OVERLAP", 8)
    drawing = Image.effect_noise((64, 96), 60).convert("RGB")
    whole = family.encode_image(drawing)
    monkeypatch.setattr(autoencoder, "memory_for_pictures", lambda _: 0)
    tiled = family.encode_image(drawing)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)


@torch.inference_mode()
def test_a_whole_pipeline_decodes_in_tiles_only_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_small_pipeline("auraflow", tmp_path / "auraflow")
    family: Any = models.load_folder(str(tmp_path / "auraflow"), "auraflow")
    vae = family.pipeline.vae
    latents = torch.randn(1, vae.config.latent_channels, 48, 48)
    monkeypatch.setattr(autoencoder, "memory_for_pictures", lambda _: 1 << 40)
    whole = vae.decode(latents, return_dict=False)[0]
    assert not vae.use_tiling
    torch.testing.assert_close(whole, type(vae).decode(vae, latents, return_dict=False)[0])
    monkeypatch.setattr(autoencoder, "memory_for_pictures", lambda _: 0)
    tiled = vae.decode(latents, return_dict=False)[0]
    vae.enable_tiling()
    torch.testing.assert_close(tiled, type(vae).decode(vae, latents, return_dict=False)[0])  # diffusers' own tiles
    assert float((tiled - whole).abs().max()) > 1e-3


def test_a_decode_that_runs_out_of_memory_is_tiled_and_an_autoencoder_without_tiles_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Autoencoder(torch.nn.Module):
        config: ClassVar[dict[str, Any]] = {"block_out_channels": (8, 8)}
        use_tiling = False

        def enable_tiling(self) -> None:
            self.use_tiling = True

        def decode(self, latents: torch.Tensor) -> str:
            if not self.use_tiling:
                raise torch.OutOfMemoryError("out of memory")
            return "tiles"

        def encode(self, pixels: torch.Tensor) -> str:
            return "whole"

    vae = Autoencoder()
    fit_to_memory(vae)
    assert (vae.decode(torch.zeros(1, 4, 8, 8)), vae.encode(torch.zeros(1, 3, 8, 8))) == ("tiles", "whole")
    monkeypatch.delattr(Autoencoder, "enable_tiling")
    plain = Autoencoder()
    fit_to_memory(plain)
    assert "decode" not in vars(plain)
