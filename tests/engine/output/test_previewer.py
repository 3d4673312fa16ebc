"""Previews by a linear map: rough at first, then fitted in the background and stored by revision."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.batching.engine import Engine, LatentsDone, StepDone
from engine.contract import Job
from engine.models.families.stable_diffusion import StableDiffusion
from engine.output.decode_worker import CLOSE_PRIORITY, FIT_PRIORITY, DecodeWorker
from engine.output.previewer import Previewer, fit_preview_map, to_array
from engine.preview_maps.latent_map import (
    KNOWN_MAPS,
    MODEL_MAP_FILE,
    LatentMap,
    LatentMapFit,
    LatentSpace,
    MapStore,
    latent_features,
    rough_map,
)

Make = Callable[..., Any]
TIMEOUT = 30.0


@pytest.fixture
def large_family(affine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The affine family at a usual size, so that each latent becomes one pixel."""
    monkeypatch.setattr(affine, "size", 512)
    return affine


def run_job(family: Any, job: Job) -> tuple[StepDone, LatentsDone]:
    engine = Engine({family.name: family})
    engine.add(job)
    engine.watch(job.id)
    events = [event for _ in range(job.task.steps) for event in engine.step()]  # pyright: ignore[reportAttributeAccessIssue]
    last = [event for event in events if isinstance(event, StepDone)][-1]
    return last, next(event for event in events if isinstance(event, LatentsDone))


@given(st.integers(1, 5), st.sampled_from([1, 3]), st.sampled_from([1, 2, 8]), st.integers(3, 6), st.integers(3, 6))
def test_the_fit_recovers_a_linear_map(channels: int, reach: int, patch: int, height: int, width: int) -> None:
    random = np.random.default_rng(channels + 10 * reach + 100 * patch)
    size = channels * reach**2 + 1
    weights = (random.uniform(-0.2, 0.2, (size, 3 * patch**2)) / size).astype(np.float32)
    weights[-1] = 0.5
    true_map = LatentMap(weights, reach, patch)
    map_fit = LatentMapFit(channels, reach, patch)
    for _ in range(40):
        latents = random.standard_normal((channels, height, width)).astype(np.float32)
        map_fit.add_picture(latents, true_map.render(latents))
    fitted_map = map_fit.solve()
    new = random.standard_normal((channels, height, width)).astype(np.float32)
    assert fitted_map.channels == channels
    predicted_pixels = fitted_map.render(new).astype(int)
    expected = true_map.render(new).astype(int)
    assert predicted_pixels.shape == (height * patch, width * patch, 3)
    assert np.abs(predicted_pixels - expected).max() <= 3


def test_columns_include_the_neighbours_of_a_latent_and_repeat_the_edge() -> None:
    table = latent_features(np.arange(4, dtype=np.float32).reshape(1, 2, 2), 3)
    assert table[0].tolist() == [0, 0, 1, 0, 0, 1, 2, 2, 3, 1]


def test_nan_latents_give_black_pixels() -> None:
    pixels = rough_map(LatentSpace(4)).render(np.full((4, 2, 2), np.nan, dtype=np.float32))
    assert pixels.max() == 0


@pytest.mark.parametrize("space", KNOWN_MAPS)
def test_known_autoencoders_have_a_rough_map(space: LatentSpace) -> None:
    mapping = rough_map(space)
    assert mapping.channels == space.channels
    grey = mapping.render(np.zeros((space.channels, 1, 1), dtype=np.float32))
    assert grey.tolist() == [[[128, 128, 128]]]


def test_the_known_map_of_sd1_separates_yellow_from_blue() -> None:
    """The fourth channel runs from yellow to blue, as is widely known."""
    latents = np.zeros((4, 1, 2), dtype=np.float32)
    latents[3] = (-1, 1)
    yellow, blue = rough_map(LatentSpace(4, 0.18215)).render(latents)[0].astype(int)
    assert yellow[2] - yellow[0] > 50  # a lower value is bluer
    assert blue[0] - blue[2] > 50


def test_the_rough_map_of_an_unknown_autoencoder_shows_contrast() -> None:
    random = np.random.default_rng(0)
    pixels = rough_map(LatentSpace(7, 3.0)).render(random.standard_normal((7, 16, 16)).astype(np.float32))
    assert pixels.std(axis=(0, 1)).min() > 15


