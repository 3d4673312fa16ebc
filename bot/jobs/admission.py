"""Admission: writes job requests as jobs, all of them or none.

It reads the rules and counts the usage inside the transaction that writes the jobs. `JobMaker` is what all services
that make jobs share: it finds the original, updates its recipe, and admits the requests.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

import msgspec
from ulid import ULID

from bot.domain.dto import AcceptedJob, Destination, JobAction, Member
from bot.domain.errors import UserError
from bot.domain.texts import INIT_IMAGE_GONE
from bot.images.gallery import Gallery
from bot.images.moderation_status import unchecked_notes
from bot.jobs.costs import LoadCosts
from bot.jobs.init_images import InitImageLoader, LoadedInitImages
from bot.jobs.model_catalog import CatalogEntry, ModelCatalog
from bot.jobs.preferences import known_preferences
from bot.jobs.quota import QueueState, apply_rules, check_before_content
from bot.jobs.recipe import JobRequest, add_total_cost, check_fits, member_key, renew_recipe
from bot.jobs.views import JobViews, check_original
from bot.jobs.word_filter import WordFilter
from bot.policy.limits import Limits
from bot.policy.rules import resolve
from bot.store import JobRecord, NewJob, Store
from bot.store.fairness.ledger import Ledger, run_with_ledger
from bot.store.jobs import queries
from engine.contract import MAX_CANDIDATE_IMAGES, Presence, Recipe, UpscaleTask, recipe_at_end, settle_amendments

T = TypeVar("T")

MAX_NAME = 128
TOO_MANY = 429


class Admission:
    """Admits job requests. `limits`: the defaults; it calls `on_admitted` after it admitted a job."""

    def __init__(
        self,
        store: Store,
        job_views: JobViews,
        word_filter: WordFilter,
        workers: Callable[[], Mapping[str, Presence]],
        load_costs: LoadCosts,
        *,
        limits: Limits,
        max_age: float,
        on_admitted: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._job_views = job_views
        self._workers = workers
        self._word_filter = word_filter
        self._load_costs = load_costs
        self._limits = limits
        self._max_age = max_age
        self._on_admitted = on_admitted
        self._clock = clock

    async def admit(
        self, requests: Sequence[JobRequest], member: Member, destination: Destination, key: str | None
    ) -> list[AcceptedJob]:
        """Admit the requests as jobs. The same `key` again returns the jobs that it made before. Raises `UserError`."""
        now = self._clock()
        new_jobs = self._load_costs.add_shares(
            [self._build_new_job(request, member, destination, now) for request in requests]
        )
        for new_job in new_jobs:
            check_fits(new_job)
        await self._word_filter.check_words(new_jobs, member)
        relaxed = any(request.relaxed for request in requests)
        key = member_key(key, member)
        records, is_new = await self._write_jobs(new_jobs, key, relaxed, now)
        if is_new:
            self._load_costs.count_payers(new_jobs)
            self._on_admitted()
        return [await self._job_views.accepted_job(record) for record in records]

    async def check_before_content(
        self, action: JobAction, member: Member, key: str | None, prompt: str, *, count: int = 1, relaxed: bool = False
    ) -> list[AcceptedJob]:
        """Check a request before reading its slow parts. Returns the jobs that the same `key` made before, else none.

        Raises `UserError` if the rules would refuse any such request for `count` jobs.
        """
        own_key = member_key(key, member)
        if own_key is not None and (records := await self._store.query(queries.list_by_key, own_key)):
            return [await self._job_views.accepted_job(record) for record in records]
        now = self._clock()

        def check(ledger: Ledger, queue_state: QueueState) -> None:
            rules = resolve(ledger.load_rules(), member, self._limits)
            preference = known_preferences(ledger.load_preferences())
            check_before_content(action, count, rules, ledger, preference, queue_state, relaxed=relaxed)

        try:
            async with self._date_refusals(member, now, check) as check_once:
                await self._store.query(run_with_ledger, member, now, check_once)
        except UserError as error:
            if error.status != TOO_MANY:
                await self._word_filter.note_blocked_attempt(member, prompt)
            raise
        return []

    async def _write_jobs(
        self, new_jobs: Sequence[NewJob], key: str | None, relaxed: bool, now: float
    ) -> tuple[list[JobRecord], bool]:
        member = new_jobs[0].member
        workers = dict(self._workers())

        def decide(ledger: Ledger, queue_state: QueueState) -> list[NewJob]:
            if any(_is_input_gone(new_job, ledger) for new_job in new_jobs):
                raise UserError(INIT_IMAGE_GONE, 404)
            rules = resolve(ledger.load_rules(), member, self._limits)
            preference = known_preferences(ledger.load_preferences())
            admitted_jobs = apply_rules(new_jobs, rules, ledger, preference, queue_state, relaxed=relaxed)
            return [_with_picture_check(new_job, workers) for new_job in admitted_jobs]

        async with self._date_refusals(member, now, decide) as decide_once:
            return await self._store.admit_jobs(new_jobs, key, lambda _, ledger: decide_once(ledger), now)

    @asynccontextmanager
    async def _date_refusals(
        self, member: Member, now: float, check: Callable[[Ledger, QueueState], T]
    ) -> AsyncGenerator[Callable[[Ledger], T]]:
        """Yield `check` for one transaction in the body. If it finds too many jobs or too much cost, it runs again
        afterwards, on what the ledger has read: only then the refusal says when a place becomes free.
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

    def _build_new_job(self, request: JobRequest, member: Member, destination: Destination, now: float) -> NewJob:
        short_named = replace(member, name=member.name[:MAX_NAME])
        return NewJob(
            id=str(ULID()),
            action=request.action,
            prompt=request.prompt,
            notes=request.notes,
            task=request.task,
            member=short_named,
            destination=destination,
            pool=request.pool,
            model=request.model,
            cost=request.cost,
            created=now,
            deadline=now + self._max_age,
            parent=request.parent_image,
            inputs=request.inputs,
        )


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


