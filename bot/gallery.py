"""Finished pictures, films and rungs of a job, as bytes.

Knows the store and the picture store. Films are made from the ladders when first asked for, off the event loop, one
at a time; the last few are kept in memory.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from bot import film
from bot.pictures import Missing, Pictures
from bot.pixels import Unreadable
from bot.refused import Refused
from bot.store import Store, Stored, reads

KEPT_FILMS = 8
GONE = "This picture is not kept any more."
NO_FILM = "There is no film of this job."


class Gallery:
    """Every method raises `Refused` (404) where there is nothing to show."""

    def __init__(self, store: Store, pictures: Pictures) -> None:
        self._store, self._pictures = store, pictures
        self._films: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._turn = asyncio.Lock()

    async def stored(self, job: str, index: int) -> Stored:
        """What is known of one finished image."""
        for one in await self._store.ask(reads.stored, [job]):
            if one.kind == "image" and one.image == index:
                return one
        raise Refused("There is no such picture.", 404)

    async def picture(self, job: str, index: int) -> bytes:
        """One image as PNG."""
        return await self._bytes(await self.stored(job, index))

    async def film(self, job: str) -> bytes:
        """How the images came to be, as an animated WebP."""
        shas = tuple(one.sha256 for one in await self._stored_ladders(job))
        async with self._turn:
            if shas not in self._films:
                self._films[shas] = await self._film(job)
                while len(self._films) > KEPT_FILMS:
                    self._films.popitem(last=False)
            self._films.move_to_end(shas)
            return self._films[shas]

    async def _film(self, job: str) -> bytes:
        ladders = await self._ladders(job)
        try:
            return await asyncio.to_thread(film.film, ladders)
        except (Unreadable, film.TooLarge) as error:
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

    async def _stored_ladders(self, job: str) -> list[Stored]:
        found = [one for one in await self._store.ask(reads.stored, [job]) if one.kind == "ladder"]
        if not found:
            raise Refused(NO_FILM, 404)
        return found

    async def _ladders(self, job: str) -> list[bytes]:
        return [await self._bytes(one) for one in await self._stored_ladders(job)]

    async def _bytes(self, one: Stored) -> bytes:
        try:
            return await self._pictures.get(one.sha256)
        except Missing as error:
            raise Refused(GONE, 404) from error
