"""Admission: writes job requests as jobs, all of them or none.

The rules are read and the usage is counted inside the transaction that writes the jobs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ulid import ULID

from bot.desk.gate import Hour, check_early, passed
from bot.desk.preferences import known
from bot.desk.register import Register
from bot.desk.screening import Screening
from bot.images.held import notes
from bot.limits import Limits
from bot.orders import Order, check_fits, scoped
from bot.refused import Refused
from bot.rules import resolve
from bot.sentences import GONE
from bot.store import Draft, Record, Store, reads
from bot.store.ledger import Ledger, look
from bot.views import Action, Member, Place, Ticket
from engine.job import Presence

NAME_LENGTH = 128
LIMIT = 429


class Admission:
    """Admits job requests. `limits`: the defaults; `woken` is called after a job was admitted."""

    def __init__(
        self, store: Store, register: Register, screening: Screening,
        workers: Callable[[], Mapping[str, Presence]], *, limits: Limits, max_age: float, woken: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store, self._register, self._workers = store, register, workers
        self._screening = screening
        self._limits, self._max_age, self._woken, self._clock = limits, max_age, woken, clock

    async def take(self, orders: Sequence[Order], member: Member, place: Place, key: str | None) -> list[Ticket]:
        """Admit the requests as jobs. The same `key` again returns the jobs that it made before. Raises `Refused`."""
        now = self._clock()
        drafts = [self._draft(order, member, place, now) for order in orders]
        for draft in drafts:
            check_fits(draft)
        await self._screening.check(drafts, member)
        relaxed, key = any(order.relaxed for order in orders), scoped(key, member)
        try:
            records, new = await self._admit(drafts, key, relaxed, Hour(now, workers=bool(self._workers())))
        except Refused as refused:
            if refused.status != LIMIT:
                raise
            hour = await self._hour(member, now)  # only a refusal says when a place frees, and that takes reads
            records, new = await self._admit(drafts, key, relaxed, hour)
        if new:
            self._woken()
        return [await self._register.ticket(record) for record in records]

    async def early(
        self, action: Action, member: Member, key: str | None, prompt: str, *, count: int = 1, relaxed: bool = False
    ) -> list[Ticket]:
        """Check a request before its slow parts are read. Returns the jobs that the same `key` made before, else none.

        Raises `Refused` if the request would be refused anyway: `count` jobs, of which nothing more is known.
        """
        mine = scoped(key, member)
        if mine is not None and (records := await self._store.ask(reads.of_key, mine)):
            return [await self._register.ticket(record) for record in records]
        now = self._clock()
        try:
            await self._ask(action, member, count, Hour(now, workers=bool(self._workers())), relaxed=relaxed)
        except Refused as refused:
            if refused.status == LIMIT:
                await self._ask(action, member, count, await self._hour(member, now), relaxed=relaxed)
            else:
                await self._screening.turned_away(member, prompt)
            raise
        return []

    async def _ask(self, action: Action, member: Member, count: int, hour: Hour, *, relaxed: bool) -> None:
        def decide(ledger: Ledger) -> None:
            terms = resolve(ledger.rules(), member, self._limits)
            check_early(action, count, terms, ledger, known(ledger.preferences()), hour, relaxed=relaxed)

        await self._store.ask(look, member, hour.now, decide)

    async def _admit(
        self, drafts: Sequence[Draft], key: str | None, relaxed: bool, hour: Hour
    ) -> tuple[list[Record], bool]:
        member, workers = drafts[0].member, dict(self._workers())

        def decide(asked: Sequence[Draft], ledger: Ledger) -> Sequence[Draft]:
            if any(_gone(draft, ledger) for draft in asked):
                raise Refused(GONE, 404)
            terms = resolve(ledger.rules(), member, self._limits)
            taken = passed(asked, terms, ledger, known(ledger.preferences()), hour, relaxed=relaxed)
            return [_checked(draft, workers) for draft in taken]

        return await self._store.admit(drafts, key, decide, hour.now)

    async def _hour(self, member: Member, now: float) -> Hour:
        free, room = await self._register.next_free(member.id), self._register.next_room()
        return Hour(now, free, room, bool(self._workers()))

    def _draft(self, order: Order, member: Member, place: Place, now: float) -> Draft:
        named = replace(member, name=member.name[:NAME_LENGTH])
        return Draft(
            id=str(ULID()), action=order.action, prompt=order.prompt, notes=order.notes, task=order.task, member=named,
            place=place, pool=order.pool, model=order.model, cost=order.cost, created=now,
            deadline=now + self._max_age, parent=order.parent, material=order.material,
        )  # fmt: skip


def _gone(draft: Draft, ledger: Ledger) -> bool:
    """Return whether an init image was deleted after it was found. Once it is noted, the job keeps it."""
    contents = [one.sha256 for one in draft.material]
    return bool(contents) and ledger.gone(draft.parent[0] if draft.parent else None, contents)


def _checked(draft: Draft, workers: Mapping[str, Presence]) -> Draft:
    """Apply the picture check: never in an age-restricted channel; with a note if no worker can check."""
    check = draft.check and not draft.member.age_restricted
    return replace(draft, check=check, notes=(*draft.notes, *notes(check, draft.pool, workers)))
