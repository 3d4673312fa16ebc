"""Postprocessing: unpainted pixels stay exactly, and a tile is decoded with its wrapped edges."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from engine.output.decode_worker import DecodeWorker, composite, decode_tiled
from engine.worker.local_run import run_locally
from engine.worker.simulated_model import SimulatedModel
from shared.init_image_jobs import draw_half_mask, draw_scene, load_init, make_image_to_image
from shared.picture_files import encode_picture

Make = Callable[..., Any]
TIMEOUT = 60.0


class UpscalingFamily(SimulatedModel):
    """Finished pictures are four times as wide and high, as from a super-resolver."""

    upscale_factor = 4
    upscaler = "by four"

    def finish(self, latents: torch.Tensor) -> Image.Image:
        picture = self.decode(latents)
        return picture.resize((picture.width * 4, picture.height * 4), Image.Resampling.NEAREST)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), dtype=np.int16)


@pytest.mark.parametrize(("family", "side"), [(SimulatedModel(0.001), 64), (UpscalingFamily(0.001), 256)])
def test_unpainted_pixels_are_those_of_the_init_image(
    recipe: Make, job: Make, family: SimulatedModel, side: int
) -> None:
    source = draw_scene((300, 200))
    start, blobs = make_image_to_image([encode_picture(source)], 0.9, encode_picture(draw_half_mask((300, 200))))
    one = job(recipe(model="simulated", width=64, height=64, steps=6, start=start), ladder=False)
    [content] = run_locally(one, {"simulated": family}, blobs).pictures
    picture = Image.open(BytesIO(content))
    assert picture.size == (side, side)
    expected = ImageOps.fit(source, (side, side), Image.Resampling.LANCZOS)
    feather = 4
    assert np.array_equal(pixels(picture)[:, : side // 2 - feather], pixels(expected)[:, : side // 2 - feather])
    assert np.abs(pixels(picture)[:, side // 2 + feather :] - pixels(expected)[:, side // 2 + feather :]).mean() > 5


def test_a_redelivered_job_is_still_composited_over_its_init_image(recipe: Make, job: Make) -> None:
    """The job was lost and came back at once: forgetting the first delivery must not forget the second."""
    family = SimulatedModel(0.001)
    start, blobs = make_image_to_image([encode_picture(draw_scene())], 0.9, encode_picture(draw_half_mask()))
    one = job(recipe(model="simulated", width=64, height=64, steps=6, start=start))
    decode_worker = DecodeWorker({"simulated": family})
    try:
        futures = []
        for _ in range(2):
            futures.append(decode_worker.encode_init_images(one, blobs))
            decode_worker.forget_job(one.id)
        futures.append(decode_worker.encode_init_images(one, blobs))
        assert all(future.result(TIMEOUT) is not None for future in futures)
        assert one.id in decode_worker._init_latents
        decode_worker.forget_job(one.id)
        decode_worker.close()
        assert not decode_worker._init_latents
    finally:
        if decode_worker._thread.is_alive():
            decode_worker.close()


def test_blended_init_images_with_a_mask_are_not_composited(recipe: Make, job: Make) -> None:
    start, blobs = make_image_to_image(
        [encode_picture(draw_scene()), encode_picture(draw_scene(colour="red"))], 0.9, encode_picture(draw_half_mask())
    )
    init_latents = load_init(
        job(recipe(model="simulated", width=64, height=64, start=start)), blobs, SimulatedModel(0.1)
    )
    assert init_latents is not None
    assert init_latents.mask is not None
    white_scene = draw_scene(colour="white")
    assert composite(white_scene, init_latents) is white_scene


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 2, 16), (4, 1, 1)])
def test_a_tile_is_decoded_with_wrapped_edges_and_cropped(shape: tuple[int, int, int]) -> None:
    """A decoder that uses no neighbours gives the same pixels. Its input has the opposite edges around it."""
    family = SimulatedModel(0.1)
    inputs = list[torch.Tensor]()

    def decode(latents: torch.Tensor) -> Image.Image:
        inputs.append(latents)
        return family.decode(latents)

    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(pixels(decode_tiled(decode, latents, True)), pixels(decode_tiled(decode, latents, False)))
    overlap = min(4, *shape[1:])
    assert torch.equal(inputs[0][:, overlap:-overlap, :overlap], latents[:, :, -overlap:])
    assert torch.equal(inputs[0][:, :overlap, overlap:-overlap], latents[:, -overlap:, :])
