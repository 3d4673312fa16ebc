"""Admission: writes new jobs, all of them or none.

It reads the rules and counts the usage inside the transaction that writes the jobs. `build_job` makes the job of a
recipe; admission adds the times.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from ulid import ULID

from bot.domain.dto import AcceptedJob, Destination, JobAction, Member, StoredInput
from bot.domain.errors import UserError
from bot.domain.texts import INIT_IMAGE_GONE, format_cost
from bot.jobs.costs import LoadCosts
from bot.jobs.init_images import InitImageLoader
from bot.jobs.model_catalog import CatalogEntry
from bot.jobs.quota import QueueState, apply_rules, check_before_content
from bot.jobs.recipe import check_fits, member_key
from bot.jobs.views import JobViews
from bot.jobs.word_filter import WordFilter
from bot.pictures.moderation_status import unchecked_notes
from bot.policy.limits import Limits
from bot.policy.rules import resolve
from bot.store import JobRecord, NewJob, Store
from bot.store.fairness.ledger import Ledger, run_with_ledger
from bot.store.jobs import queries
from engine.contract import MAX_CANDIDATE_IMAGES, Presence, Recipe, estimate_cost

T = TypeVar("T")

MAX_NAME = 128

TOO_MANY = 429


SEED_COUNT = 2**32 - MAX_CANDIDATE_IMAGES  # image i draws from seed + i


def draw_seed() -> int:
    """Return a random seed that is valid for a full grid."""
    return secrets.randbelow(SEED_COUNT)


def build_job(
    action: JobAction,
    prompt: str,
    recipe: Recipe,
    entry: CatalogEntry,
    member: Member,
    destination: Destination,
    *,
    notes: tuple[str, ...] = (),
    parent: tuple[str, int] | None = None,
    relaxed: bool = False,
    inputs: tuple[StoredInput, ...] = (),
) -> NewJob:
    """Return the job of a recipe, with the pool and the cost that its model's entry gives. Raises `UserError`."""
    return NewJob(
        id=str(ULID()),
        action=action,
        prompt=prompt,
        notes=notes,
        task=recipe,
        member=member,
        destination=destination,
        pool=entry.pool_for(recipe),
        model=recipe.model,
        cost=estimate_cost(recipe, entry.profile),
        parent=parent,
        inputs=inputs,
        relaxed=relaxed,
    )


def _add_total_cost(new_jobs: Sequence[NewJob]) -> list[NewJob]:
    """Put the total cost of several jobs first in the first one's notes."""
    if len(new_jobs) < 2:
        return list(new_jobs)
    total_note = format_cost(len(new_jobs), sum(new_job.cost for new_job in new_jobs))
    return [replace(new_jobs[0], notes=(total_note, *new_jobs[0].notes)), *new_jobs[1:]]


class AdmittingTransaction:
    """Decides by a member's rules and usage whether jobs are written, in the transaction that writes them.

    `limits`: the defaults.
    """

    def __init__(
        self, store: Store, job_views: JobViews, workers: Callable[[], Mapping[str, Presence]], limits: Limits
    ) -> None:
        self._store = store
        self._job_views = job_views
        self._workers = workers
        self._limits = limits

    async def find_earlier(self, key: str | None) -> list[JobRecord]:
        """Return the jobs that were made with the same key."""
        return [] if key is None else await self._store.query(queries.list_by_key, key)

    async def check_usage(self, action: JobAction, member: Member, count: int, now: float, *, relaxed: bool) -> None:
        """Check `count` jobs before their content and cost are known. Raises `UserError`."""

        def check(ledger: Ledger, queue_state: QueueState) -> None:
            rules = resolve(ledger.load_rules(), member, self._limits)
            check_before_content(action, count, rules, ledger, queue_state, relaxed=relaxed)

        async with self._date_refusals(member, now, check) as check_once:
            await self._store.query(run_with_ledger, member, now, check_once)

    async def write_jobs(self, new_jobs: Sequence[NewJob], key: str | None, now: float) -> tuple[list[JobRecord], bool]:
        """Write the jobs if the rules allow them. False: the same `key` made them before. Raises `UserError`."""
        member = new_jobs[0].member
        workers = dict(self._workers())
        relaxed = any(new_job.relaxed for new_job in new_jobs)

        def decide(ledger: Ledger, queue_state: QueueState) -> list[NewJob]:
            if any(_is_input_gone(new_job, ledger) for new_job in new_jobs):
                raise UserError(INIT_IMAGE_GONE, 404)
            rules = resolve(ledger.load_rules(), member, self._limits)
            admitted_jobs = apply_rules(new_jobs, rules, ledger, queue_state, relaxed=relaxed)
            return [_with_picture_check(new_job, workers) for new_job in admitted_jobs]

        async with self._date_refusals(member, now, decide) as decide_once:
            return await self._store.admit_jobs(new_jobs, key, lambda _, ledger: decide_once(ledger), now)

    @asynccontextmanager
    async def _date_refusals(
        self, member: Member, now: float, check: Callable[[Ledger, QueueState], T]
    ) -> AsyncGenerator[Callable[[Ledger], T]]:
        """Yield `check` for one transaction in the body. If a free place would help, it runs again on what the ledger
        read, and then says when that will be.
        """
        ledgers = list[Ledger]()
        has_workers = bool(self._workers())

        def check_in_transaction(ledger: Ledger) -> T:
            ledgers.append(ledger)
            return check(ledger, QueueState(now, has_workers=has_workers))

        try:
            yield check_in_transaction
        except UserError as error:
            if error.status == TOO_MANY and ledgers:
                check(ledgers[-1], await self._queue_state(member, now))
            raise

    async def _queue_state(self, member: Member, now: float) -> QueueState:
        member_frees_at = await self._job_views.next_free_at(member.id)
        queue_frees_at = self._job_views.any_free_at()
        return QueueState(now, member_frees_at, queue_frees_at, bool(self._workers()))