SEED_COUNT = 2**32 - MAX_CANDIDATE_IMAGES  # image i draws from seed + i
NEVER_OFFERED = "No worker has ever offered {}."
PAST_PARTICIPLES: Mapping[JobAction, str] = MappingProxyType(
    {
        "vary": "varied",
        "remix": "remixed",
        "edit": "edited",
        "zoom": "zoomed out of",
        "pan": "continued",
        "branch": "branched from",
    }
)


def draw_seed() -> int:
    """Return a random seed that is valid for a full grid."""
    return secrets.randbelow(SEED_COUNT)


class JobMaker:
    """Finds what a job is made from, and admits the requests. Methods raise `UserError`."""

    def __init__(
        self,
        catalog: ModelCatalog,
        job_views: JobViews,
        gallery: Gallery,
        admission: Admission,
        init_image_loader: InitImageLoader,
    ) -> None:
        self._catalog = catalog
        self._job_views = job_views
        self._gallery = gallery
        self._admission = admission
        self._init_image_loader = init_image_loader

    async def find_original(
        self, action: JobAction, job: str, index: int | None, member: Member
    ) -> tuple[JobRecord, Recipe, int | None]:
        """Return the generated job and image: of an upscale, those of its original, if the member may use that too.

        The recipe of a steered job is that which the image ended with.
        """
        record = await self._job_views.load_record(job)
        while isinstance(record.task, UpscaleTask) and record.parent:
            index = record.parent[1]
            record = await self._job_views.load_record(record.parent[0])
            check_original(action, member, record)
        if index is not None:
            await self._gallery.find_visible(record.id, index)
        if not isinstance(record.task, Recipe):
            raise UserError(f"This picture cannot be {PAST_PARTICIPLES[action]}.")
        recipe = record.task
        return record, recipe_at_end(recipe) if index is None else settle_amendments(recipe, index), index

    def find_entry(self, recipe: Recipe) -> CatalogEntry | None:
        """Return the catalogue entry of a recipe's model, with weights stored in the same way if a worker has them.

        None if no worker has ever offered it.
        """
        try:
            return self._catalog.find_entry_for(recipe)
        except KeyError:
            return None

    def renew(self, recipe: Recipe, refusal: str = NEVER_OFFERED) -> tuple[Recipe, tuple[str, ...], CatalogEntry]:
        """Return a recipe for the current weights of its model, notes on what changed, and the model's entry."""
        entry = self.find_entry(recipe)
        if entry is None:
            raise UserError(refusal.format(recipe.model))
        return *renew_recipe(recipe, entry), entry

    async def reset_mixed(self, record: JobRecord, recipe: Recipe) -> Recipe:
        """Return the recipe for another prompt: `mixed` stays, unless an interpolation had set it."""
        was_interpolated = recipe.mixed and await self._job_views.is_from_interpolation(record)
        return msgspec.structs.replace(recipe, mixed=False) if was_interpolated else recipe

    async def admit(
        self,
        requests: Sequence[JobRequest],
        member: Member,
        destination: Destination,
        key: str | None,
        loaded_images: LoadedInitImages | None = None,
    ) -> list[AcceptedJob]:
        """Admit requests; protect the files that they begin with while the jobs are written."""
        inputs = [file for request in requests for file in request.inputs]
        async with self._init_image_loader.protect_files(inputs, loaded_images.new_contents if loaded_images else None):
            return await self._admission.admit(add_total_cost(requests), member, destination, key)
