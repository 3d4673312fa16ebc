"""Init images, masks and keyframes are read from blobs; a faulty blob is refused with one sentence."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from engine.batching.input_pictures import InitLatents, load_init_latents
from engine.batching.model_inputs import slerp
from engine.contract import Branch, Concept, ImageToImage, InitImage, JobRejected, Keyframe, Ladder, Recipe, encode
from engine.models.families.stable_diffusion import StableDiffusion
from engine.worker.simulated_model import SimulatedModel
from shared.init_image_jobs import Blobs, draw_half_mask, draw_scene, hash_blobs, make_image_to_image, to_bytes
from shared.picture_files import encode_picture

Make = Callable[..., Any]
JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
LATENTS = torch.arange(64, dtype=torch.float32).view(4, 4, 4) / 10


def recipe_with_init_images(recipe: Make, pictures: list[bytes], mask: bytes | None = None) -> tuple[Recipe, Blobs]:
    start, blobs = make_image_to_image(pictures, 0.5, mask)
    return recipe(model="embedded", width=64, height=64, start=start), blobs


def read_init(one: Recipe, blobs: Blobs, family: Any) -> InitLatents:
    init_latents = load_init_latents(one, blobs, family)
    assert init_latents is not None
    return init_latents


def test_a_recipe_without_an_init_image_has_no_init_latents(embedded: StableDiffusion, recipe: Make) -> None:
    assert load_init_latents(recipe(), {}, embedded) is None


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_an_init_image_is_cropped_to_the_size_and_encoded(embedded: StableDiffusion, recipe: Make, form: str) -> None:
    content = encode_picture(draw_scene((200, 120)), form)
    init_latents = read_init(*recipe_with_init_images(recipe, [content]), embedded)
    with Image.open(BytesIO(content)) as picture:
        fitted_picture = ImageOps.fit(picture.convert("RGB"), (64, 64), Image.Resampling.LANCZOS)
    assert torch.equal(init_latents.latents, embedded.encode_image(fitted_picture))
    assert (init_latents.mask, init_latents.x0, init_latents.init_image) == (None, None, None)


def test_several_init_images_are_blended_by_weight(embedded: StableDiffusion, recipe: Make) -> None:
    pictures = [encode_picture(draw_scene(colour=colour)) for colour in ("red", "yellow", "white")]
    names = [name for each in pictures for name in hash_blobs(each)]
    z = [embedded.encode_image(draw_scene(colour=colour)) for colour in ("red", "yellow", "white")]

    def blend_latents(*weights: float) -> torch.Tensor:
        start = ImageToImage(tuple(map(InitImage, names[: len(weights)], weights)), 0.5)
        return read_init(recipe(width=64, height=64, start=start), hash_blobs(*pictures), embedded).latents

    torch.testing.assert_close(blend_latents(1, 3), slerp(z[0], z[1], 0.75))
    torch.testing.assert_close(blend_latents(1, 1, 2), slerp(slerp(z[0], z[1], 0.5), z[2], 0.5))
    torch.testing.assert_close(blend_latents(100, 1e-6), z[0], rtol=1e-3, atol=1e-3)


def test_a_mask_becomes_binary_and_is_scaled_to_the_latents(embedded: StableDiffusion, recipe: Make) -> None:
    """It equals the mask of diffusers' mask processor and interpolation."""
    mask = draw_half_mask().rotate(30, Image.Resampling.BICUBIC)
    init_latents = read_init(
        *recipe_with_init_images(recipe, [encode_picture(draw_scene())], mask=encode_picture(mask)), embedded
    )
    processor: Any = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    expected = torch.nn.functional.interpolate(processor.preprocess(mask, 64, 64), size=(16, 16))[0]
    assert init_latents.mask is not None
    assert torch.equal(init_latents.mask, expected)
    assert 0 < float(expected.mean()) < 1
    assert init_latents.init_image is not None
    assert init_latents.init_image.size == (256, 256)  # of the finished picture, into which it is pasted


