"""Where jobs are shown, and what became of each place: the front ends' book of what they owe.

Knows the store and the register; knows nothing of how a front end shows anything. A job is settled once each of its
places has its last word, or the reason why it has none.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bot.desk.absent import absent
from bot.desk.register import Register
from bot.store import Store, places
from bot.views import Delivery, Place, PlaceKind, Role, View


class Deliveries:
    """Made by `bot.house`."""

    def __init__(self, store: Store, register: Register, *, clock: Callable[[], float] = time.time) -> None:
        self._store, self._register, self._clock = store, register, clock

    async def place_of(self, job: str) -> Place:
        """Where a job's request was answered. Raises `Refused` (404)."""
        place = await self._store.ask(places.place, job)
        if place is None:
            raise await absent(self._store, job)
        return place

    async def of(self, job: str) -> dict[Role, Delivery]:
        """Every place of a job but its films."""
        return await self._store.ask(places.deliveries, job)

    async def films(self, job: str) -> list[Delivery]:
        """The messages that show a job's film."""
        return await self._store.ask(places.films, job)

    async def filmed(self, job: str, place: Place) -> bool:
        """Note a message with a job's film; False where the job is deleted by now, so that the message must go too."""
        return await self._store.write(places.add_film, job, place, self._clock())

    async def unfilmed(self, job: str, message: str) -> None:
        """That message is gone."""
        await self._store.write(places.forget_film, job, message)

    async def owed(self, kind: PlaceKind) -> list[tuple[View, Place]]:
        """Jobs of a kind of place, over or not, whose last word is still to be shown somewhere; oldest first."""
        found = await self._store.ask(places.undelivered, kind)
        views = await self._register.views([record for record, _ in found])
        return [(view, place) for view, (_, place) in zip(views, found, strict=True)]

    async def add(self, job: str, role: Role, place: Place) -> bool:
        """A further place in which a job must be shown; False where it has one of that role already."""
        return await self._store.write(places.add, job, role, place)

    async def moved(self, job: str, role: Role = "answer", /, **where: str) -> None:
        """Note what a front end learnt of a place (its message, a new token, …)."""
        await self._store.write(places.moved, job, where, role)

    async def lost(self, job: str, reason: str, role: Role = "answer") -> None:
        """The place is gone before its job has ended; `reason` is a sentence for the member."""
        await self._store.write(places.lost, job, reason, role)

    async def delivered(self, job: str, role: Role = "answer", reason: str = "") -> None:
        """The last word was shown there, or with a `reason` (a sentence for the member) it never can be."""
        await self._store.write(places.delivered, job, self._clock(), role, reason)

    async def undeliverable(self, member: str) -> dict[str, str]:
        """A member's jobs whose last word could be shown nowhere, the newest first, each with the reason."""
        return await self._store.ask(places.undeliverable, member)

    async def job_at(self, message: str) -> str | None:
        """The job that a message shows, in whichever of its places."""
        return await self._store.ask(places.job_at, message)
