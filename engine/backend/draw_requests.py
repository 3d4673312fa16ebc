"""Turns a job's recipe into the pictures to ask a backend for, and a backend's file into a checked PNG."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import NamedTuple

from PIL import Image, ImageOps

from engine.backend.drawing import BackendModel, DrawRequest
from engine.contract import ImageToImage, ModelProfile, Recipe, find_lacking_feature, noise_seed, recipe_for_image
from engine.contract.rejection import JobRejected
from engine.picture_files.decoding import open_image
from engine.picture_files.encoding import encode_jpeg, encode_png
from engine.picture_files.parameters import format_parameters

PREVIEW_SIDE = 512  # pixels of a preview's longest side
MAX_UPSCALE = 8


def check_recipe(recipe: Recipe, profile: ModelProfile) -> None:
    """Raise `JobRejected` for a recipe that the backend cannot draw, whatever asked for it."""
    feature = find_lacking_feature(recipe, profile)
    if feature is not None:
        raise JobRejected(f"{profile.name} is behind another server, which takes no {feature}.", "member")
    if recipe.needs_choice:
        raise JobRejected(f"{profile.name} has no judge that could choose the best pictures.", "worker")
    if recipe.sampler not in profile.samplers:
        raise JobRejected(f"{profile.name} does not take the sampler {recipe.sampler}.", "model")
    if profile.required == "picture" and not isinstance(recipe.start, ImageToImage):
        raise JobRejected(f"{profile.name} edits a picture by words: give it one.", "member")


class InitImage(NamedTuple):
    """What a job's pictures begin with, as PNG of the recipe's size; None: nothing."""

    picture: bytes | None = None
    mask: bytes | None = None


def fit_init_image(recipe: Recipe, blobs: Mapping[str, bytes]) -> InitImage:
    """Return the init image that all pictures of a job share. Decodes it: call it in a thread. Raises `JobRejected`."""
    size = (recipe.width, recipe.height)
    start = recipe.start
    if not isinstance(start, ImageToImage):
        return InitImage()
    picture = _fit_png(blobs[start.pictures[0].sha256], size, "init image", "RGB")
    return InitImage(picture, _fit_png(blobs[start.mask], size, "mask", "L") if start.mask else None)


def make_request(recipe: Recipe, image: int, model: BackendModel, init_image: InitImage) -> DrawRequest:
    """Return the request for one image."""
    recipe = recipe_for_image(recipe, image)
    strength = recipe.start.strength if isinstance(recipe.start, ImageToImage) else 1.0
    return DrawRequest(
        model=model,
        prompt=recipe.concepts[0].text,
        negative=recipe.negative,
        seed=noise_seed(recipe, image),
        steps=recipe.steps,
        guidance=recipe.guidance,
        sampler=recipe.sampler,
        width=recipe.width,
        height=recipe.height,
        picture=init_image.picture,
        mask=init_image.mask,
        strength=strength,
        tile=recipe.tile,
        clip_skip=recipe.clip_skip,
        loras=recipe.loras,
    )


def finish_picture(content: bytes, recipe: Recipe, image: int, revision: str) -> bytes:
    """Return a backend's file as a PNG with its recipe, at the recipe's size or a whole multiple of it.

    It is decoded and encoded anew: nothing of the file but its pixels goes on. Raises `JobRejected`.
    """
    picture = open_image(content, "backend's picture", "worker")
    if not is_multiple(picture.size, (recipe.width, recipe.height)):
        picture = ImageOps.fit(picture, (recipe.width, recipe.height), Image.Resampling.LANCZOS)
    return encode_png(picture, format_parameters(recipe, image, revision, is_by_backend=True))


def is_multiple(size: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Whether a picture is `wanted` or both of its sides the same small multiple of it: another Darkroom upscales."""
    factor = size[0] // wanted[0]
    return 1 <= factor <= MAX_UPSCALE and size == (factor * wanted[0], factor * wanted[1])


def shrink_preview(content: bytes) -> bytes:
    """Return a backend's preview as a small JPEG. Raises `JobRejected`."""
    picture = open_image(content, "backend's preview", "worker")
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return encode_jpeg(picture)


def _fit_png(content: bytes, size: tuple[int, int], subject: str, mode: str) -> bytes:
    buffer = BytesIO()
    picture = ImageOps.fit(open_image(content, subject), size, Image.Resampling.LANCZOS).convert(mode)
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
