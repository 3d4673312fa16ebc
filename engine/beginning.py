"""What an image begins with in place of noise: pictures as latents, a mask, a rung of another image's ladder.

Read from blobs that came from outside: bounded, and refused with a sentence. Knows pictures, ladders and a family's
autoencoder and noise levels; knows nothing of where blobs lie, of how samplers step, or of time.
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
HALF = 128  # what is lighter in a mask is drawn anew


@dataclass(frozen=True)
class Beginning:
    """`latents` are z of a `Forward`, x of a `Branch`: `[channels, height, width]`, float32, on the family's device.

    `estimate` is the branch's x0 and `drawn` how many draws of noise came before, where its ladder kept them; `level`
    the latents' noise, alpha and sigma, where its steps are another number than the ladder's. `mask` is
    `[1, height, width]`, 1 where it is drawn anew.
    `picture` (RGB) and `painted` (grey) are then the pixels, as large as the finished picture, to be laid over it; none
    where several pictures are blended, for there is no one picture that stays.
    """

    latents: torch.Tensor
    estimate: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    picture: Image.Image | None = None
    painted: Image.Image | None = None
    drawn: int | None = None
    level: tuple[float, float] | None = None

    def at(self, level: tuple[float, float]) -> torch.Tensor:
        """The branch's latents at a noise level near theirs: x = alpha·x0 + sigma·eps, x0 and eps as they were."""
        if self.level is None or self.estimate is None or self.level == level:
            return self.latents
        (alpha, sigma), (other, noisier) = self.level, level
        return other * self.estimate + noisier / sigma * (self.latents - alpha * self.estimate)


def read(recipe: Recipe, blobs: Mapping[str, bytes], family: Family) -> Beginning | None:
    """None where it begins with noise; `blobs` are the recipe's `sources`, by SHA-256. Raises `Unfit`.

    It works with the autoencoder, which is the business of the lane's thread.
    """
    start = recipe.start
    if isinstance(start, Forward):
        return _forward(start, recipe, blobs, family)
    if isinstance(start, Branch):
        return _rung(start, recipe, _blob(blobs, start.ladder), family)
    return None


def whole(picture: bytes, family: Family) -> torch.Tensor:
    """The autoencoder's mean of a picture's middle square, at the native size. Raises `Unfit`, as `read` does."""
    square = ImageOps.fit(_opened(picture), (family.size, family.size), Image.Resampling.LANCZOS)
    latents = family.encode_image(square).to(family.device, torch.float32)
    if not torch.isfinite(latents).all():
        raise Unfit("The picture became numbers that are not finite.", "model")
    return latents


def _forward(start: Forward, recipe: Recipe, blobs: Mapping[str, bytes], family: Family) -> Beginning:
    """The autoencoder's mean of each, mixed one after another, each by its share of the weight so far.

    diffusers' own call samples the posterior, whose spread is far below what shows, and spends draws on it: parity is
    with latents that are passed to its image-to-image pipelines.
    """
    size, weight = (recipe.width, recipe.height), 0.0
    mixed: torch.Tensor | None = None
    for each in start.pictures:
        picture = ImageOps.fit(_opened(_blob(blobs, each.sha256)), size, Image.Resampling.LANCZOS)
        latents = family.encode_image(picture).to(family.device, torch.float32)
        weight += each.weight
        mixed = latents if mixed is None else slerp(mixed, latents, each.weight / weight)
    assert mixed is not None, "a forward process has a picture"
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
    """As diffusers' inpainting has it: black and white first, then every so many pixels one."""
    fitted = np.asarray(ImageOps.fit(painted, size, Image.Resampling.LANCZOS))
    mask = torch.from_numpy((fitted >= HALF).astype(np.float32))[None, None]
    return torch.nn.functional.interpolate(mask, size=like.shape[-2:])[0].to(like.device)


def _rung(start: Branch, recipe: Recipe, blob: bytes, family: Family) -> Beginning:
    shape = family.latent_shape(recipe.width, recipe.height)
    try:
        ladder = decode(blob, Ladder)
    except Malformed as error:
        raise Unfit("The ladder that the picture branches from cannot be read.", "us") from error
    if ladder.shape != tuple(shape) or not _stands(start, ladder.of, recipe.steps):
        raise Unfit("The ladder is of a picture of another size or another number of steps than the branch.", "us")
    kept = {rung.step: rung for rung in ladder.rungs if rung.latent is not None and rung.step < ladder.of}
    rung = kept.get(start.left)
    if rung is None or rung.latent is None:
        raise Unfit(_no_rung(start.left, sorted(kept)), "member")
    estimate = None if rung.history is None else _tensor(rung.history, shape, family.device)
    found = Beginning(_tensor(rung.latent, shape, family.device), estimate, drawn=rung.drawn)
    return found if start.rung is None else _elsewhere(found, start.rung, ladder.of, recipe, family)


def _stands(start: Branch, of: int, steps: int) -> bool:
    """Whether the branch begins where its rung is."""
    if start.rung is None:
        return of == steps
    return of > start.rung and start.step == onto(start.rung, of, steps)


def _elsewhere(found: Beginning, rung: int, of: int, recipe: Recipe, family: Family) -> Beginning:
    """With what the schedule of the ladder's steps says of that rung."""
    try:
        plan = family.plan(recipe.sampler, of, recipe.eta, recipe.width, recipe.height)
    except ValueError as error:
        raise Unfit(f"{family.name} cannot take the {of} steps of the picture any more.", "model") from error
    return replace(found, level=plan.level(rung), drawn=found.drawn or plan.draws[rung])


def _no_rung(step: int, kept: list[int]) -> str:
    if not kept:
        return "This picture's ladder keeps no latents to branch from."
    return f"The ladder keeps no latents at step {step}; it does at {', '.join(map(str, kept))}."


def _tensor(state: bytes, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    if len(state) != 4 * int(np.prod(shape)):
        raise Unfit("The ladder's latents have the wrong size.", "us")
    found = torch.from_numpy(np.frombuffer(bytearray(state), dtype=np.float32).reshape(shape))
    if not torch.isfinite(found).all():
        raise Unfit("The ladder holds numbers that are not finite.", "us")
    return found.to(device)


def _check(latents: torch.Tensor, recipe: Recipe, family: Family) -> None:
    if tuple(latents.shape) != tuple(family.latent_shape(recipe.width, recipe.height)):
        raise Unfit(f"{family.name} cannot begin with a picture of this shape.", "model")
    if not torch.isfinite(latents).all():
        raise Unfit("The picture became numbers that are not finite.", "model")


def _blob(blobs: Mapping[str, bytes], sha256: str) -> bytes:
    try:
        return blobs[sha256]
    except KeyError as error:
        raise Unfit("What the picture begins with is no longer stored.", "us") from error


def _opened(content: bytes) -> Image.Image:
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise Unfit("The picture to begin with is too large.", "us")
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error, zlib.error) as error:
        raise Unfit("The picture to begin with cannot be read.", "us") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unfit("The picture to begin with is too large.", "us") from error
