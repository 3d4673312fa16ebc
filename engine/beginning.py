"""Init images, masks and keyframes as tensors: what an image starts from in place of pure noise.

The blobs come from outside, so sizes are bounded, and bad ones are refused with a sentence.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageOps

from engine.families.family import Family
from engine.job import Branch, Forward, Ladder, Malformed, Recipe, decode, onto
from engine.noise import slerp
from engine.unfit import Unfit

MOST_PIXELS = 4096 * 4096
FORMATS = ("PNG", "JPEG", "WEBP")
HALF = 128  # lighter parts of a mask are painted anew


@dataclass(frozen=True)
class Beginning:
    """The start of an image. `latents`: z of a `Forward`, x of a `Branch`, `[channels, height, width]`, float32.

    They are on the family's device. For a branch, `estimate` is its x0, and `drawn` is how many noise draws came
    before, if the ladder stores them. `level` is the latents' (alpha, sigma), set if the recipe's number of steps
    differs from the ladder's. `mask` is `[1, height, width]`, 1 where the image is painted anew. `picture` (RGB) and
    `painted` (grey) are the init image and mask in the finished size, to composite the unmasked part back. Several
    blended init images have neither, since no single one could be composited.
    """

    latents: torch.Tensor
    estimate: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    picture: Image.Image | None = None
    painted: Image.Image | None = None
    drawn: int | None = None
    level: tuple[float, float] | None = None

    def at(self, level: tuple[float, float]) -> torch.Tensor:
        """Return the branch's latents at a nearby noise level: x = alpha·x0 + sigma·eps, with x0 and eps unchanged."""
        if self.level is None or self.estimate is None or self.level == level:
            return self.latents
        (alpha, sigma), (other, noisier) = self.level, level
        return other * self.estimate + noisier / sigma * (self.latents - alpha * self.estimate)


def read(recipe: Recipe, blobs: Mapping[str, bytes], family: Family) -> Beginning | None:
    """Return the start of an image; None for pure noise. `blobs`: the recipe's `sources`, by SHA-256. Raises `Unfit`.

    It runs the autoencoder, so call it only in the decode worker's thread.
    """
    start = recipe.start
    if isinstance(start, Forward):
        return _forward(start, recipe, blobs, family)
    if isinstance(start, Branch):
        return _rung(start, recipe, _blob(blobs, start.ladder), family)
    return None


def whole(picture: bytes, family: Family) -> torch.Tensor:
    """Return the autoencoder's mean of an image's middle square, at the native size. Raises `Unfit`, as `read` does."""
    square = ImageOps.fit(_opened(picture), (family.size, family.size), Image.Resampling.LANCZOS)
    latents = family.encode_image(square).to(family.device, torch.float32)
    if not torch.isfinite(latents).all():
        raise Unfit("The model encoded the image as numbers that are not finite.", "model")
    return latents


def _forward(start: Forward, recipe: Recipe, blobs: Mapping[str, bytes], family: Family) -> Beginning:
    """Encode the init images and interpolate them one after another, each by its share of the weight so far.

    z is the autoencoder's mean. diffusers' own call samples the posterior, which is too narrow to show, and spends
    noise draws on it. So parity holds with latents passed to its image-to-image pipelines.
    """
    size, weight = (recipe.width, recipe.height), 0.0
    mixed: torch.Tensor | None = None
    for each in start.pictures:
        picture = ImageOps.fit(_opened(_blob(blobs, each.sha256)), size, Image.Resampling.LANCZOS)
        latents = family.encode_image(picture).to(family.device, torch.float32)
        weight += each.weight
        mixed = latents if mixed is None else slerp(mixed, latents, each.weight / weight)
    assert mixed is not None, "it has at least one init image"
    _check(mixed, recipe, family)
    if start.mask is None:
        return Beginning(mixed)
    painted = _opened(_blob(blobs, start.mask)).convert("L")
    mask, final = _reduced(painted, size, mixed), (size[0] * family.enlargement, size[1] * family.enlargement)
    if start.pictures[1:]:
        return Beginning(mixed, mask=mask)
    whole = ImageOps.fit(_opened(_blob(blobs, start.pictures[0].sha256)), final, Image.Resampling.LANCZOS)
    return Beginning(mixed, mask=mask, picture=whole, painted=ImageOps.fit(painted, final, Image.Resampling.LANCZOS))