def test_the_rough_map_is_shown_until_the_fit_ends(large_family: Any) -> None:
    previewer = Previewer(large_family)
    before = previewer.render(torch.ones(4, 4, 4))
    assert before.size == (4, 4)
    assert not previewer.is_fitted
    while not previewer.is_fitted:
        previewer.fit_one_more()
    flat_latents = large_family.encode_image(Image.new("RGB", (512, 512), (200, 40, 90)))
    assert previewer.render(flat_latents).getpixel((1, 1)) == pytest.approx((200, 40, 90), abs=3)


@pytest.fixture
def unfitted(embedded: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> StableDiffusion:
    """The embedded model without the map in its folder."""
    monkeypatch.setattr(embedded, "model_folder", None)
    return embedded


def test_previews_of_a_small_model_have_native_size_before_and_after_the_fit(unfitted: StableDiffusion) -> None:
    previewer = Previewer(unfitted)
    latents = unfitted.encode_image(Image.new("RGB", (64, 64), "red"))
    assert not previewer.is_fitted
    assert previewer.render(latents).size == (64, 64)
    previewer.latent_map = fit_preview_map(unfitted)
    assert previewer.render(latents).size == (64, 64)


def measure_psnr_to_decoder(family: StableDiffusion, latent_map: LatentMap) -> float:
    """Compare the map with the decoder on a gradient with a square, which no fit saw."""
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    picture.paste((220, 60, 30), (16, 16, 48, 48))
    latents = family.encode_image(picture)
    preview = latent_map.render(to_array(latents)).astype(float)
    decoded_pixels = np.asarray(family.decode(latents), dtype=float)
    return float(10 * np.log10(255**2 / ((preview - decoded_pixels) ** 2).mean()))


def test_the_fitted_map_of_the_embedded_model_is_close_to_its_decoder(unfitted: StableDiffusion) -> None:
    assert measure_psnr_to_decoder(unfitted, fit_preview_map(unfitted)) > 18


def test_the_embedded_model_brings_a_closer_map_along(embedded: StableDiffusion) -> None:
    previewer = Previewer(embedded)
    assert previewer.is_fitted
    assert measure_psnr_to_decoder(embedded, previewer.latent_map) > 20


def test_a_damaged_map_in_the_models_folder_is_fitted_anew(
    embedded: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / MODEL_MAP_FILE).write_bytes(b"no map")
    monkeypatch.setattr(embedded, "model_folder", tmp_path)
    assert not Previewer(embedded).is_fitted


def test_a_fitted_map_is_stored_by_revision_and_not_fitted_again(
    large_family: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    files = MapStore(tmp_path)
    first = Previewer(large_family, files)
    while not first.is_fitted:
        first.fit_one_more()
    reloaded = Previewer(large_family, files)
    assert reloaded.is_fitted
    assert np.array_equal(reloaded.latent_map.weights, first.latent_map.weights)
    monkeypatch.setattr(large_family, "revision", "r2")
    assert not Previewer(large_family, files).is_fitted
    assert [path.suffix for path in (tmp_path / "previews").iterdir()] == [".safetensors"]


@pytest.mark.parametrize("corrupt_content", [b"", b"no map", b"\xff" * 100])
def test_a_damaged_map_file_is_fitted_again(large_family: Any, tmp_path: Path, corrupt_content: bytes) -> None:
    files = MapStore(tmp_path)
    files.save_map("r1", fit_preview_map(large_family))
    (path,) = (tmp_path / "previews").iterdir()
    path.write_bytes(corrupt_content)
    assert not Previewer(large_family, files).is_fitted


def test_a_stored_map_of_another_shape_or_with_nan_is_ignored(large_family: Any, tmp_path: Path) -> None:
    files = MapStore(tmp_path)
    files.save_map("r1", LatentMap(np.zeros((6, 3), dtype=np.float32)))
    assert files.load_map("r1", 4, 1, 1) is None
    files.save_map("r1", LatentMap(np.full((5, 3), np.nan, dtype=np.float32)))
    assert files.load_map("r1", 4, 1, 1) is None


def test_an_unwritable_folder_of_maps_raises_no_error(large_family: Any, tmp_path: Path) -> None:
    (tmp_path / "previews").write_bytes(b"in the way")
    MapStore(tmp_path).save_map("r1", fit_preview_map(large_family))


@pytest.fixture
def blocked_lane(
    large_family: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[DecodeWorker, threading.Event, list[str]]]:
    """A decode worker that blocks at its first task and records the order of encodes and decodes."""
    order = list[str]()
    gate = threading.Event()
    encode = large_family.encode_image
    decode = large_family.decode
    monkeypatch.setattr(large_family, "encode_image", lambda picture: order.append("fit") or encode(picture))
    monkeypatch.setattr(large_family, "decode", lambda latents: order.append("final") or decode(latents))
    decode_worker = DecodeWorker({"affine": large_family})
    decode_worker._submit(0, lambda: gate.wait(TIMEOUT))
    yield decode_worker, gate, order
    gate.set()
    decode_worker.close()


def test_a_fit_waits_behind_frames_ladders_and_finals(
    blocked_lane: tuple[DecodeWorker, threading.Event, list[str]], large_family: Any, recipe: Make, job: Make
) -> None:
    decode_worker, gate, order = blocked_lane
    one = job(recipe(steps=3, count=1))
    event, latents_done = run_job(large_family, one)
    decode_worker.prepare_preview("affine")  # submitted first, runs last
    frame = decode_worker.render_frame(event, one, 0, 0.0)
    ladder = decode_worker.encode_ladder(latents_done, one)
    final_picture = decode_worker.render_picture(latents_done, one)
    frame.add_done_callback(lambda _: order.append("frame"))
    ladder.add_done_callback(lambda _: order.append("ladder"))
    gate.set()
    for future in (frame, ladder, final_picture):
        future.result(TIMEOUT)
    assert [name for name in order if name != "fit"] == ["final", "frame", "ladder"]
    assert order[:3] == ["final", "frame", "ladder"]


def test_a_final_during_a_fit_waits_for_one_small_picture_at_most(
    large_family: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(recipe(steps=3, count=1))
    order = list[str]()
    encode = large_family.encode_image
    _, latents_done = run_job(large_family, one)
    decode_worker = DecodeWorker({"affine": large_family})

    def encode_and_submit(picture: Image.Image) -> torch.Tensor:
        """Submits a final picture while the second picture is encoded."""
        order.append("fit")
        if len(order) == 2:
            decode_worker.render_picture(latents_done, one).add_done_callback(lambda _: order.append("final"))
        return encode(picture)

    monkeypatch.setattr(large_family, "encode_image", encode_and_submit)
    decode_worker.prepare_preview("affine")
    release = threading.Event()
    while not release.is_set():  # a task of the lowest priority runs after the fit's next picture
        decode_worker._submit(FIT_PRIORITY, lambda: release.set() if order.count("fit") == 16 else None).result(TIMEOUT)
    decode_worker.close()
    assert order == ["fit", "fit", "final", *["fit"] * 14]


def test_closing_the_decode_worker_drops_a_fit(blocked_lane: tuple[DecodeWorker, threading.Event, list[str]]) -> None:
    decode_worker, gate, order = blocked_lane
    decode_worker.prepare_preview("affine")
    decode_worker._submit(CLOSE_PRIORITY, decode_worker._stop)
    gate.set()
    decode_worker._thread.join(TIMEOUT)
    assert "fit" not in order


def test_a_model_whose_encoder_fails_keeps_the_rough_map(
    large_family: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = list[int]()

    def fail_to_encode(picture: Image.Image) -> torch.Tensor:
        calls.append(1)
        raise RuntimeError("no encoder")

    monkeypatch.setattr(large_family, "encode_image", fail_to_encode)
    one = job(recipe(steps=2, count=1))
    event, _ = run_job(large_family, one)
    decode_worker = DecodeWorker({"affine": large_family})
    for _ in range(2):
        decode_worker.prepare_preview("affine")
        assert decode_worker.render_frame(event, one, 0, 0.0).result(TIMEOUT).picture
    decode_worker._submit(FIT_PRIORITY, lambda: None).result(TIMEOUT)
    decode_worker.close()
    assert len(calls) == 1


def test_a_fit_continues_once_the_model_is_reloaded(
    large_family: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loaded_formats = list[str]()
    stand_ins = {"is_single_format": True, "has_format": loaded_formats.__contains__, "get_network": lambda dtype: None}
    for name, value in stand_ins.items():
        monkeypatch.setattr(large_family, name, value, raising=False)
    decode_worker = DecodeWorker({"affine": large_family})
    decode_worker.prepare_preview("affine")
    decode_worker._submit(FIT_PRIORITY, lambda: None).result(TIMEOUT)
    previewer = decode_worker._previewer_of("affine")
    assert not previewer.is_fitted
    loaded_formats.append("float32")
    decode_worker.prepare_preview("affine")
    while not decode_worker._submit(FIT_PRIORITY, lambda: previewer.is_fitted).result(TIMEOUT):
        pass
    decode_worker.close()
    assert not caplog.records
