"""Pictures of a recipe as tensors: init images, masks, keyframes, control and reference pictures.

The blobs come from outside, so sizes are bounded, and bad ones are refused with a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageOps

from engine.batching.model_inputs import slerp
from engine.contract import Branch, ImageToImage, JobRejected, Ladder, MalformedMessage, Recipe, decode, map_step
from engine.models.families.picture_editing import EditedPicture, EditedPictures, fit_edited_size, is_edit
from engine.models.family import Family, with_autoencoder
from engine.models.picture_conditions import PictureConditions, TakesPictures
from engine.picture_files import open_image


def check_pictures(recipe: Recipe, family: Family) -> None:
    """Raise `JobRejected` where the family cannot take the recipe's control and reference pictures."""
    if not isinstance(family, TakesPictures):
        if recipe.controls or recipe.references:
            raise JobRejected(f"{family.name} takes no control or reference pictures.", "model")
        return
    if family.needs_pictures(recipe) and recipe.tile:
        raise JobRejected("A tile takes no control, reference or inpainted pictures.", "member")
    if any(control.start >= control.stop for control in recipe.controls):
        raise JobRejected("A control picture cannot stop before it starts.", "member")
    family.check_pictures(recipe)


def load_pictures(recipe: Recipe, blobs: Mapping[str, bytes], family: Family) -> PictureConditions:
    """Return the pictures beside the prompt, as the family's networks take them; () where there are none.

    `blobs`: the recipe's `required_blobs`, by SHA-256. It runs networks, so call it only in the decode worker's thread.
    Raises `JobRejected`.
    """
    family = with_autoencoder(family, recipe)
    check_pictures(recipe, family)
    if not isinstance(family, TakesPictures) or not family.needs_pictures(recipe):
        return ()
    return family.prepare_pictures(recipe, lambda sha256: open_image(get_blob(blobs, sha256, "picture"), "picture"))


def get_blob(blobs: Mapping[str, bytes], sha256: str, subject: str = "init image or keyframe") -> bytes:
    try:
        return blobs[sha256]
    except KeyError as error:
        raise JobRejected(f"The {subject} of this picture is no longer stored.", "us") from error


UNREADABLE_KEYFRAMES = "The keyframes that the picture branches from cannot be read."
MASK_THRESHOLD = 128  # lighter parts of a mask are painted anew


@dataclass(frozen=True)
class InitLatents:
    """The start of an image. `latents`: z of an `ImageToImage`, x of a `Branch`, `[channels, height, width]`, float32.

    They are on the family's device. For a branch, `x0` is the keyframe's x0, and `draw_count` is how many noise draws
    came before. `noise_level` is the latents' (alpha, sigma), set if the recipe's number of steps differs from the
    ladder's. `mask` is `[1, height, width]`, 1 where the image is painted anew. `init_image` (RGB) and `mask_image`
    (grey) have the finished size, to composite the unmasked part back. Several blended init images have neither, since
    no single one could be composited. `edited`: the pictures of an edit by words, which the network sees at each step.
    """

    latents: torch.Tensor
    x0: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    init_image: Image.Image | None = None
    mask_image: Image.Image | None = None
    draw_count: int = 1
    noise_level: tuple[float, float] | None = None
    edited: EditedPictures = ()

    def at_noise_level(self, target: tuple[float, float]) -> torch.Tensor:
        """Return the branch's latents at a nearby noise level: x = alpha·x0 + sigma·eps, with x0 and eps unchanged."""
        if self.noise_level is None or self.x0 is None or self.noise_level == target:
            return self.latents
        (alpha, sigma), (alpha_target, sigma_target) = self.noise_level, target
        return alpha_target * self.x0 + sigma_target / sigma * (self.latents - alpha * self.x0)


def load_init_latents(recipe: Recipe, blobs: Mapping[str, bytes], family: Family) -> InitLatents | None:
    """Return the start of an image; None for pure noise. `blobs`: the recipe's `required_blobs`, by SHA-256.

    It runs the autoencoder, so call it only in the decode worker's thread. Raises `JobRejected`.
    """
    start = recipe.start
    family = with_autoencoder(family, recipe)
    if isinstance(start, ImageToImage):
        encode = _encode_edited_pictures if is_edit(recipe, family) else _encode_init_images
        return encode(start, recipe, blobs, family)
    if isinstance(start, Branch):
        return _load_keyframe(start, recipe, get_blob(blobs, start.ladder), family)
    return None


def encode_square(picture: bytes, family: Family) -> torch.Tensor:
    """Return the autoencoder's mean `[channels, height, width]`, float32, of an image's middle square.

    The square is scaled to the native size. Raises `JobRejected`.
    """
    cropped = ImageOps.fit(open_image(picture), (family.size, family.size), Image.Resampling.LANCZOS)
    latents = family.encode_image(cropped).to(family.device, torch.float32)
    if not torch.isfinite(latents).all():
        raise JobRejected("The model encoded the image as numbers that are not finite.", "model")
    return latents


