"""Changes running jobs at their members' wish: what may be asked, by whom, and at whose expense.

It only writes what was asked for. `bot.jobs.dispatch` sends it until the job's worker has answered, and the
worker decides from which step on a change holds.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from weakref import WeakValueDictionary

import msgspec

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.events import Feed, JobSteered
from bot.domain.steering import AmendmentView, SteeringAnswer, SteeringOutlook, SteeringRequest
from bot.jobs.active_jobs import ActiveJobs
from bot.jobs.model_catalog import ModelCatalog
from bot.jobs.quota import check_action, cost_checks, raise_latest_refusal, refuse_if_closed_or_blocked, relaxed_checks
from bot.jobs.recipe import member_key
from bot.jobs.views import JobViews, make_job_ref, refusal_reason
from bot.jobs.word_filter import WordFilter
from bot.policy.limits import Limits
from bot.policy.permissions import forbidden_reason
from bot.policy.rules import EffectiveRules, resolve
from bot.policy.rules.member_texts import amended_texts
from bot.prompt.capability_check import check_features
from bot.services.steering.requested_changes import RequestedChange, work_out_changes
from bot.services.steering.steering_check import check_changes, presume_recipe, require_steerable
from bot.store import JobRecord, Store
from bot.store.fairness.ledger import Ledger
from bot.store.jobs.records import RELAXED_TIER
from bot.store.transitions.amendments import (
    MAX_REQUESTS,
    AmendmentRecord,
    NewAmendment,
    ask_for_amendments,
    list_amendments,
)
from engine.contract import (
    MAX_AMENDMENTS,
    MAX_COUNT,
    MAX_STEPS,
    Amendment,
    ModelProfile,
    Presence,
    Recipe,
    SetNegative,
    estimate_cost,
    find_amendment_problem,
    list_final_images,
)

MODEL_GONE = "No worker has ever offered {}, so nobody knows what a change costs."
TOO_MANY_PICTURES = "This would be {} pictures, and at most {} are allowed here."
ADVICE = "Dropping pictures frees some."
LARGEST_SEED = 2**32 - MAX_COUNT  # the seeds of a split's images follow it


@dataclass(frozen=True)
class _Plan:
    """The changes that a request means, on a recipe with every earlier one."""

    old_recipe: Recipe
    changes: Sequence[RequestedChange]
    model: ModelProfile

    @cached_property
    def _costs(self) -> list[float]:
        """The job's cost before the changes and after each, in device-seconds."""
        return [estimate_cost(each, self.model) for each in (self.old_recipe, *(one.recipe for one in self.changes))]

    @property
    def added_cost(self) -> float:
        """What the changes add to the job's cost at most, in device-seconds: what one saves pays for those after it.

        A later one may yet be refused, so it pays for none before it.
        """
        return max(0.0, max(self._costs[1:]) - self._costs[0])

    @property
    def priced_changes(self) -> list[NewAmendment]:
        """The changes with what each adds to the job's cost, in device-seconds."""
        return [
            NewAmendment(change.change, change.text, max(0.0, after - before))
            for change, before, after in zip(self.changes, self._costs[:-1], self._costs[1:], strict=True)
        ]


@dataclass(frozen=True)
class _Situation:
    """What the store does not know: the live workers, the model, the step that the job has reached, and a new seed."""

    workers: Mapping[str, Presence]
    model: ModelProfile
    step: int
    seed: int


