"""Init, control and reference pictures and an optional mask, decoded, as a job needs them.

Only `decode_init_images` does I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bot.domain.dto import InputKind, StoredInput
from bot.domain.errors import UserError
from bot.images.uploads.upload_decoder import DecodedImage, UploadDecoder
from engine.contract import MAX_CONTROLS, MAX_INIT_IMAGES, MAX_REFERENCES, ImageToImage, InitImage

# default strength: one picture, a blend, an inpainted area
DEFAULT_STRENGTH = 0.6
BLEND_STRENGTH = 0.5
INPAINT_STRENGTH = 0.9


@dataclass(frozen=True)
class LoadedInitImages:
    """Init, control and reference pictures, and an optional mask. `new_contents`: those that are not stored yet, by
    SHA-256.
    """

    inputs: tuple[StoredInput, ...]
    new_contents: dict[str, bytes]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels of the first init image, else of the first control picture; None without both."""
        sizes = ((file.width, file.height) for kind in ("input", "control") for file in self._list_kind(kind))
        return next(sizes, None)

    @property
    def control_pictures(self) -> tuple[str, ...]:
        """The SHA-256 of each control picture; without one, that of the first init image."""
        return tuple(file.sha256 for file in self._list_kind("control") or self._list_kind("input")[:1])

    @property
    def reference_pictures(self) -> tuple[str, ...]:
        """The SHA-256 of each reference picture."""
        return tuple(file.sha256 for file in self._list_kind("reference"))

    @property
    def has_control_pictures(self) -> bool:
        """Whether a picture was given for control alone."""
        return bool(self._list_kind("control"))

    def _list_kind(self, kind: InputKind) -> tuple[StoredInput, ...]:
        return tuple(file for file in self.inputs if file.kind == kind)

    def recipe_part(self, strength: float | None) -> ImageToImage | None:
        """Return the recipe's start, None without init images; without a `strength`, with the default one."""
        if not self._list_kind("input"):
            return None
        masks = [file.sha256 for file in self.inputs if file.kind == "mask"]
        pictures = tuple(InitImage(file.sha256, file.weight) for file in self._list_kind("input"))
        default_strength = INPAINT_STRENGTH if masks else BLEND_STRENGTH if len(pictures) > 1 else DEFAULT_STRENGTH
        return ImageToImage(pictures, default_strength if strength is None else strength, masks[0] if masks else None)


async def decode_init_images(
    upload_decoder: UploadDecoder,
    contents: Sequence[bytes],
    mask: bytes | None,
    weights: Sequence[float] = (),
    controls: Sequence[bytes] = (),
    references: Sequence[bytes] = (),
) -> LoadedInitImages:
    """Decode pictures and a mask. Raises `UserError`."""
    check_image_counts(len(contents), len(controls), len(references), has_mask=mask is not None)
    pictures = [await upload_decoder.decode_picture(content) for content in contents]
    decoded_mask = (
        None if mask is None else await upload_decoder.decode_mask(mask, shape=(pictures[0].width, pictures[0].height))
    )
    return combine_init_images(
        pictures,
        decoded_mask,
        weights,
        [await upload_decoder.decode_picture(content, label="control picture") for content in controls],
        [await upload_decoder.decode_picture(content, label="reference picture") for content in references],
    )


def check_image_counts(init_images: int, controls: int, references: int, *, has_mask: bool) -> None:
    """Raise `UserError` for no picture, more than a job takes, or a mask without its picture."""
    has_others = controls + references > 0
    if not (0 if has_others and not has_mask else 1) <= init_images <= MAX_INIT_IMAGES:
        raise UserError(f"One to {MAX_INIT_IMAGES} pictures may begin a job, and these are {init_images}.")
    for count, most, noun in ((controls, MAX_CONTROLS, "control"), (references, MAX_REFERENCES, "reference")):
        if count > most:
            raise UserError(f"A job takes at most {most} {noun} pictures, and these are {count}.")


def combine_init_images(
    pictures: Sequence[DecodedImage | StoredInput],
    mask: DecodedImage | None,
    weights: Sequence[float] = (),
    controls: Sequence[DecodedImage | StoredInput] = (),
    references: Sequence[DecodedImage | StoredInput] = (),
) -> LoadedInitImages:
    """Combine decoded pictures with stored ones. Raises `UserError` for weights that do not fit."""
    all_images = (*pictures, mask, *controls, *references)
    decoded_images = [image for image in all_images if isinstance(image, DecodedImage)]
    masks = () if mask is None else (_stored_input("mask", mask),)
    notes = (note for image in decoded_images if image is not mask for note in image.notes)
    contents = {image.sha256: image.png for image in decoded_images}
    inputs = (
        *with_weights(_stored_inputs("input", pictures), weights),
        *masks,
        *_stored_inputs("control", controls),
        *_stored_inputs("reference", references),
    )
    return LoadedInitImages(inputs, contents, tuple(dict.fromkeys(notes)))


def with_weights(pictures: tuple[StoredInput, ...], weights: Sequence[float]) -> tuple[StoredInput, ...]:
    """Set the pictures' weights. Raises `UserError` if their number differs, or one is out of range."""
    if not weights:
        return pictures
    if len(weights) != len(pictures) or not all(0 < value <= 100 for value in weights):
        raise UserError("Each picture takes one weight above 0 and at most 100.")
    return tuple(replace(value, weight=weight) for value, weight in zip(pictures, weights, strict=True))


def _stored_inputs(kind: InputKind, images: Sequence[DecodedImage | StoredInput]) -> tuple[StoredInput, ...]:
    return tuple(
        replace(image, kind=kind) if isinstance(image, StoredInput) else _stored_input(kind, image) for image in images
    )


def _stored_input(kind: InputKind, image: DecodedImage) -> StoredInput:
    return StoredInput(kind, image.sha256, len(image.png), image.width, image.height)
