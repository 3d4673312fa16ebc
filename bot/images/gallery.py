"""Finished pictures of a job, and what is made of them: films, rungs, contact sheets, comparisons. All of it as bytes.

Knows the store and the picture store. What takes long is made when first asked for, off the event loop, one at a time;
the last few are kept in memory.
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

KEPT = 8  # of what was made; at most 10 MB each
LADDERS = 16  # jobs whose thumbnails, and pictures whose steps, are in memory
DRAWN = 2  # rungs at once
GONE = "This picture is not kept any more."
NO_FILM = "There is no film of this job."
NO_WALK = "There is no film of a walk with this job."
UNDERWAY = "This walk is still under way: its film comes with the last of its pictures."
NO_LADDER = "This picture has no ladder to branch from."


class Gallery:
    """Every method raises `Refused` (404) where there is nothing to show, and (403) what the picture check holds."""

    def __init__(self, store: Store, pictures: Pictures, decode: Decode | None = None) -> None:
        self._store, self._pictures = store, pictures
        self._files: Made[bytes] = Made(KEPT)  # what was made, by its kind and parts
        self._bare: Made[list[bytes]] = Made(LADDERS)
        self._closely = Closely(store, self.read, decode)
        self._steps: Made[tuple[int, ...]] = Made(LADDERS)
        self._drawn = asyncio.Semaphore(DRAWN)

    async def stored(self, job: str, index: int) -> Stored:
        """What is known of one finished image that may be shown, enlarged, varied."""
        one, held = await self._image(job, index)
        if held:
            raise Refused(why(index, one), 403)
        return one

    async def _image(self, job: str, index: int) -> tuple[Stored, bool]:
        """One finished image, and whether it is held."""
        check, kept = await self._store.ask(reviews.kept, job)
        for one in kept:
            if one.kind == "image" and one.image == index:
                return one, is_held(check, one)
        raise Refused("There is no such picture.", 404)

    async def picture(self, job: str, index: int) -> bytes:
        """One image as PNG."""
        return await self.read(await self.stored(job, index))

    async def shown(self, job: str, index: int) -> bytes:
        """One image as everybody may see it: blurred while it is held."""
        return await self._shown(*await self._image(job, index))

    async def _shown(self, one: Stored, held: bool) -> bytes:
        content = await self.read(one)
        try:
            return await asyncio.to_thread(blurred, content) if held else content
        except Unreadable as error:
            raise Refused(GONE, 404) from error

    async def all_shown(self, job: str) -> list[bytes]:
        """Every finished image of a job, in order, as `shown` has each."""
        check, kept = await self._store.ask(reviews.kept, job)
        images = [one for one in kept if one.kind == "image"]
        return [await self._shown(one, is_held(check, one)) for one in images]

    async def behind(self, job: str, index: int) -> bytes:
        """One image as it is, held or not: for whoever decides about it, and nobody else."""
        return await self.read((await self._image(job, index))[0])

    async def film(self, job: str, limit: int = LIMIT, kind: Kind = "webp") -> bytes:
        """How the images came to be, animated, at most `limit` bytes. Raises also (422) where that kind is not made."""
        check_kind(kind)
        shown, finals = await self._filmed(job)
        parts, limit = [*shown, *finals], min(limit, LIMIT)

        def make(contents: Sequence[bytes]) -> bytes:
            ladders, ends = contents[: len(shown)], contents[len(shown) :]
            return film.film(ladders, finals=ends, kind=kind, limit=limit)

        seen = await self._closely.look(job, shown)
        return await self._made(("film", kind, str(limit)), parts, make, NO_FILM, seen)

    async def walk(self, job: str, limit: int = LIMIT, kind: Kind = "webp") -> bytes:
        """The pictures of a walk, of all its jobs, there and back, at most `limit` bytes; what is held is left out."""
        check_kind(kind)
        limit, shown = min(limit, LIMIT), await self._walked(job)

        def make(contents: Sequence[bytes]) -> bytes:
            return walk.walk(contents, kind=kind, limit=limit)

        return await self._made(("walk", kind, str(limit)), shown, make, GONE)

    async def _walked(self, job: str) -> list[Stored]:
        """The images of a walk that may be shown, in their order. Raises `Refused` (404) where it has no film."""
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
        """One image on its way into noise, animated, at most `limit` bytes."""
        check_kind(kind)
        limit = min(limit, LIMIT)

        def make(contents: Sequence[bytes]) -> bytes:
            return dissolve.dissolve(contents[0], dissolve.seed_of(contents[0]), kind=kind, limit=limit)

        return await self._made(("dissolve", kind, str(limit)), [await self.stored(job, index)], make, GONE)

    async def there_and_back(self, job: str, index: int, kind: Kind = "webp", limit: int = LIMIT) -> bytes:
        """One image on its way into noise, then how it came to be, at most `limit` bytes."""
        check_kind(kind)
        limit, parts = min(limit, LIMIT), [await self.stored(job, index), await self.ladder(job, index)]

        def make(contents: Sequence[bytes]) -> bytes:
            picture, ladder = contents
            return dissolve.there_and_back(picture, ladder, dissolve.seed_of(picture), kind=kind, limit=limit)

        seen = await self._closely.look(job, parts[1:])
        return await self._made(("there and back", kind, str(limit)), parts, make, NO_FILM, seen)

    async def branchable(self, job: str, index: int) -> tuple[int, ...]:
        """The steps at which one can branch off from an image, rising; empty where its ladder keeps no latents."""
        one = await self.ladder(job, index)

        async def make() -> tuple[int, ...]:
            return await asyncio.to_thread(rungs.branchable, await self.read(one))

        return await self._steps.of((one.sha256,), make)

    async def ladder(self, job: str, index: int) -> Stored:
        """That of one image that may be shown."""
        await self.stored(job, index)
        _, kept = await self._store.ask(reviews.kept, job)
        for one in kept:
            if one.kind == "ladder" and one.image == index:
                return one
        raise Refused(NO_LADDER, 404)

    async def read(self, one: Stored) -> bytes:
        """Its bytes."""
        try:
            return await self._pictures.get(one.sha256)
        except Missing as error:
            raise Refused(GONE, 404) from error

    async def sheet(self, job: str, index: int) -> bytes:
        """These steps as pictures, each with its number, as WebP."""

        def make(contents: Sequence[bytes]) -> bytes:
            return labelled.contact_sheet(contents[0])

        parts = [await self.ladder(job, index)]
        return await self._made(("sheet",), parts, make, rungs.UNREADABLE, await self._closely.look(job, parts))

    async def compared(self, shots: Sequence[tuple[str, int]], labels: Sequence[str]) -> bytes:
        """2 to 4 images, by job and index, side by side with a label under each, as PNG."""
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
        """`make` of the parts' contents, or what it made before. `otherwise`: why not, where a part is unreadable.

        `seen`: how ladders look decoded, by their SHA-256.
        """

        async def made() -> bytes:
            try:
                contents = [await self.read(one) for one in parts]
                return await asyncio.to_thread(lambda: make(seen_closely(parts, contents, seen)))
            except Unreadable as error:
                raise Refused(otherwise, 404) from error

        return await self._files.of((*what, "decoded" if seen else "", *(one.sha256 for one in parts)), made)

    async def rungs(self, job: str) -> list[int]:
        """The step at each rung, for a slider."""
        try:
            return await asyncio.to_thread(film.steps, await self._without_latents(job))
        except Unreadable as error:
            raise Refused(NO_FILM, 404) from error

    async def rung(self, job: str, n: int) -> bytes:
        """The grid at rung `n`, as WebP."""
        try:
            ladders = await self._without_latents(job)
            async with self._drawn:
                return await asyncio.to_thread(film.rung, ladders, n)
        except (Unreadable, IndexError) as error:
            raise Refused("There is no such rung.", 404) from error

    async def _without_latents(self, job: str) -> list[bytes]:
        """Its ladders without latents: read once, however many rungs are looked at. Raises `Unreadable`."""
        parts, _ = await self._filmed(job)
        seen = await self._closely.look(job, parts)

        async def make() -> list[bytes]:
            contents = [await self.read(one) for one in parts]
            return await asyncio.to_thread(lambda: film.bare(seen_closely(parts, contents, seen)))

        return await self._bare.of(("decoded" if seen else "", *(one.sha256 for one in parts)), make)

    async def _filmed(self, job: str) -> tuple[list[Stored], list[Stored]]:
        """The ladders of the images that may be shown, and these images where all are there."""
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