class SteeringService:
    """`wake_sender`: called with a job that has new changes. `limits`: the defaults. `draw_seed`: for a split."""

    def __init__(
        self,
        store: Store,
        job_views: JobViews,
        word_filter: WordFilter,
        catalog: ModelCatalog,
        active_jobs: ActiveJobs,
        feed: Feed,
        workers: Callable[[], Mapping[str, Presence]],
        wake_sender: Callable[[str], None],
        *,
        limits: Limits,
        clock: Callable[[], float] = time.time,
        draw_seed: Callable[[], int] = lambda: secrets.randbelow(LARGEST_SEED),
    ) -> None:
        self._store = store
        self._job_views = job_views
        self._word_filter = word_filter
        self._catalog = catalog
        self._active_jobs = active_jobs
        self._feed = feed
        self._workers = workers
        self._wake_sender = wake_sender
        self._limits = limits
        self._clock = clock
        self._draw_seed = draw_seed
        self._locks = WeakValueDictionary[str, asyncio.Lock]()  # by job: each request builds on those before it

    async def amend(
        self, job: str, request: SteeringRequest, member: Member, key: str | None = None, *, is_joined: bool = False
    ) -> SteeringAnswer:
        """Ask for changes of a job; return each as it waits for its worker. The same `key` again changes nothing.

        `is_joined`: the member takes part in the party whose picture it is, as the caller has checked. Raises
        `UserError`, and then nothing is asked for.
        """
        record = await self._job_views.load_record(job)
        if reason := forbidden_reason("steer", member, make_job_ref(record, is_joined=is_joined)):
            raise UserError(reason, 403)
        lock = self._locks.setdefault(job, asyncio.Lock())
        async with lock:
            return await self._ask(record, request, member, member_key(key, member), is_joined=is_joined)

    async def list_amendments(self, job: str, member: Member) -> list[AmendmentView]:
        """Return every change that was asked for of a job, in order. Raises `UserError`."""
        record = await self._job_views.load_record(job)
        if reason := refusal_reason("details", member, record):
            raise UserError(reason, 403)
        return [each.to_view(record.steps) for each in await self._store.query(list_amendments, job)]

    async def load_outlook(self, job: str, member: Member) -> SteeringOutlook | None:
        """Return what the member may change of a job now; None for an upscale. Raises `UserError`."""
        record = await self._job_views.load_record(job)
        known = await self._store.query(list_amendments, job)
        return self._make_outlook(record, known, member)

    def _make_outlook(
        self, record: JobRecord, known: Sequence[AmendmentRecord], member: Member, *, is_joined: bool = False
    ) -> SteeringOutlook | None:
        """Return what the member may change now of a job with these changes; None for an upscale."""
        if not isinstance(record.task, Recipe):
            return None
        step = self._find_step(record)
        forbidden = forbidden_reason("steer", member, make_job_ref(record, is_joined=is_joined))
        obstacle = forbidden or self._find_obstacle(record, step)
        try:
            recipe = presume_recipe(record.task, known, step)
        except UserError as error:  # too many were asked for
            return SteeringOutlook(record.task, 0, error.sentence)
        left = min(MAX_AMENDMENTS - len(recipe.amendments), MAX_REQUESTS - len(known))
        return SteeringOutlook(recipe, max(0, left), obstacle)

    def _find_obstacle(self, record: JobRecord, step: int) -> str:
        """Return why a job cannot be steered now, whatever the change is; empty if it can."""
        try:
            recipe = require_steerable(record, self._workers())
            probe = Amendment(1, min(step, MAX_STEPS - 1), SetNegative(recipe.negative))
            check_features(msgspec.structs.replace(recipe, amendments=(probe,)), self._find_model(recipe))
            return find_amendment_problem(msgspec.structs.replace(recipe, amendments=()), probe)
        except UserError as error:
            return error.sentence

    async def _ask(
        self, record: JobRecord, request: SteeringRequest, member: Member, key: str | None, *, is_joined: bool
    ) -> SteeringAnswer:
        job = record.id
        known = await self._store.query(list_amendments, job)
        if key is not None and (earlier := [each for each in known if each.key == key]):
            views = [each.to_view(record.steps) for each in earlier]
            return SteeringAnswer(views, self._make_outlook(record, known, member, is_joined=is_joined))
        speaker = _place_member(member, record)
        author = speaker if member.id == record.member else record.author
        situation = self._read_situation(record)
        plan = _work_out(record, known, request, situation)
        await self._check_words(plan.changes, request, speaker, author)

        def decide(locked: JobRecord, now_known: Sequence[AmendmentRecord], ledger: Ledger) -> Sequence[NewAmendment]:
            require_steerable(locked, situation.workers)
            is_same = (locked.task, now_known) == (record.task, known)  # mostly: then the plan holds
            new_plan = plan if is_same else _work_out(locked, now_known, request, situation)
            self._check_rules(locked, new_plan, speaker, author, ledger)
            return new_plan.priced_changes

        asked = await self._store.write(ask_for_amendments, job, speaker, author, key, decide, self._clock())
        if asked is None:
            raise UserError("There is no such job.", 404)
        views = [each.to_view(asked.job_record.steps) for each in asked.requested]
        self._announce(asked.job_record, views)
        return SteeringAnswer(views, self._make_outlook(asked.job_record, asked.known, member, is_joined=is_joined))

    def _announce(self, record: JobRecord, views: Sequence[AmendmentView]) -> None:
        """Tell the sender and all listeners what waits now."""
        self._active_jobs.follow_record(record)
        self._wake_sender(record.id)
        if isinstance(record.task, Recipe):
            for view in views:
                self._feed.publish(JobSteered(record.id, view, record.task))

    def _read_situation(self, record: JobRecord) -> _Situation:
        """Read what memory knows, before the store's thread decides."""
        workers = dict(self._workers())
        recipe = require_steerable(record, workers)
        return _Situation(workers, self._find_model(recipe), self._find_step(record), self._draw_seed())

    def _find_step(self, record: JobRecord) -> int:
        """Return the furthest step known; the job may be further."""
        active_job = self._active_jobs.by_id.get(record.id)
        return record.step if active_job is None else max(record.step, active_job.step)

    def _find_model(self, recipe: Recipe) -> ModelProfile:
        model = self._catalog.find_profile_for(recipe)
        if model is None:
            raise UserError(MODEL_GONE.format(recipe.model))
        return model

    async def _check_words(
        self, changes: Sequence[RequestedChange], request: SteeringRequest, speaker: Member, author: Member
    ) -> None:
        """Check each new text by the rules of the speaker and of the author, in the place of the job."""
        added = [text for each in changes for text in amended_texts(each.change)]
        texts = tuple(dict.fromkeys(filter(None, [*added, request.say, request.prompt or ""])))
        for ruled in (speaker,) if speaker is author else (speaker, author):
            if texts:
                await self._word_filter.check_texts(texts, speaker, ruled, texts[0])

    def _check_rules(self, record: JobRecord, plan: _Plan, speaker: Member, author: Member, ledger: Ledger) -> None:
        """Check the rules of both, and that the author's limits have room for the added cost. Raises `UserError`."""
        rules = ledger.load_rules()
        now = self._clock()
        author_rules = resolve(rules, author, self._limits)
        for each in (author_rules, resolve(rules, speaker, self._limits)):
            refuse_if_closed_or_blocked(each)
            check_action(each, "steer")
        _check_count(record, plan.changes[-1].recipe, author_rules)
        if plan.added_cost:
            make_checks = relaxed_checks if record.tier == RELAXED_TIER else cost_checks
            raise_latest_refusal(make_checks(plan.added_cost, author_rules, ledger, now, advice=ADVICE))


def _work_out(
    record: JobRecord, known: Sequence[AmendmentRecord], request: SteeringRequest, situation: _Situation
) -> _Plan:
    """Return the changes that a request means, on top of all known ones. Raises `UserError`."""
    recipe = require_steerable(record, situation.workers)
    old_recipe = presume_recipe(recipe, known, situation.step)
    changes = work_out_changes(request, old_recipe, situation.step, situation.seed)
    check_changes(changes, situation.model)
    return _Plan(old_recipe, changes, situation.model)


def _check_count(record: JobRecord, recipe: Recipe, rules: EffectiveRules) -> None:
    """Raise `UserError` if a split makes more pictures than the author may have."""
    count = len(list_final_images(recipe))
    if count > max(rules.count, record.image_count):
        raise UserError(TOO_MANY_PICTURES.format(count, rules.count))


def _place_member(member: Member, record: JobRecord) -> Member:
    """Return the member as they act in the place of the job, whose rules hold."""
    roles = member.roles if member.guild == record.guild else ()
    return replace(member, guild=record.guild, channel=record.channel, thread=record.thread, roles=roles)
