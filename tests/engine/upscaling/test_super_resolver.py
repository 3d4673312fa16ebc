"""The super-resolver: no seams, the same bytes, refusals of bad files, and no overshoot of the built-in one."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.contract import JobRejected
from engine.models.autoencoder.large_decoder import LargeDecoder
from engine.models.families.embedded import load_embedded
from engine.output.decode_worker import DecodeWorker
from engine.output.upscaler import Upscaler, upscale_picture
from engine.picture_files import MAX_SIDE, encode_png
from engine.upscaling import super_resolver
from engine.upscaling.super_resolver import (
    BUILT_IN,
    CLAMP_METADATA,
    MAX_EXCESS,
    SuperResolver,
    _tile_boxes,
    clamp_ringing,
)
from training.evaluation.checks import measure_overshoots

TIMEOUT = 60.0
Make = Callable[..., Path]


@pytest.fixture(scope="session")
def resolver(weights: Make) -> SuperResolver:
    return SuperResolver(weights())


def draw_noise(width: int, height: int, seed: int = 1) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def enlarge_untiled(resolver: SuperResolver, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    with monkeypatch.context() as patches:
        patches.setattr(super_resolver, "TILE_SIDE", 100_000)
        return np.asarray(resolver.upscale(picture), dtype=np.int16)


@pytest.mark.parametrize("size", [(64, 64), (130, 70), (33, 129), (65, 64)])
def test_tiles_leave_no_seam(resolver: SuperResolver, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = enlarge_untiled(resolver, draw_noise(*size), monkeypatch)
    monkeypatch.setattr(super_resolver, "TILE_SIDE", 64)
    heartbeats: list[None] = []
    tiled = np.asarray(resolver.upscale(draw_noise(*size), on_tile=lambda: heartbeats.append(None)), dtype=np.int16)
    assert tiled.shape == (4 * size[1], 4 * size[0], 3)
    assert abs(tiled - expected).max() <= 1
    assert len(heartbeats) > 1


def test_tiles_without_a_margin_leave_seams(resolver: SuperResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that the test above can fail."""
    expected = enlarge_untiled(resolver, draw_noise(130, 70), monkeypatch)
    monkeypatch.setattr(super_resolver, "TILE_SIDE", 64)
    monkeypatch.setattr(resolver, "_context", 0)
    assert abs(np.asarray(resolver.upscale(draw_noise(130, 70)), dtype=np.int16) - expected).max() > 1