def _encode_init_images(start: ImageToImage, recipe: Recipe, blobs: Mapping[str, bytes], family: Family) -> InitLatents:
    """Encode the init images and interpolate them one after another, each by its share of the weight so far.

    z is the autoencoder's mean. diffusers' own call samples the posterior, which is too narrow to show, and spends
    noise draws on it. So parity holds with latents passed to its image-to-image pipelines.
    """
    size = (recipe.width, recipe.height)
    total_weight = 0.0
    blended: torch.Tensor | None = None
    for init_image in start.pictures:
        picture = ImageOps.fit(open_image(get_blob(blobs, init_image.sha256)), size, Image.Resampling.LANCZOS)
        latents = family.encode_image(picture).to(family.device, torch.float32)
        total_weight += init_image.weight
        blended = latents if blended is None else slerp(blended, latents, init_image.weight / total_weight)
    assert blended is not None, "it has at least one init image"
    _check_latents(blended, recipe, family)
    if start.mask is None:
        return InitLatents(blended)
    mask_image = open_image(get_blob(blobs, start.mask)).convert("L")
    mask = _shrink_mask(mask_image, size, blended)
    final_size = (size[0] * family.upscale_factor, size[1] * family.upscale_factor)
    if start.pictures[1:]:
        return InitLatents(blended, mask=mask)
    full_size_image = ImageOps.fit(
        open_image(get_blob(blobs, start.pictures[0].sha256)), final_size, Image.Resampling.LANCZOS
    )
    return InitLatents(
        blended,
        mask=mask,
        init_image=full_size_image,
        mask_image=ImageOps.fit(mask_image, final_size, Image.Resampling.LANCZOS),
    )


def _encode_edited_pictures(
    start: ImageToImage, recipe: Recipe, blobs: Mapping[str, bytes], family: Family
) -> InitLatents:
    """Encode each picture: the first in the shape of the new one, the others in their own."""
    edited: list[EditedPicture] = []
    for init_image in start.pictures:
        picture = open_image(get_blob(blobs, init_image.sha256))
        size = fit_edited_size(recipe, family, picture.size if edited else None)
        image = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
        latents = family.encode_image(image).to(family.device, torch.float32)
        if not torch.isfinite(latents).all():
            raise JobRejected("The model encoded the image as numbers that are not finite.", "model")
        edited.append(EditedPicture(image, latents))
    return InitLatents(edited[0].latents, edited=tuple(edited))


def _shrink_mask(mask_image: Image.Image, size: tuple[int, int], latents: torch.Tensor) -> torch.Tensor:
    """Return the mask at latent size, as diffusers' inpainting does: threshold, then nearest-neighbour scaling."""
    resized = np.asarray(ImageOps.fit(mask_image, size, Image.Resampling.LANCZOS))
    mask = torch.from_numpy((resized >= MASK_THRESHOLD).astype(np.float32))[None, None]
    return torch.nn.functional.interpolate(mask, size=latents.shape[-2:])[0].to(latents.device)


def _load_keyframe(start: Branch, recipe: Recipe, blob: bytes, family: Family) -> InitLatents:
    shape = family.latent_shape(recipe.width, recipe.height)
    try:
        ladder = decode(blob, Ladder)
    except MalformedMessage as error:
        raise JobRejected(UNREADABLE_KEYFRAMES, "us") from error
    if ladder.shape != tuple(shape) or not _is_at_keyframe(start, ladder.total_steps, recipe.steps):
        raise JobRejected("The keyframes have another size or another number of steps than the branch.", "us")
    branchable = {
        keyframe.step: keyframe
        for keyframe in ladder.keyframes
        if keyframe.latent is not None and keyframe.step < ladder.total_steps
    }
    keyframe = branchable.get(start.keyframe_step)
    if keyframe is None or keyframe.latent is None:
        raise JobRejected(_no_keyframe_sentence(start.keyframe_step, sorted(branchable)), "member")
    if keyframe.history is None or keyframe.draw_count is None:
        raise JobRejected(UNREADABLE_KEYFRAMES, "us")
    x0 = _decode_latents(keyframe.history, shape, family.device)
    latents = _decode_latents(keyframe.latent, shape, family.device)
    init_latents = InitLatents(latents, x0, draw_count=keyframe.draw_count)
    return (
        init_latents
        if start.ladder_step is None
        else _with_noise_level(init_latents, start.ladder_step, ladder.total_steps, recipe, family)
    )


def _is_at_keyframe(start: Branch, ladder_steps: int, steps: int) -> bool:
    if start.ladder_step is None:
        return ladder_steps == steps
    return ladder_steps > start.ladder_step and start.step == map_step(start.ladder_step, ladder_steps, steps)


def _with_noise_level(
    init_latents: InitLatents, keyframe_step: int, ladder_steps: int, recipe: Recipe, family: Family
) -> InitLatents:
    """Add the keyframe's noise level, from the plan with the ladder's number of steps."""
    try:
        plan = family.plan(recipe.sampler, ladder_steps, recipe.eta, recipe.width, recipe.height)
    except ValueError as error:
        raise JobRejected(
            f"{family.name} can no longer run the {ladder_steps} steps of that picture.", "model"
        ) from error
    return replace(init_latents, noise_level=plan.noise_level(keyframe_step))


def _no_keyframe_sentence(step: int, branchable: list[int]) -> str:
    if not branchable:
        return "This picture has no keyframe to branch from."
    return f"There is no keyframe at step {step}, only at {', '.join(map(str, branchable))}."


def _decode_latents(content: bytes, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    if len(content) != 4 * int(np.prod(shape)):
        raise JobRejected("The keyframe's latents have the wrong size.", "us")
    latents = torch.from_numpy(np.frombuffer(bytearray(content), dtype=np.float32).reshape(shape))
    if not torch.isfinite(latents).all():
        raise JobRejected("The keyframe holds numbers that are not finite.", "us")
    return latents.to(device)


def _check_latents(latents: torch.Tensor, recipe: Recipe, family: Family) -> None:
    if tuple(latents.shape) != tuple(family.latent_shape(recipe.width, recipe.height)):
        raise JobRejected(f"{family.name} cannot start from an image of this shape.", "model")
    if not torch.isfinite(latents).all():
        raise JobRejected("The model encoded the image as numbers that are not finite.", "model")