def _is_input_gone(new_job: NewJob, ledger: Ledger) -> bool:
    """Return whether an init image was deleted since the request found it. Once written, the job keeps the image."""
    hashes = tuple(file.sha256 for file in new_job.inputs)
    return bool(hashes) and ledger.is_input_deleted(new_job.parent[0] if new_job.parent else None, hashes)


def _with_picture_check(new_job: NewJob, workers: Mapping[str, Presence]) -> NewJob:
    """Apply the picture check: never in an age-restricted channel; with a note if no worker can check."""
    needs_check = new_job.check and not new_job.member.age_restricted
    return replace(
        new_job, check=needs_check, notes=(*new_job.notes, *unchecked_notes(needs_check, new_job.pool, workers))
    )


@dataclass(eq=False)
class Admission:
    """Admits jobs that live at most `max_age` seconds; it calls `on_admitted` after it admitted some."""

    transaction: AdmittingTransaction
    job_views: JobViews
    word_filter: WordFilter
    load_costs: LoadCosts
    init_image_loader: InitImageLoader
    max_age: float
    on_admitted: Callable[[], None]
    clock: Callable[[], float] = time.time

    async def admit(
        self, new_jobs: Sequence[NewJob], key: str | None, new_contents: dict[str, bytes] | None = None
    ) -> list[AcceptedJob]:
        """Admit the jobs of one member. The same `key` again returns the jobs that it made before. Raises `UserError`.

        Files that the jobs begin with are protected until the jobs are written. `new_contents`: those that are not
        stored yet, by SHA-256.
        """
        if not (inputs := [file for new_job in new_jobs for file in new_job.inputs]):
            return await self._admit(new_jobs, key)
        async with self.init_image_loader.protect_files(inputs, new_contents):
            return await self._admit(new_jobs, key)

    async def _admit(self, new_jobs: Sequence[NewJob], key: str | None) -> list[AcceptedJob]:
        member = new_jobs[0].member
        now = self.clock()
        short_named = replace(member, name=member.name[:MAX_NAME])
        dated_jobs = [
            replace(each, member=short_named, created=now, deadline=now + self.max_age)
            for each in _add_total_cost(new_jobs)
        ]
        priced_jobs = self.load_costs.add_shares(dated_jobs)
        for new_job in priced_jobs:
            check_fits(new_job)
        await self.word_filter.check_words(priced_jobs, member)
        records, is_new = await self.transaction.write_jobs(priced_jobs, member_key(key, member), now)
        if is_new:
            self.load_costs.count_payers(priced_jobs)
            self.on_admitted()
        return [await self.job_views.accepted_job(record) for record in records]

    async def check_before_content(
        self, action: JobAction, member: Member, key: str | None, prompt: str, *, count: int = 1, relaxed: bool = False
    ) -> list[AcceptedJob]:
        """Check a request before reading its slow parts. Returns the jobs that the same `key` made before, else none.

        Raises `UserError` if the rules would refuse any such request for `count` jobs.
        """
        if earlier_jobs := await self.transaction.find_earlier(member_key(key, member)):
            return [await self.job_views.accepted_job(record) for record in earlier_jobs]
        try:
            await self.transaction.check_usage(action, member, count, self.clock(), relaxed=relaxed)
        except UserError as error:
            if error.status != TOO_MANY:
                await self.word_filter.note_blocked_attempt(member, prompt)
            raise
        return []