@pytest.mark.parametrize(("factor", "size"), [(2, (260, 132)), (3, (390, 198)), (8, (1040, 528)), (16, (2080, 1056))])
def test_tiles_leave_no_seam_at_other_factors(
    resolver: SuperResolver, factor: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = draw_noise(130, 66)
    with monkeypatch.context() as patches:
        patches.setattr(super_resolver, "TILE_SIDE", 100_000)
        expected = np.asarray(resolver.upscale(source, factor), dtype=np.int16)
    monkeypatch.setattr(super_resolver, "TILE_SIDE", 64)
    tiled = resolver.upscale(source, factor)
    assert tiled.size == size
    assert abs(np.asarray(tiled, dtype=np.int16) - expected).max() <= 1


def test_the_edge_of_a_plain_picture_stays_plain(resolver: SuperResolver) -> None:
    """A network sees black beyond the edge and would darken the border."""
    pixels = np.asarray(resolver.upscale(Image.new("RGB", (40, 40), (240, 240, 240))), dtype=np.int16)
    assert abs(pixels - np.tile(pixels[80:84, 80:84], (40, 40, 1))).max() <= 1


def test_tiles_cover_the_picture_once_and_stay_small() -> None:
    coverage = np.zeros((1024, 1024), dtype=np.uint8)
    for (left, top, right, bottom), outer_box in _tile_boxes((1024, 1024), 14):
        coverage[top:bottom, left:right] += 1
        assert outer_box[2] - outer_box[0] <= super_resolver.TILE_SIDE
        assert outer_box[3] - outer_box[1] <= super_resolver.TILE_SIDE
    assert (coverage == 1).all()


def test_the_same_picture_always_gives_the_same_bytes(weights: Make) -> None:
    path = weights()
    source = encode_png(draw_noise(70, 40), "a cat")
    first = SuperResolver(path)
    second = SuperResolver(path)
    assert first.fingerprint == second.fingerprint != SuperResolver(weights(seed=1)).fingerprint
    upscaled_picture = upscale_picture(source, 4, "gan", first)
    assert upscaled_picture == upscale_picture(source, 4, "gan", second)
    upscaler = Upscaler(first)
    assert upscaler.upscale(source, 4, "gan").result(TIMEOUT) == upscaled_picture
    assert upscaler.measure_ms_per_megapixel() > 0
    upscaler.close()


@pytest.mark.parametrize(("scale", "context_pixels"), [(4, 14), (2, 14), (4, 66), (2, 66)])
def test_the_measured_cost_includes_all_pixels_that_the_network_processes(
    scale: int, context_pixels: int, weights: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts pixels in place of seconds: a ×2 network runs twice for ×4, and a wide receptive field repeats pixels."""
    resolver = SuperResolver(weights(scale=scale))
    processed_pixels = [0]

    def pixels(tile: np.ndarray) -> np.ndarray:
        processed_pixels[0] += tile.shape[0] * tile.shape[1]
        return tile.repeat(scale, 0).repeat(scale, 1)

    monkeypatch.setattr(resolver, "_run_network", pixels)
    monkeypatch.setattr(resolver, "_context", context_pixels)
    monkeypatch.setattr(super_resolver.time, "thread_time", lambda: processed_pixels[0] / 1000)
    cost = resolver.measure_ms_per_megapixel()
    processed_pixels[0] = 0
    resolver.upscale(draw_noise(1024, 512), 4)
    assert cost == pytest.approx(processed_pixels[0] / (1024 * 512 / 1e6), rel=0.25)


class OverflowingNetwork:
    """A stand-in for a network on a GPU that overflows float16 where the picture is white."""

    def __init__(self) -> None:
        self.dtype = torch.float16

    def to(self, _device: torch.device, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        assert rows.dtype == self.dtype
        large = rows.repeat_interleave(4, 2).repeat_interleave(4, 3)
        return large * 60_000 * 1.5 / 90_000  # float16 ends at 65,504


def test_a_float16_overflow_is_computed_again_in_float32(weights: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of NaN would come out black."""
    resolver = SuperResolver(weights())
    net = OverflowingNetwork()
    monkeypatch.setattr(resolver, "_net", net)
    monkeypatch.setattr(resolver, "scale", 4)
    monkeypatch.setattr(resolver, "_dtype", torch.float16)
    for grey in (100, 255):
        pixels = np.asarray(resolver.upscale(Image.new("RGB", (20, 10), (grey, grey, grey))), dtype=np.int16)
        assert abs(pixels - grey).max() <= 1
        assert net.dtype == torch.float16


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_picture_mode_is_upscaled_to_rgb(resolver: SuperResolver, mode: str) -> None:
    large = resolver.upscale(draw_noise(20, 10).convert("RGB").convert(mode))
    assert (large.mode, large.size) == ("RGB", (80, 40))


def test_parameters_name_the_upscaler(resolver: SuperResolver) -> None:
    small = encode_png(draw_noise(20, 10), "a cat\nSteps: 3")
    upscaled_picture = upscale_picture(small, 4, "gan", resolver)
    with Image.open(BytesIO(upscaled_picture.png)) as large:
        assert large.size == (80, 40)
        assert large.info["parameters"] == "a cat\nSteps: 3, Postprocess upscale by: 4, Postprocess upscaler: tiny4"
    assert upscaled_picture.method == "gan"


def test_without_a_super_resolver_lanczos_upscales_and_is_named() -> None:
    small = encode_png(draw_noise(20, 10), "a cat")
    upscaled_picture = upscale_picture(small, 4, "gan")
    assert upscaled_picture == upscale_picture(small, 4, "lanczos")
    assert upscaled_picture.method == "lanczos"
    with Image.open(BytesIO(upscaled_picture.png)) as large:
        assert large.info["parameters"].endswith("Postprocess upscaler: Lanczos")
    upscaler = Upscaler()
    assert upscaler.measure_ms_per_megapixel() == 0
    upscaler.close()


def test_a_decompression_bomb_is_refused_before_the_decode(resolver: SuperResolver) -> None:
    with pytest.raises(JobRejected, match=f"is more than {MAX_SIDE} pixels a side"):
        upscale_picture(encode_png(Image.new("1", (MAX_SIDE, 8)), ""), 2, "gan", resolver)


@pytest.mark.slow
def test_finals_of_a_small_model_are_upscaled_but_previews_are_not(
    weights: Make, recipe: Any, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.batching.engine import LatentsDone, StepDone

    monkeypatch.setattr(LargeDecoder, "load", lambda *_: None)
    plain_family = load_embedded()
    two_resolvers = [SuperResolver(weights()), SuperResolver(weights(seed=1))]
    families = [load_embedded(resolver=each) for each in two_resolvers]
    family = families[0]
    assert (plain_family.upscale_factor, plain_family.upscaler) == (1, "")
    assert (family.upscale_factor, family.upscaler) == (4, "tiny4")
    assert len({plain_family.revision, *(each.revision for each in families)}) == 3
    one = job(recipe(model="embedded", width=64, height=64))
    latents = torch.randn(family.latent_shape(64, 64), generator=torch.Generator().manual_seed(1))
    decode_worker = DecodeWorker({"embedded": family})
    upscaled_picture, upscaled_again = (
        decode_worker.render_picture(LatentsDone(one.id, 0, latents, ()), one).result(TIMEOUT) for _ in range(2)
    )
    frame = decode_worker.render_frame(StepDone(one.id, 0, 1, 10, latents), one, 0, 1.0).result(TIMEOUT)
    decode_worker.close()
    assert upscaled_picture == upscaled_again
    with Image.open(BytesIO(upscaled_picture)) as large, Image.open(BytesIO(frame.picture)) as small:
        assert (large.size, small.size) == ((256, 256), (64, 64))
        assert "Size: 64x64, Model hash: " in large.info["parameters"]
        assert "Hires upscale: 4, Hires upscaler: tiny4" in large.info["parameters"]


def test_a_final_that_would_be_too_large_is_not_upscaled(weights: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.models.families import stable_diffusion

    family = load_embedded(resolver=SuperResolver(weights()))
    monkeypatch.setattr(stable_diffusion, "MAX_SIDE", 255)
    assert family.finish(torch.zeros(family.latent_shape(64, 64))).size == (64, 64)


def test_a_large_model_uses_no_super_resolver(
    small_folder: Path, weights: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.models import load_folder
    from engine.models.families import stable_diffusion

    monkeypatch.setattr(stable_diffusion, "SMALL_MODEL_SIZE", 31)
    plain_family = load_folder(str(small_folder), "small")
    with_resolver = load_folder(str(small_folder), "small", resolver=SuperResolver(weights()))
    assert (with_resolver.upscale_factor, with_resolver.revision) == (1, plain_family.revision)


def write_broken_weights(kind: str, weights: Make, folder: Path) -> Path:
    path = folder / f"{kind}.safetensors"
    state = load_file(weights())
    match kind:
        case "missing":
            pass
        case "pickle":
            path = folder / "model.pth"
            torch.save(state, path)
        case "pickle-renamed":
            path.write_bytes(pickle.dumps({"a": 1}))
        case "cut":
            path.write_bytes(weights().read_bytes()[:-100])
        case "empty":
            path.touch()
        case "unknown":
            save_file({"some.weight": torch.zeros(3)}, path)
        case "misfit":
            save_file(state | {"body.2.weight": torch.zeros(8, 7, 3, 3)}, path)
        case "deep":
            save_file(state | {"body.99999999.weight": torch.zeros(1)}, path)
        case "huge":
            path.touch()
            os.truncate(path, 10**9 + 1)  # a sparse file: it takes no space
        case "nan":
            save_file({name: value * float("nan") for name, value in state.items()}, path)
        case "same-size":
            path = weights(scale=1)
        case "grey":
            path = weights(num_in_ch=1, num_out_ch=1)
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "is not there."),
        ("pickle", "is no safetensors file: other formats can run code when they are opened."),
        ("pickle-renamed", "cannot be read: it is damaged, or no safetensors file."),
        ("cut", "cannot be read: it is damaged, or no safetensors file."),
        ("empty", "cannot be read: it is damaged, or no safetensors file."),
        ("unknown", "has an architecture that spandrel does not know."),
        ("misfit", "has weights that do not fit together."),
        ("deep", "has weights that do not fit together."),
        ("huge", "is larger than 1 GB."),
        ("nan", "does not give pictures."),
        ("same-size", "does not enlarge pictures in colour by 2 to 8."),
        ("grey", "does not enlarge pictures in colour by 2 to 8."),
    ],
)
def test_an_unusable_file_is_refused_in_one_sentence(kind: str, sentence: str, weights: Make, tmp_path: Path) -> None:
    with pytest.raises(JobRejected) as error:
        SuperResolver(write_broken_weights(kind, weights, tmp_path))
    assert error.value.blame == "worker"
    assert error.value.sentence.startswith("The upscaler ")
    assert error.value.sentence.endswith(sentence)


def test_without_spandrel_the_error_says_what_to_install(weights: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(JobRejected, match="needs the package spandrel: pip install"):
        SuperResolver(weights())


def test_without_the_built_in_file_there_is_no_super_resolver(
    weights: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(super_resolver, "BUILT_IN", tmp_path / "none.safetensors")
    assert SuperResolver.load(None) is None
    assert SuperResolver.load(weights(scale=2)).scale == 2  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "max_overshoot"), [(2, 1), (3, 1), (4, 1), (8, 4)])  # ×8 takes a second per chart
def test_the_built_in_super_resolver_does_not_overshoot_edges(factor: int, max_overshoot: int) -> None:
    """Edges between two mid greys, far from clipping, at every angle and phase. Lanczos rings by some per cent."""
    resolver = SuperResolver(BUILT_IN)
    overshoot_by_chart = measure_overshoots(lambda chart: resolver.upscale(chart, factor), max_overshoot)
    assert len(overshoot_by_chart) == 36 // max_overshoot
    assert max(overshoot_by_chart.values()) <= 4


def test_clamping_removes_ringing_and_leaves_all_other_pixels() -> None:
    source = np.full((5, 5, 3), 64, np.uint8)
    source[:, 3:] = (192, 64, 10)
    pixels = source.repeat(4, axis=0).repeat(4, axis=1)
    pixels[2, 13] = (255, 255, 0)
    pixels[2, 3] = (0, 0, 0)
    pixels[7, 9] = (128, 64, 40)
    clamped_picture = np.asarray(clamp_ringing(Image.fromarray(pixels), Image.fromarray(source)))
    # (128, 64, 40) may stay
    pixels[2, 13] = (192 + MAX_EXCESS, 64 + MAX_EXCESS, 10 - MAX_EXCESS)
    pixels[2, 3] = (64 - MAX_EXCESS,) * 3
    assert np.array_equal(clamped_picture, pixels)


def test_clamped_tiles_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = SuperResolver(BUILT_IN)
    picture = draw_noise(300, 40)
    difference = np.asarray(resolver.upscale(picture), dtype=np.int16) - enlarge_untiled(resolver, picture, monkeypatch)
    assert abs(difference).max() <= 1


def test_only_weights_marked_in_their_header_are_clamped(weights: Make, tmp_path: Path) -> None:
    grey = Image.new("RGB", (16, 16), (90, 90, 90))
    unclamped = np.asarray(SuperResolver(weights()).upscale(grey))
    assert np.ptp(unclamped, axis=(0, 1)).max() > 2 * MAX_EXCESS
    save_file(load_file(weights()), tmp_path / "flat.safetensors", CLAMP_METADATA)
    clamped_picture = SuperResolver(tmp_path / "flat.safetensors")
    assert np.ptp(np.asarray(clamped_picture.upscale(grey)), axis=(0, 1)).max() <= 2 * MAX_EXCESS
    assert clamped_picture.fingerprint != SuperResolver(weights()).fingerprint
