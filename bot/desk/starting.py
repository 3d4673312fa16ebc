"""What a job begins with: pictures that members bring, masks, finished pictures, rungs of a ladder.

Read by the intake, kept by content, and noted with the job in the transaction that writes it, as its pictures will be:
so they go when it goes. Knows the intake, the store and the picture store; knows nothing of prompts or who may.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from bot.images.gallery import Gallery
from bot.images.intake import Brought, Intake
from bot.images.pictures import Pictures
from bot.refused import Refused
from bot.store import Store, Unavailable, deleting, reads
from bot.views import Material
from engine.job import MAX_SOURCES, Forward, Source

log = logging.getLogger(__name__)

STRENGTH, BLENDED, PAINTED = 0.6, 0.5, 0.9  # of a picture, of several, and of what a mask leaves to be drawn
GONE = "The picture that it begins with is not there any more."


@dataclass(frozen=True)
class Origin:
    """Pictures and perhaps a mask, as a job needs them; `contents` are those that are not kept yet, by SHA-256."""

    material: tuple[Material, ...]
    contents: dict[str, bytes]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the first picture."""
        return self.material[0].width, self.material[0].height

    def forward(self, strength: float | None) -> Forward:
        """As a recipe says it; without a `strength`, the usual one."""
        masks = [one.sha256 for one in self.material if one.kind == "mask"]
        pictures = tuple(Source(one.sha256, one.weight) for one in self.material if one.kind == "input")
        usual = PAINTED if masks else BLENDED if len(pictures) > 1 else STRENGTH
        return Forward(pictures, usual if strength is None else strength, masks[0] if masks else None)


class Starting:
    """Made by `bot.house`."""

    def __init__(self, store: Store, pictures: Pictures, gallery: Gallery, intake: Intake) -> None:
        self._store, self._pictures, self._gallery, self._intake = store, pictures, gallery, intake

    async def brought(
        self, contents: Sequence[bytes], mask: bytes | None = None, weights: Sequence[float] = ()
    ) -> Origin:  # fmt: skip
        """Pictures as somebody sent them, in any format that is read. Raises `Refused`."""
        return await read(self._intake, contents, mask, weights)

    async def finished(self, shots: Sequence[tuple[str, int]], weights: Sequence[float] = ()) -> Origin:
        """Finished pictures, each by its job and index. Raises `Refused`, also for one that is held."""
        stored = [await self._gallery.stored(job, index) for job, index in shots]
        material = (Material("input", one.sha256, one.bytes, one.width, one.height) for one in stored)
        return Origin(weighed(tuple(material), weights), {})

    async def masked(self, start: Origin, mask: bytes) -> Origin:
        """The same with a mask, as somebody painted it. Raises `Refused`."""
        painted = await self._intake.read_mask(mask)
        one = Material("mask", painted.sha256, len(painted.png), painted.width, painted.height)
        return Origin((*start.material, one), {**start.contents, painted.sha256: painted.png}, start.notes)

    async def ladder(self, job: str, index: int) -> tuple[Material, bytes]:
        """The ladder of a finished image that may be shown, and its bytes. Raises `Refused` where it has none."""
        one, content = await self._gallery.ladder(job, index)
        return Material("branch", one.sha256, one.bytes, one.width, one.height), content

    async def of(self, job: str) -> tuple[Material, ...]:
        """What a job began with, for another one that begins with the same."""
        kept = await self._store.ask(reads.stored, [job])
        return tuple(
            Material(kind, one.sha256, one.bytes, one.width, one.height)
            for kind in ("input", "mask", "branch") for one in kept if one.kind == kind
        )  # fmt: skip

    @asynccontextmanager
    async def kept(
        self, material: Sequence[Material], contents: dict[str, bytes] | None = None
    ) -> AsyncIterator[None]:  # fmt: skip
        """While the job is written: what it begins with stays, in turn with whoever takes pictures away.

        What nobody has noted by the end, since the job was refused, is taken away again. Raises `Refused`.
        """
        names = sorted({one.sha256 for one in material})
        async with AsyncExitStack() as turns:
            for name in names:
                await turns.enter_async_context(self._pictures.turn(name))
            try:
                for name in names:
                    await self._keep(name, (contents or {}).get(name))
                yield
            finally:
                for name in contents or {}:
                    await self._tidy(name)

    async def _tidy(self, name: str) -> None:
        """Drops what no job has noted. That it cannot be done now changes nothing of what was answered."""
        try:
            if await self._store.ask(deleting.unused, name):
                await self._pictures.drop(name)
        except (Unavailable, OSError) as error:
            log.warning("picture %s may be kept for nobody: %s", name, error)

    async def _keep(self, name: str, content: bytes | None) -> None:
        try:
            if content is not None:
                await self._pictures.put(content)
            elif not await self._pictures.has(name):
                raise Refused(GONE, 404)
        except OSError as error:
            raise Refused("Pictures cannot be stored just now: try again soon.", 429) from error


async def read(
    intake: Intake, contents: Sequence[bytes], mask: bytes | None, weights: Sequence[float] = ()
) -> Origin:  # fmt: skip
    """Pictures and a mask as somebody sent them. Raises `Refused`."""
    if not 1 <= len(contents) <= MAX_SOURCES:
        raise Refused(f"One to {MAX_SOURCES} pictures can be brought, and these are {len(contents)}.")
    pictures = [await intake.read(content) for content in contents]
    notes = [note for one in pictures for note in one.notes]
    painted = None if mask is None else await intake.read_mask(mask)
    return origin(pictures, painted, weights, tuple(dict.fromkeys(notes)))


def origin(read: Sequence[Brought], mask: Brought | None, weights: Sequence[float], notes: tuple[str, ...]) -> Origin:
    """What was read, as a job needs it."""
    pictures = tuple(Material("input", one.sha256, len(one.png), one.width, one.height) for one in read)
    masks = () if mask is None else (Material("mask", mask.sha256, len(mask.png), mask.width, mask.height),)
    contents = {one.sha256: one.png for one in (*read, *(() if mask is None else (mask,)))}
    return Origin((*weighed(pictures, weights), *masks), contents, notes)


def weighed(pictures: tuple[Material, ...], weights: Sequence[float]) -> tuple[Material, ...]:
    """Raises `Refused` where there are not as many weights as pictures, or one is out of range."""
    if not weights:
        return pictures
    if len(weights) != len(pictures) or not all(0 < one <= 100 for one in weights):
        raise Refused("Each picture takes one weight above 0 and at most 100.")
    return tuple(replace(one, weight=weight) for one, weight in zip(pictures, weights, strict=True))
