"""A member's history, page by page; and the lookup of a job by message link, id or seed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from bot.desk.register import Register
from bot.refused import Refused
from bot.sentences import shortened
from bot.store import Record, Store, places
from bot.store import shelf as stored
from bot.store.shelf import Which
from bot.views import Member, Place, View
from engine.job import Recipe

__all__ = ["Kept", "Page", "Shelf", "Which"]

PAGE = 5  # jobs
SEARCHED = 300  # newest jobs looked through for a seed
OPEN_AT_MOST = 100
TYPED = 100  # newest jobs whose prompts are suggested again
ID = re.compile(r"(?<![0-9A-Z])[0-9A-HJKMNP-TV-Z]{26}(?![0-9A-Z])", re.IGNORECASE)
LINK = re.compile(r"/channels/(?:@me|\d+)/\d+/(\d+)")
SEED = re.compile(r"\bseed:?\s*(\d{1,10})\b|^\s*(\d{1,10})\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Kept:
    """A job in the history. `place`: where it is shown; `reason`: why it could be shown nowhere, empty if it was.

    `liked`: the member's favourites among its images.
    """

    view: View
    place: Place | None
    reason: str = ""
    liked: tuple[int, ...] = ()


@dataclass(frozen=True)
class Page:
    """Page `number` of `of`, counted from 1, out of `total` jobs."""

    kept: tuple[Kept, ...]
    which: Which
    number: int
    of: int
    total: int


class Shelf:
    def __init__(self, store: Store, register: Register) -> None:
        self._store, self._register = store, register

    async def page(self, member: str, which: Which, number: int) -> Page:
        """Return one page of a member's jobs over all servers, newest first; the last page if `number` is too high."""
        number = max(1, number)
        found, total = await self._store.ask(stored.owned, member, which, PAGE, (number - 1) * PAGE)
        last = max(1, math.ceil(total / PAGE))
        if number > last:
            return await self.page(member, which, last)
        return Page(tuple(await self._kept(found, member)), which, number, last, total)

    async def one(self, job: str, member: str) -> Kept:
        """Return a single job as an entry of a member's history. Raises `Refused` (404)."""
        return (await self._kept([await self._register.record(job)], member))[0]

    async def _kept(self, found: list[Record], member: str) -> list[Kept]:
        ids = [record.id for record in found]
        places = await self._store.ask(stored.whereabouts, ids)
        liked = await self._store.ask(stored.liked, member, ids)
        views = await self._register.views(found)
        return [Kept(view, *places.get(view.id, (None, "")), liked=tuple(liked.get(view.id, ()))) for view in views]

    async def open_of(self, member: str) -> list[View]:
        """Return a member's jobs that run or wait, newest first."""
        return await self._register.views(await self._store.ask(stored.open_of, member, OPEN_AT_MOST))

    async def prompts(self, member: str) -> list[str]:
        """Return the prompts that a member typed lately, in any server, newest first, each once."""
        found, _ = await self._store.ask(stored.owned, member, "all", TYPED, 0)
        return list(dict.fromkeys(record.prompt for record in found if record.action == "imagine"))

    async def near(self, member: Member, limit: int) -> list[View]:
        """Return the newest of a member's own jobs and of the public ones in the channel where they are."""
        found = await self._store.ask(stored.near, member.id, member.guild, member.channel, limit)
        return await self._register.views(found)

    async def meant(self, text: str, member: Member) -> View:
        """Return the job named by its id, the link of its message, or a line with its seed. Raises `Refused`.

        The caller checks permissions. A seed is searched among the jobs that the member could see.
        """
        if found := ID.search(text):
            return await self._view(found[0].upper())
        if found := LINK.search(text):
            job = await self._store.ask(places.job_at, found[1])
            if job is None:
                raise Refused("That message shows no job of mine.", 404)
            return await self._view(job)
        if found := SEED.search(text):
            return await self._seeded(int(found[1] or found[2]), member)
        raise Refused(f"“{shortened(text, 60)}” names no job: choose one from the list, or give its link or seed.")

    async def _view(self, job: str) -> View:
        return (await self._register.views([await self._register.record(job)]))[0]

    async def _seeded(self, seed: int, member: Member) -> View:
        for record in await self._store.ask(stored.near, member.id, member.guild, member.channel, SEARCHED):
            if isinstance(record.task, Recipe) and record.task.seed == seed:
                return await self._view(record.id)
        raise Refused(f"Of your jobs and the newest ones in this channel, none has the seed {seed}.", 404)
