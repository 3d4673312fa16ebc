"""Shared by the tests of init images: pictures, masks and ladders as blobs, and jobs that use them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from engine.batching.engine import Engine, JobFailure, LatentsDone
from engine.batching.input_pictures import InitLatents, load_init_latents, load_pictures
from engine.contract import ImageToImage, InitImage, Job, Keyframe, Ladder, Recipe, Snapshot, encode
from engine.models.family import Family

Blobs = dict[str, bytes]


def draw_scene(size: tuple[int, int] = (64, 64), colour: str = "orange") -> Image.Image:
    """A disc in front of two coloured halves."""
    picture = Image.new("RGB", size, "teal")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, size[1] // 2, *size), fill="navy")
    draw.ellipse((size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4), fill=colour)
    return picture


def draw_half_mask(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A mask that is white on the right, so that the left half stays."""
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle((size[0] // 2, 0, *size), fill=255)
    return mask


def hash_blobs(*contents: bytes) -> Blobs:
    return {hashlib.sha256(content).hexdigest(): content for content in contents}


def make_image_to_image(
    pictures: Sequence[bytes], strength: float, mask: bytes | None = None
) -> tuple[ImageToImage, Blobs]:
    """Init images of equal weight for a recipe's `start`, and the blobs that it needs."""
    sources = tuple(InitImage(name) for content in pictures for name in hash_blobs(content))
    mask_name = None if mask is None else next(iter(hash_blobs(mask)))
    return ImageToImage(sources, strength, mask_name), hash_blobs(*pictures, *([] if mask is None else [mask]))


def encode_ladder(image: LatentsDone, job: Job) -> bytes:
    """The ladder as the decode worker writes it, but with empty thumbnails."""
    recipe = job.task
    assert isinstance(recipe, Recipe)
    keyframes = tuple(
        Keyframe(keyframe.step, b"", None, None, keyframe.draw_count)
        if keyframe.latents is None
        else Keyframe(keyframe.step, b"", to_bytes(keyframe.latents), to_bytes(keyframe.x0), keyframe.draw_count)
        for keyframe in image.keyframes
    )
    shape = tuple(image.latents.shape)
    return encode(Ladder(job=job.id, image=image.image, total_steps=recipe.steps, shape=shape, keyframes=keyframes))


def to_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def load_init(job: Job, blobs: Blobs, family: Family) -> InitLatents | None:
    assert isinstance(job.task, Recipe)
    return load_init_latents(job.task, blobs, family)


def add_job(engine: Engine, job: Job, blobs: Blobs, family: Family, snapshots: Sequence[Snapshot] = ()) -> None:
    assert isinstance(job.task, Recipe)
    engine.add(job, snapshots, load_init(job, blobs, family), load_pictures(job.task, blobs, family))


def run_job(job: Job, blobs: Blobs, family: Family, snapshots: Sequence[Snapshot] = ()) -> list[LatentsDone]:
    """Runs the job alone in an engine and returns its images in order."""
    engine = Engine({family.name: family})
    images = list[LatentsDone]()
    add_job(engine, job, blobs, family, snapshots)
    while not engine.is_idle:
        for event in engine.step():
            assert not isinstance(event, JobFailure), event
            images += [event] if isinstance(event, LatentsDone) else []
    return sorted(images, key=lambda event: event.image)