def _reduced(painted: Image.Image, size: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """Return the mask at latent size, as diffusers' inpainting does: threshold, then nearest-neighbour scaling."""
    fitted = np.asarray(ImageOps.fit(painted, size, Image.Resampling.LANCZOS))
    mask = torch.from_numpy((fitted >= HALF).astype(np.float32))[None, None]
    return torch.nn.functional.interpolate(mask, size=like.shape[-2:])[0].to(like.device)


def _rung(start: Branch, recipe: Recipe, blob: bytes, family: Family) -> Beginning:
    shape = family.latent_shape(recipe.width, recipe.height)
    try:
        ladder = decode(blob, Ladder)
    except Malformed as error:
        raise Unfit("The keyframes that the picture branches from cannot be read.", "us") from error
    if ladder.shape != tuple(shape) or not _stands(start, ladder.of, recipe.steps):
        raise Unfit("The keyframes have another size or another number of steps than the branch.", "us")
    kept = {rung.step: rung for rung in ladder.rungs if rung.latent is not None and rung.step < ladder.of}
    rung = kept.get(start.left)
    if rung is None or rung.latent is None:
        raise Unfit(_no_rung(start.left, sorted(kept)), "member")
    estimate = None if rung.history is None else _tensor(rung.history, shape, family.device)
    found = Beginning(_tensor(rung.latent, shape, family.device), estimate, drawn=rung.drawn)
    return found if start.rung is None else _elsewhere(found, start.rung, ladder.of, recipe, family)


def _stands(start: Branch, of: int, steps: int) -> bool:
    """Return whether the branch starts at the step of its keyframe."""
    if start.rung is None:
        return of == steps
    return of > start.rung and start.step == onto(start.rung, of, steps)


def _elsewhere(found: Beginning, rung: int, of: int, recipe: Recipe, family: Family) -> Beginning:
    """Add the keyframe's noise level and draw count, from the plan with the ladder's number of steps."""
    try:
        plan = family.plan(recipe.sampler, of, recipe.eta, recipe.width, recipe.height)
    except ValueError as error:
        raise Unfit(f"{family.name} can no longer run the {of} steps of that picture.", "model") from error
    return replace(found, level=plan.level(rung), drawn=found.drawn or plan.draws[rung])


def _no_rung(step: int, kept: list[int]) -> str:
    if not kept:
        return "This picture has no keyframe to branch from."
    return f"There is no keyframe at step {step}, only at {', '.join(map(str, kept))}."


def _tensor(state: bytes, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    if len(state) != 4 * int(np.prod(shape)):
        raise Unfit("The keyframe's latents have the wrong size.", "us")
    found = torch.from_numpy(np.frombuffer(bytearray(state), dtype=np.float32).reshape(shape))
    if not torch.isfinite(found).all():
        raise Unfit("The keyframe holds numbers that are not finite.", "us")
    return found.to(device)


def _check(latents: torch.Tensor, recipe: Recipe, family: Family) -> None:
    if tuple(latents.shape) != tuple(family.latent_shape(recipe.width, recipe.height)):
        raise Unfit(f"{family.name} cannot start from an image of this shape.", "model")
    if not torch.isfinite(latents).all():
        raise Unfit("The model encoded the image as numbers that are not finite.", "model")


def _blob(blobs: Mapping[str, bytes], sha256: str) -> bytes:
    try:
        return blobs[sha256]
    except KeyError as error:
        raise Unfit("The init image or keyframe of this picture is no longer stored.", "us") from error


def _opened(content: bytes) -> Image.Image:
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise Unfit("The init image is too large.", "us")
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error, zlib.error) as error:
        raise Unfit("The init image cannot be read.", "us") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unfit("The init image is too large.", "us") from error
