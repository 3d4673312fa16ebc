"""Init images and an optional mask, decoded, as a job needs them. Only `read` does I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bot.images.intake import Brought, Intake
from bot.refused import Refused
from bot.views import Material
from engine.job import MAX_SOURCES, Forward, Source

STRENGTH, BLENDED, PAINTED = 0.6, 0.5, 0.9  # default strength: one picture, a blend, an inpainted area


@dataclass(frozen=True)
class Origin:
    """Init images and an optional mask. `contents`: those that are not stored yet, by SHA-256."""

    material: tuple[Material, ...]
    contents: dict[str, bytes]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the first picture."""
        return self.material[0].width, self.material[0].height

    def forward(self, strength: float | None) -> Forward:
        """Return the recipe's part; without a `strength`, the default one."""
        masks = [one.sha256 for one in self.material if one.kind == "mask"]
        pictures = tuple(Source(one.sha256, one.weight) for one in self.material if one.kind == "input")
        usual = PAINTED if masks else BLENDED if len(pictures) > 1 else STRENGTH
        return Forward(pictures, usual if strength is None else strength, masks[0] if masks else None)


async def read(
    intake: Intake, contents: Sequence[bytes], mask: bytes | None, weights: Sequence[float] = ()
) -> Origin:  # fmt: skip
    """Decode pictures and a mask. Raises `Refused`."""
    check_count(len(contents))
    pictures = [await intake.read(content) for content in contents]
    shape = pictures[0].width, pictures[0].height
    painted = None if mask is None else await intake.read_mask(mask, shape=shape)
    return origin(pictures, painted, weights)


def check_count(pictures: int) -> None:
    """Raise `Refused` for no picture, or more than a job takes."""
    if not 1 <= pictures <= MAX_SOURCES:
        raise Refused(f"One to {MAX_SOURCES} pictures may begin a job, and these are {pictures}.")


def origin(pictures: Sequence[Brought | Material], mask: Brought | None, weights: Sequence[float] = ()) -> Origin:
    """Combine decoded pictures with stored ones. Raises `Refused` for weights that do not fit."""
    read = [one for one in (*pictures, mask) if isinstance(one, Brought)]
    material = tuple(one if isinstance(one, Material) else _material("input", one) for one in pictures)
    masks = () if mask is None else (_material("mask", mask),)
    notes = (note for one in read if one is not mask for note in one.notes)
    contents = {one.sha256: one.png for one in read}
    return Origin((*weighed(material, weights), *masks), contents, tuple(dict.fromkeys(notes)))


def weighed(pictures: tuple[Material, ...], weights: Sequence[float]) -> tuple[Material, ...]:
    """Set the pictures' weights. Raises `Refused` if their number differs, or one is out of range."""
    if not weights:
        return pictures
    if len(weights) != len(pictures) or not all(0 < one <= 100 for one in weights):
        raise Refused("Each picture takes one weight above 0 and at most 100.")
    return tuple(replace(one, weight=weight) for one, weight in zip(pictures, weights, strict=True))


def _material(kind: Literal["input", "mask"], one: Brought) -> Material:
    return Material(kind, one.sha256, len(one.png), one.width, one.height)
