"""Deliveries: where each job is shown, and what is still to be shown there.

A job is settled once each destination shows its final state, or has a reason why it never will.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bot.desk.absent import absent
from bot.desk.register import Register
from bot.store import Store, places
from bot.views import Delivery, Place, PlaceKind, Role, View


class Deliveries:
    """Reads and notes destinations for front ends."""

    def __init__(self, store: Store, register: Register, *, clock: Callable[[], float] = time.time) -> None:
        self._store, self._register, self._clock = store, register, clock

    async def place_of(self, job: str) -> Place:
        """Return where a job's request was answered. Raises `Refused` (404)."""
        place = await self._store.ask(places.place, job)
        if place is None:
            raise await absent(self._store, job)
        return place

    async def of(self, job: str) -> dict[Role, Delivery]:
        """Return every destination of a job except its films."""
        return await self._store.ask(places.deliveries, job)

    async def films(self, job: str) -> list[Delivery]:
        """Return the messages that show a job's film."""
        return await self._store.ask(places.films, job)

    async def filmed(self, job: str, place: Place) -> bool:
        """Note a message with a job's film. False: the job is deleted by now, so the message must go too."""
        return await self._store.write(places.add_film, job, place, self._clock())

    async def unfilmed(self, job: str, message: str) -> None:
        """Note that a film's message is gone."""
        await self._store.write(places.forget_film, job, message)

    async def owed(self, kind: PlaceKind) -> list[tuple[View, Place]]:
        """Return jobs, ended or not, whose final state is still to be shown at a destination of this kind; oldest
        first.
        """
        found = await self._store.ask(places.undelivered, kind)
        views = await self._register.views([record for record, _ in found])
        return [(view, place) for view, (_, place) in zip(views, found, strict=True)]

    async def add(self, job: str, role: Role, place: Place) -> bool:
        """Add a destination. False if the job already has one of that role."""
        return await self._store.write(places.add, job, role, place)

    async def moved(self, job: str, role: Role = "answer", /, **where: str) -> None:
        """Note what a front end learnt about a destination (its message, a new token, …)."""
        await self._store.write(places.moved, job, where, role)

    async def lost(self, job: str, reason: str, role: Role = "answer") -> None:
        """Note that a destination is gone before its job has ended; `reason` is a sentence for the member."""
        await self._store.write(places.lost, job, reason, role)

    async def delivered(self, job: str, role: Role = "answer", reason: str = "") -> None:
        """Note that the final state was shown, or never can be for `reason` (a sentence for the member)."""
        await self._store.write(places.delivered, job, self._clock(), role, reason)

    async def undeliverable(self, member: str) -> dict[str, str]:
        """Return a member's jobs whose final state could be shown nowhere, newest first, each with the reason."""
        return await self._store.ask(places.undeliverable, member)

    async def job_at(self, message: str) -> str | None:
        """Return the job that a message shows, at any of its destinations."""
        return await self._store.ask(places.job_at, message)