def giant_png(width: int, height: int) -> bytes:
    """A PNG whose header declares a size, with no pixels in it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    data = zlib.compress(b"")
    body = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    return b"\x89PNG\r\n\x1a\n" + chunk + body


HOSTILE = {
    "nothing": (b"", "cannot be read"),
    "text": (b"<svg/>", "cannot be read"),
    "cut off": (encode_picture(draw_scene())[:200], "cannot be read"),
    "a GIF": (encode_picture(draw_scene(), "GIF"), "cannot be read"),
    "a BMP": (encode_picture(draw_scene(), "BMP"), "cannot be read"),
    "too large": (giant_png(5000, 5000), "too large"),
    "far too large": (giant_png(50_000, 50_000), "too large"),
    "no pixels": (giant_png(64, 64), "cannot be read"),
}


@pytest.mark.parametrize("blob_name", ["picture", "mask"])
@pytest.mark.parametrize(("content", "reason"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_picture_is_refused_with_a_sentence(
    recipe: Make, content: bytes, reason: str, blob_name: str
) -> None:
    pictures, mask = ([content], None) if blob_name == "picture" else ([encode_picture(draw_scene())], content)
    with pytest.raises(JobRejected, match=reason) as error:
        load_init_latents(*recipe_with_init_images(recipe, pictures, mask=mask), SimulatedModel(0.1))
    assert error.value.blame == "us"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_picture_is_read_or_refused_with_a_sentence(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))
    content = bytearray(encode_picture(draw_scene((16, 16)), form))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    start, blobs = make_image_to_image([bytes(content)], 0.5)
    with suppress(JobRejected):
        assert read_init(make_simulated_recipe(start), blobs, SimulatedModel(0.1)).latents.shape == (4, 4, 4)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (17, 5)])
def test_odd_picture_sizes_are_fitted(size: tuple[int, int]) -> None:
    start, blobs = make_image_to_image([encode_picture(draw_scene(size))], 0.5, encode_picture(draw_half_mask(size)))
    init_latents = read_init(make_simulated_recipe(start), blobs, SimulatedModel(0.1))
    assert init_latents.latents.shape == (4, 4, 4)
    assert init_latents.mask is not None
    assert init_latents.mask.shape == (1, 4, 4)


def make_simulated_recipe(start: Any, **fields: Any) -> Recipe:
    defaults: dict[str, Any] = {
        "concepts": (Concept("sea"),),
        "model": "simulated",
        "sampler": "ddim",
        "steps": 8,
        "seed": 3,
        "guidance": 1.0,
        "width": 32,
        "height": 32,
        "dtype": "float32",
        "start": start,
        "count": 1,
    }
    return Recipe(**(defaults | fields))


def test_a_missing_blob_is_blamed_on_us() -> None:
    start, blobs = make_image_to_image([encode_picture(draw_scene())], 0.5, encode_picture(draw_half_mask()))
    for name in blobs:
        with pytest.raises(JobRejected, match="no longer stored") as error:
            load_init_latents(
                make_simulated_recipe(start),
                {other: blobs[other] for other in blobs if other != name},
                SimulatedModel(0.1),
            )
        assert error.value.blame == "us"


def make_ladder(**fields: Any) -> bytes:
    keyframes = [Keyframe(step, b"", to_bytes(LATENTS + step), to_bytes(LATENTS - step), 1) for step in (2, 4)]
    defaults: dict[str, Any] = {
        "job": JOB,
        "image": 0,
        "total_steps": 8,
        "shape": (4, 4, 4),
        "keyframes": (Keyframe(1, b""), *keyframes),
    }
    return encode(Ladder(**(defaults | fields)))


def read_branch(content: bytes, step: int = 4, **fields: Any) -> InitLatents:
    (name,) = hash_blobs(content)
    return read_init(make_simulated_recipe(Branch(name, step), **fields), {name: content}, SimulatedModel(0.1))


def test_a_branch_starts_from_the_latents_and_x0_of_its_keyframe() -> None:
    init_latents = read_branch(make_ladder())
    assert torch.equal(init_latents.latents, LATENTS + 4)
    assert init_latents.x0 is not None
    assert torch.equal(init_latents.x0, LATENTS - 4)


@pytest.mark.parametrize("step", [1, 3, 7])
def test_a_branch_from_a_keyframe_without_latents_is_refused(step: int) -> None:
    with pytest.raises(JobRejected, match=f"no keyframe at step {step}, only at 2, 4") as error:
        read_branch(make_ladder(), step)
    assert error.value.blame == "member"


NAN = torch.full((4, 4, 4), float("nan"))
BAD_LADDERS = {
    "no ladder": (b"\x00", "cannot be read"),
    "a picture": (encode_picture(draw_scene()), "cannot be read"),
    "another shape": (make_ladder(shape=(4, 8, 8)), "another size"),
    "more steps": (make_ladder(total_steps=9), "another number of steps"),
    "fewer steps": (make_ladder(total_steps=7), "another number of steps"),
    "short latents": (
        make_ladder(keyframes=(Keyframe(4, b"", to_bytes(LATENTS)[:-4], to_bytes(LATENTS), 1),)),
        "wrong size",
    ),
    "long history": (
        make_ladder(keyframes=(Keyframe(4, b"", to_bytes(LATENTS), to_bytes(LATENTS) * 2, 1),)),
        "wrong size",
    ),
    "no numbers": (make_ladder(keyframes=(Keyframe(4, b"", to_bytes(NAN), to_bytes(LATENTS), 1),)), "not finite"),
    "an infinite estimate": (
        make_ladder(keyframes=(Keyframe(4, b"", to_bytes(LATENTS), to_bytes(LATENTS / 0), 1),)),
        "not finite",
    ),
    "no history": (make_ladder(keyframes=(Keyframe(4, b"", to_bytes(LATENTS), None, 1),)), "cannot be read"),
    "no draw count": (
        make_ladder(keyframes=(Keyframe(4, b"", to_bytes(LATENTS), to_bytes(LATENTS)),)),
        "cannot be read",
    ),
    "no latents at all": (make_ladder(keyframes=(Keyframe(4, b""),)), "has no keyframe to branch from"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_LADDERS.values(), ids=list(BAD_LADDERS))
def test_a_hostile_ladder_is_refused_with_a_sentence(content: bytes, reason: str) -> None:
    with pytest.raises(JobRejected, match=reason):
        read_branch(content)
