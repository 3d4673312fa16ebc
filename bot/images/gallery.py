"""Finished pictures of a job and the files made from them: films, keyframe grids, contact sheets, comparisons.

Files are made on first request, off the event loop, one at a time; the last few stay in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from bot.images import dissolve, film, labelled, rungs, walk
from bot.images.blur import blurred
from bot.images.closely import BY_MAP, Closely, Decode, Thumbnails, seen_closely
from bot.images.film_formats import Kind, check_kind
from bot.images.held import NO_FILM as HELD_FILM
from bot.images.held import is_held, why
from bot.images.made import Made
from bot.images.pictures import Missing, Pictures
from bot.images.pixels import Unreadable
from bot.images.reel import LIMIT
from bot.refused import Refused
from bot.states import over
from bot.store import Store, Stored, reviews, walks

KEPT = 8  # files in memory; at most 10 MB each
LADDERS = 16  # jobs whose keyframe thumbnails, and pictures whose steps, stay in memory
DRAWN = 2  # keyframe grids drawn at once
GONE = "This picture is not kept any more."
NO_FILM = "There is no film of this job."
NO_WALK = "There is no film of a walk with this job."
UNDERWAY = "This walk is still under way: its film comes with the last of its pictures."
NO_LADDER = "This picture has no keyframes to branch from."


class Gallery:
    """Every method raises `Refused`: 404 if there is nothing to show, 403 for what the picture check holds."""

    def __init__(self, store: Store, pictures: Pictures, decode: Decode | None = None) -> None:
        self._store, self._pictures = store, pictures
        self._files: Made[bytes] = Made(KEPT)  # by kind and parts
        self._bare: Made[list[bytes]] = Made(LADDERS)
        self._closely = Closely(store, self.read, decode)
        self._steps: Made[tuple[int, ...]] = Made(LADDERS)
        self._drawn = asyncio.Semaphore(DRAWN)

    async def stored(self, job: str, index: int) -> Stored:
        """Return the record of one finished image that may be shown, upscaled and varied."""
        one, held = await self._image(job, index)
        if held:
            raise Refused(why(index, one), 403)
        return one

    async def _image(self, job: str, index: int) -> tuple[Stored, bool]:
        """Return one finished image, and whether it is held."""
        check, kept = await self._store.ask(reviews.kept, job)
        for one in kept:
            if one.kind == "image" and one.image == index:
                return one, is_held(check, one)
        raise Refused("There is no such picture.", 404)

    async def picture(self, job: str, index: int) -> bytes:
        """Return one image as PNG."""
        return await self.read(await self.stored(job, index))

    async def shown(self, job: str, index: int) -> bytes:
        """Return one image as every member may see it: blurred while it is held."""
        return await self._shown(*await self._image(job, index))

    async def _shown(self, one: Stored, held: bool) -> bytes:
        content = await self.read(one)
        try:
            return await asyncio.to_thread(blurred, content) if held else content
        except Unreadable as error:
            raise Refused(GONE, 404) from error

    async def all_shown(self, job: str) -> list[bytes]:
        """Return every finished image of a job, in order, each as `shown` returns it."""
        check, kept = await self._store.ask(reviews.kept, job)
        images = [one for one in kept if one.kind == "image"]
        return [await self._shown(one, is_held(check, one)) for one in images]

    async def behind(self, job: str, index: int) -> bytes:
        """Return one image unblurred, held or not: only for moderators who decide about it."""
        return await self.read((await self._image(job, index))[0])

    async def film(self, job: str, limit: int = LIMIT, kind: Kind = "webp") -> bytes:
        """Return the job's film, at most `limit` bytes. Raises `Refused` (422) for a format that cannot be made."""
        check_kind(kind)
        shown, finals = await self._filmed(job)
        parts, limit = [*shown, *finals], min(limit, LIMIT)

        def make(contents: Sequence[bytes]) -> bytes:
            ladders, ends = contents[: len(shown)], contents[len(shown) :]
            return film.film(ladders, finals=ends, kind=kind, limit=limit)

        seen = await self._closely.look(job, shown)
        return await self._made(("film", kind, str(limit)), parts, make, NO_FILM, seen)

    async def walk(self, job: str, limit: int = LIMIT, kind: Kind = "webp") -> bytes:
        """Return the film of all jobs of a walk, there and back, at most `limit` bytes; held pictures are left out."""
        check_kind(kind)
        limit, shown = min(limit, LIMIT), await self._walked(job)

        def make(contents: Sequence[bytes]) -> bytes:
            return walk.walk(contents, kind=kind, limit=limit)

        return await self._made(("walk", kind, str(limit)), shown, make, GONE)

    async def _walked(self, job: str) -> list[Stored]:
        """Return the images of a walk that may be shown, in order. Raises `Refused` (404) if it has no film."""
        shown: list[Stored] = []
        for part in await self._store.ask(walks.parts, job):
            if not over(part.state):
                raise Refused(UNDERWAY, 404)
            if part.deleted is None:
                check, kept = await self._store.ask(reviews.kept, part.id)
                shown += [one for one in kept if one.kind == "image" and not is_held(check, one)]
        if len(shown) < 2:
            raise Refused(NO_WALK, 404)
        return shown

    async def dissolve(self, job: str, index: int, kind: Kind = "webp", limit: int = LIMIT) -> bytes:
        """Return a film of one image dissolving into noise, at most `limit` bytes."""
        check_kind(kind)
        limit = min(limit, LIMIT)

        def make(contents: Sequence[bytes]) -> bytes:
            return dissolve.dissolve(contents[0], dissolve.seed_of(contents[0]), kind=kind, limit=limit)

        return await self._made(("dissolve", kind, str(limit)), [await self.stored(job, index)], make, GONE)

    async def there_and_back(self, job: str, index: int, kind: Kind = "webp", limit: int = LIMIT) -> bytes:
        """Return a film of one image dissolving into noise and forming again, at most `limit` bytes."""
        check_kind(kind)
        limit, parts = min(limit, LIMIT), [await self.stored(job, index), await self.ladder(job, index)]

        def make(contents: Sequence[bytes]) -> bytes:
            picture, ladder = contents
            return dissolve.there_and_back(picture, ladder, dissolve.seed_of(picture), kind=kind, limit=limit)

        seen = await self._closely.look(job, parts[1:])
        return await self._made(("there and back", kind, str(limit)), parts, make, NO_FILM, seen)

    async def branchable(self, job: str, index: int) -> tuple[int, ...]:
        """Return the steps at which an image can be branched, ascending; empty if its ladder keeps no latents."""
        one = await self.ladder(job, index)

        async def make() -> tuple[int, ...]:
            return await asyncio.to_thread(rungs.branchable, await self.read(one))

        return await self._steps.of((one.sha256,), make)

    async def ladder(self, job: str, index: int) -> Stored:
        """Return the ladder of one image that may be shown."""
        await self.stored(job, index)
        _, kept = await self._store.ask(reviews.kept, job)
        for one in kept:
            if one.kind == "ladder" and one.image == index:
                return one
        raise Refused(NO_LADDER, 404)

    async def read(self, one: Stored) -> bytes:
        """Return the bytes of a stored file."""
        try:
            return await self._pictures.get(one.sha256)
        except Missing as error:
            raise Refused(GONE, 404) from error

    async def sheet(self, job: str, index: int) -> bytes:
        """Return the keyframes that can be branched as a WebP contact sheet, each labelled with its step."""

        def make(contents: Sequence[bytes]) -> bytes:
            return labelled.contact_sheet(contents[0])

        parts = [await self.ladder(job, index)]
        return await self._made(("sheet",), parts, make, rungs.UNREADABLE, await self._closely.look(job, parts))

    async def compared(self, shots: Sequence[tuple[str, int]], labels: Sequence[str]) -> bytes:
        """Return 2 to 4 images, by job and index, side by side with a label under each, as PNG."""
        if not 2 <= len(shots) <= 4 or len(labels) != len(shots):
            raise Refused("Two to four pictures can be compared.")
        parts = [await self.stored(job, index) for job, index in shots]
        return await self._made(
            ("compared", *labels), parts, lambda contents: labelled.compared(contents, labels), GONE
        )

    async def _made(
        self, what: tuple[str, ...], parts: Sequence[Stored], make: Callable[[Sequence[bytes]], bytes], otherwise: str,
        seen: Mapping[str, Thumbnails] = BY_MAP,
    ) -> bytes:  # fmt: skip
        """Return `make` of the parts' contents, or the cached result.

        `otherwise`: the refusal if a part is unreadable. `seen`: decoded thumbnails of ladders, by SHA-256.
        """

        async def made() -> bytes:
            try:
                contents = [await self.read(one) for one in parts]
                return await asyncio.to_thread(lambda: make(seen_closely(parts, contents, seen)))
            except Unreadable as error:
                raise Refused(otherwise, 404) from error

        return await self._files.of((*what, "decoded" if seen else "", *(one.sha256 for one in parts)), made)

    async def rungs(self, job: str) -> list[int]:
        """Return the step of each keyframe, for a slider."""
        try:
            return await asyncio.to_thread(film.steps, await self._without_latents(job))
        except Unreadable as error:
            raise Refused(NO_FILM, 404) from error

    async def rung(self, job: str, n: int) -> bytes:
        """Return the grid at keyframe `n`, as WebP."""
        try:
            ladders = await self._without_latents(job)
            async with self._drawn:
                return await asyncio.to_thread(film.rung, ladders, n)
        except (Unreadable, IndexError) as error:
            raise Refused("There is no such keyframe.", 404) from error

    async def _without_latents(self, job: str) -> list[bytes]:
        """Return the job's ladders without latents; they are read once for all keyframes. Raises `Unreadable`."""
        parts, _ = await self._filmed(job)
        seen = await self._closely.look(job, parts)

        async def make() -> list[bytes]:
            contents = [await self.read(one) for one in parts]
            return await asyncio.to_thread(lambda: film.bare(seen_closely(parts, contents, seen)))

        return await self._bare.of(("decoded" if seen else "", *(one.sha256 for one in parts)), make)

    async def _filmed(self, job: str) -> tuple[list[Stored], list[Stored]]:
        """Return the ladders of the images that may be shown, and these images if all are there."""
        check, kept = await self._store.ask(reviews.kept, job)
        found = [one for one in kept if one.kind == "ladder"]
        if not found:
            raise Refused(NO_FILM, 404)
        held = {one.image for one in kept if one.kind == "image" and is_held(check, one)}
        if not (free := [one for one in found if one.image not in held]):
            raise Refused(HELD_FILM, 403)
        shown = {one.image for one in free}
        finals = sorted((one for one in kept if one.kind == "image" and one.image in shown), key=lambda one: one.image)
        return free, finals if len(finals) == len(free) else []
