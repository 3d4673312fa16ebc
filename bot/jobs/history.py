"""A member's history, page by page; and the lookup of a job by message link, id or seed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from bot.domain.dto import Destination, JobView, Member
from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.jobs.views import JobViews
from bot.store import JobRecord, Store
from bot.store.jobs import destinations
from bot.store.jobs import queries as stored
from bot.store.jobs.queries import HistoryFilter
from engine.contract import Recipe

__all__ = ["History", "HistoryEntry", "HistoryFilter", "HistoryPage"]

PAGE_SIZE = 5  # jobs
MAX_SEARCHED = 300  # newest jobs searched for a seed
MAX_OPEN = 100
MAX_PROMPTS = 100  # newest jobs whose prompts are suggested again
ID_PATTERN = re.compile(r"(?<![0-9A-Z])[0-9A-HJKMNP-TV-Z]{26}(?![0-9A-Z])", re.IGNORECASE)
LINK_PATTERN = re.compile(r"/channels/(?:@me|\d+)/\d+/(\d+)")
SEED_PATTERN = re.compile(r"\bseed:?\s*(\d{1,10})\b|^\s*(\d{1,10})\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class HistoryEntry:
    """A job in the history. `destination`: where it is shown; `reason`: why nowhere. `favourites`: the member's."""

    view: JobView
    destination: Destination | None
    reason: str = ""
    favourites: tuple[int, ...] = ()


@dataclass(frozen=True)
class HistoryPage:
    """Page `number` of `page_count`, counted from 1, out of `job_count` jobs."""

    entries: tuple[HistoryEntry, ...]
    filter_name: HistoryFilter
    number: int
    page_count: int
    job_count: int


class History:
    def __init__(self, store: Store, job_views: JobViews) -> None:
        self._store = store
        self._job_views = job_views

    async def load_page(self, member: str, filter_name: HistoryFilter, number: int, thread: str = "") -> HistoryPage:
        """Return one page of a member's jobs over all servers, newest first; the last page if `number` is too high.

        `thread`: the private thread where they are; favourites of other private threads are left out.
        """
        number = max(1, number)
        records, total = await self._store.query(
            stored.list_history, member, filter_name, PAGE_SIZE, (number - 1) * PAGE_SIZE, thread
        )
        last = max(1, math.ceil(total / PAGE_SIZE))
        if number > last:
            return await self.load_page(member, filter_name, last, thread)
        return HistoryPage(tuple(await self._load_entries(records, member)), filter_name, number, last, total)

    async def _load_entries(self, records: list[JobRecord], member: str) -> list[HistoryEntry]:
        ids = [record.id for record in records]
        destinations = await self._store.query(stored.find_destinations, ids)
        favourites = await self._store.query(stored.list_liked_images, member, ids)
        views = await self._job_views.build_views(records)
        return [
            HistoryEntry(view, *destinations.get(view.id, (None, "")), favourites=tuple(favourites.get(view.id, ())))
            for view in views
        ]

    async def list_open(self, member: str) -> list[JobView]:
        """Return a member's jobs that run or wait, newest first."""
        return await self._job_views.build_views(await self._store.query(stored.list_open_jobs, member, MAX_OPEN))

    async def recent_prompts(self, member: str) -> list[str]:
        """Return the prompts that a member typed lately, in any server, newest first, each once."""
        records, _ = await self._store.query(stored.list_history, member, "all", MAX_PROMPTS, 0)
        return list(dict.fromkeys(record.prompt for record in records if record.action == "imagine"))

    async def list_nearby(self, member: Member, limit: int) -> list[JobView]:
        """Return the newest of a member's own jobs and of the public ones in the channel where they are."""
        records = await self._store.query(
            stored.list_nearby_jobs, member.id, member.guild, member.channel, limit, member.thread
        )
        return await self._job_views.build_views(records)

    async def find_job(self, text: str, member: Member) -> JobView:
        """Return the job named by its id, the link of its message, or a line with its seed. Raises `UserError`.

        The caller checks permissions. A seed is searched among the jobs that the member could see.
        """
        if match := ID_PATTERN.search(text):
            return await self._job_views.load_view(match[0].upper())
        if match := LINK_PATTERN.search(text):
            job = await self._store.query(destinations.find_job, match[1])
            if job is None:
                raise UserError("That message shows no job of mine.", 404)
            return await self._job_views.load_view(job)
        if match := SEED_PATTERN.search(text):
            return await self._find_by_seed(int(match[1] or match[2]), member)
        raise UserError(f"“{shorten(text, 60)}” names no job: choose one from the list, or give its link or seed.")

    async def _find_by_seed(self, seed: int, member: Member) -> JobView:
        for record in await self._store.query(
            stored.list_nearby_jobs, member.id, member.guild, member.channel, MAX_SEARCHED, member.thread
        ):
            if isinstance(record.task, Recipe) and record.task.seed == seed:
                return await self._job_views.load_view(record.id)
        raise UserError(f"Of your jobs and the newest ones in this channel, none has the seed {seed}.", 404)
