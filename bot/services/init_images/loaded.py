"""Init images and an optional mask, decoded, as a job needs them. Only `decode_init_images` does I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bot.domain.dto import StoredInput
from bot.domain.errors import UserError
from bot.images.uploads.upload_decoder import DecodedImage, UploadDecoder
from engine.contract import MAX_INIT_IMAGES, ImageToImage, InitImage

DEFAULT_STRENGTH, BLEND_STRENGTH, INPAINT_STRENGTH = (
    0.6,
    0.5,
    0.9,
)  # default strength: one picture, a blend, an inpainted area


@dataclass(frozen=True)
class LoadedInitImages:
    """Init images and an optional mask. `new_contents`: those that are not stored yet, by SHA-256."""

    inputs: tuple[StoredInput, ...]
    new_contents: dict[str, bytes]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the first picture."""
        return self.inputs[0].width, self.inputs[0].height

    def recipe_part(self, strength: float | None) -> ImageToImage:
        """Return the recipe's part; without a `strength`, the default one."""
        masks = [file.sha256 for file in self.inputs if file.kind == "mask"]
        pictures = tuple(InitImage(file.sha256, file.weight) for file in self.inputs if file.kind == "input")
        default_strength = INPAINT_STRENGTH if masks else BLEND_STRENGTH if len(pictures) > 1 else DEFAULT_STRENGTH
        return ImageToImage(pictures, default_strength if strength is None else strength, masks[0] if masks else None)


async def decode_init_images(
    upload_decoder: UploadDecoder, contents: Sequence[bytes], mask: bytes | None, weights: Sequence[float] = ()
) -> LoadedInitImages:  # fmt: skip
    """Decode pictures and a mask. Raises `UserError`."""
    check_image_count(len(contents))
    pictures = [await upload_decoder.decode_picture(content) for content in contents]
    shape = pictures[0].width, pictures[0].height
    decoded_mask = None if mask is None else await upload_decoder.decode_mask(mask, shape=shape)
    return combine_init_images(pictures, decoded_mask, weights)


def check_image_count(count: int) -> None:
    """Raise `UserError` for no picture, or more than a job takes."""
    if not 1 <= count <= MAX_INIT_IMAGES:
        raise UserError(f"One to {MAX_INIT_IMAGES} pictures may begin a job, and these are {count}.")


def combine_init_images(
    pictures: Sequence[DecodedImage | StoredInput], mask: DecodedImage | None, weights: Sequence[float] = ()
) -> LoadedInitImages:
    """Combine decoded pictures with stored ones. Raises `UserError` for weights that do not fit."""
    decoded_images = [image for image in (*pictures, mask) if isinstance(image, DecodedImage)]
    inputs = tuple(image if isinstance(image, StoredInput) else _stored_input("input", image) for image in pictures)
    masks = () if mask is None else (_stored_input("mask", mask),)
    notes = (note for image in decoded_images if image is not mask for note in image.notes)
    contents = {image.sha256: image.png for image in decoded_images}
    return LoadedInitImages((*with_weights(inputs, weights), *masks), contents, tuple(dict.fromkeys(notes)))


def with_weights(pictures: tuple[StoredInput, ...], weights: Sequence[float]) -> tuple[StoredInput, ...]:
    """Set the pictures' weights. Raises `UserError` if their number differs, or one is out of range."""
    if not weights:
        return pictures
    if len(weights) != len(pictures) or not all(0 < value <= 100 for value in weights):
        raise UserError("Each picture takes one weight above 0 and at most 100.")
    return tuple(replace(value, weight=weight) for value, weight in zip(pictures, weights, strict=True))


def _stored_input(kind: Literal["input", "mask"], image: DecodedImage) -> StoredInput:
    return StoredInput(kind, image.sha256, len(image.png), image.width, image.height)
