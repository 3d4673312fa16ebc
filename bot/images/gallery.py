"""Finished pictures, films and rungs of a job, as bytes.

Knows the store and the picture store. Films are made from the ladders when first asked for, off the event loop, one
at a time; the last few are kept in memory.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from bot.images import film
from bot.images.blur import blurred
from bot.images.held import NO_FILM as HELD_FILM
from bot.images.held import is_held, why
from bot.images.pictures import Missing, Pictures
from bot.images.pixels import Unreadable
from bot.refused import Refused
from bot.store import Store, Stored, reviews

KEPT_FILMS = 8
GONE = "This picture is not kept any more."
NO_FILM = "There is no film of this job."


class Gallery:
    """Every method raises `Refused` (404) where there is nothing to show, and (403) what the picture check holds."""

    def __init__(self, store: Store, pictures: Pictures) -> None:
        self._store, self._pictures = store, pictures
        self._films: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._turn = asyncio.Lock()

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
        return await self._bytes(await self.stored(job, index))

    async def shown(self, job: str, index: int) -> bytes:
        """One image as everybody may see it: blurred while it is held."""
        return await self._shown(*await self._image(job, index))

    async def _shown(self, one: Stored, held: bool) -> bytes:
        content = await self._bytes(one)
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
        return await self._bytes((await self._image(job, index))[0])

    async def film(self, job: str, limit: int = film.LIMIT) -> bytes:
        """How the images came to be, as an animated WebP of at most `limit` bytes."""
        limit, (shown, finals) = min(limit, film.LIMIT), await self._filmed(job)
        key = (*(one.sha256 for one in (*shown, *finals)), str(limit))
        async with self._turn:
            if key not in self._films:
                self._films[key] = await self._film(shown, finals, limit)
                while len(self._films) > KEPT_FILMS:
                    self._films.popitem(last=False)
            self._films.move_to_end(key)
            return self._films[key]

    async def _film(self, shown: Sequence[Stored], finals: Sequence[Stored], limit: int) -> bytes:
        ladders = [await self._bytes(one) for one in shown]
        ends = [await self._bytes(one) for one in finals]
        try:
            return await asyncio.to_thread(film.film, ladders, finals=ends, limit=limit)
        except film.TooLarge as error:
            raise Refused("This film is too large to be shown here, even at its smallest.", 413) from error
        except Unreadable as error:
            raise Refused(NO_FILM, 404) from error

    async def rungs(self, job: str) -> list[int]:
        """The step at each rung, for a slider."""
        ladders = await self._ladders(job)
        try:
            return await asyncio.to_thread(film.steps, ladders)
        except Unreadable as error:
            raise Refused(NO_FILM, 404) from error

    async def rung(self, job: str, n: int) -> bytes:
        """The grid at rung `n`, as WebP."""
        ladders = await self._ladders(job)
        try:
            return await asyncio.to_thread(film.rung, ladders, n)
        except (Unreadable, IndexError) as error:
            raise Refused("There is no such rung.", 404) from error

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

    async def _ladders(self, job: str) -> list[bytes]:
        return [await self._bytes(one) for one in (await self._filmed(job))[0]]

    async def _bytes(self, one: Stored) -> bytes:
        try:
            return await self._pictures.get(one.sha256)
        except Missing as error:
            raise Refused(GONE, 404) from error
