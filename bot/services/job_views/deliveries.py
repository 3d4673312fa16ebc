"""Deliveries: where each job is shown, and what is still to show there.

A job is settled once each destination shows its final state, or has a reason why it never will.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bot.domain.dto import Delivery, DeliveryRole, Destination, DestinationKind, JobView
from bot.services.job_views.job_views import JobViews, missing_job_error
from bot.store import Store
from bot.store.jobs import destinations


class Deliveries:
    """Reads and notes destinations for front ends."""

    def __init__(self, store: Store, job_views: JobViews, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._job_views = job_views
        self._clock = clock

    async def answer_destination(self, job: str) -> Destination:
        """Return where a job's request was answered. Raises `UserError` (404)."""
        destination = await self._store.query(destinations.get_destination, job)
        if destination is None:
            raise await missing_job_error(self._store, job)
        return destination

    async def list_deliveries(self, job: str) -> dict[DeliveryRole, Delivery]:
        """Return every destination of a job except its films."""
        return await self._store.query(destinations.list_deliveries, job)

    async def list_films(self, job: str) -> list[Delivery]:
        """Return the messages that show a job's film."""
        return await self._store.query(destinations.list_films, job)

    async def add_film(self, job: str, destination: Destination) -> bool:
        """Note a message with a job's film. False: the job is deleted by now, so the message must go too."""
        return await self._store.write(destinations.add_film, job, destination, self._clock())

    async def forget_film(self, job: str, message: str) -> None:
        """Note that a film's message is gone."""
        await self._store.write(destinations.delete_film, job, message)

    async def list_undelivered(self, kind: DestinationKind) -> list[tuple[JobView, Destination]]:
        """Return jobs, ended or not, that still have to show their final state at a destination of this kind; oldest
        first.
        """
        undelivered_jobs = await self._store.query(destinations.list_undelivered, kind)
        views = await self._job_views.build_views([record for record, _ in undelivered_jobs])
        return [(view, destination) for view, (_, destination) in zip(views, undelivered_jobs, strict=True)]

    async def add_destination(self, job: str, role: DeliveryRole, destination: Destination) -> bool:
        """Add a destination. False if the job already has one of that role."""
        return await self._store.write(destinations.add_destination, job, role, destination)

    async def update_address(self, job: str, role: DeliveryRole = "answer", /, **address: str) -> None:
        """Record what a front end learnt about a destination (its message, a new token, …)."""
        await self._store.write(destinations.update_destination, job, address, role)

    async def mark_lost(self, job: str, reason: str, role: DeliveryRole = "answer") -> None:
        """Note that a destination is gone before its job has ended; `reason` is a sentence for the member."""
        await self._store.write(destinations.mark_lost, job, reason, role)

    async def mark_delivered(self, job: str, role: DeliveryRole = "answer", reason: str = "") -> None:
        """Record that the final state was shown, or why it never can be: `reason` is a sentence for the member."""
        await self._store.write(destinations.mark_delivered, job, self._clock(), role, reason)

    async def list_undeliverable(self, member: str) -> dict[str, str]:
        """Return a member's jobs whose final state no destination could show, newest first, each with the reason."""
        return await self._store.query(destinations.list_undeliverable, member)

    async def find_job(self, message: str) -> str | None:
        """Return the job that a message shows, at any of its destinations."""
        return await self._store.query(destinations.find_job, message)
