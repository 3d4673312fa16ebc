"""Changes running jobs at their members' wish: what may be asked, by whom, and at whose expense.

The service only writes what was asked for. The sender sends it until the job's worker has answered, and the worker
decides from which step on a change holds (`bot.jobs.results`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from weakref import WeakValueDictionary

import msgspec

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.events import Feed, JobSteered
from bot.domain.job_states import is_end
from bot.domain.steering import AmendmentView, SteeringAnswer, SteeringOutlook, SteeringRequest
from bot.jobs.active_jobs import ActiveJobs
from bot.jobs.model_catalog import ModelCatalog
from bot.jobs.quota import check_action, check_device_time
from bot.jobs.recipe import member_key
from bot.jobs.requested_changes import RequestedChange, work_out_changes
from bot.jobs.views import JobViews, make_job_ref, refusal_reason
from bot.jobs.word_filter import WordFilter
from bot.policy.limits import Limits
from bot.policy.permissions import forbidden_reason
from bot.policy.rules import EffectiveRules, resolve
from bot.policy.rules.explanations import amended_texts
from bot.prompt.capability_check import check_capabilities, check_features
from bot.store import DatabaseUnavailable, JobRecord, Store
from bot.store.fairness.ledger import Ledger
from bot.store.jobs.records import RELAXED_TIER
from bot.store.transitions.amendments import (
    MAX_REQUESTS,
    AmendmentRecord,
    NewAmendment,
    ask_for_amendments,
    list_amendments,
    list_jobs_with_waiting,
    list_waiting,
)
from engine.bus import BrokerUnreachable, Bus
from engine.contract import (
    MAX_AMENDMENTS,
    MAX_AMENDMENTS_AT_ONCE,
    MAX_COUNT,
    MAX_STEPS,
    PIPELINE_SAMPLERS,
    AmendJob,
    Amendment,
    AmendmentRequest,
    ModelProfile,
    Recipe,
    SetNegative,
    estimate_cost,
    find_amendment_problem,
    list_final_images,
    settle_fades,
)

log = logging.getLogger(__name__)

AN_UPSCALE = "An upscale is done in one go, so it cannot be steered."
CANCELLING = "It is being cancelled."
WHOLE_PIPELINE = (
    "The sampler {} runs in the model's unmodified pipeline, which cannot be steered: choose another one next time."
)
TOO_MANY_REQUESTS = f"{MAX_REQUESTS} changes were asked for of this picture, which is the most."
MODEL_GONE = "No worker has ever offered {}, so nobody knows what a change costs."
TOO_MANY_PICTURES = "This would be {} pictures, and at most {} are allowed here."
ADVICE = "Dropping pictures frees some."
REPEAT_SECONDS = 1.0
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
    """What the store does not know: the model, the step that the job has reached, and a new seed."""

    model: ModelProfile
    step: int
    seed: int


@dataclass(eq=False)
class SteeringService:
    """`limits`: the defaults."""

    store: Store
    job_views: JobViews
    word_filter: WordFilter
    catalog: ModelCatalog
    active_jobs: ActiveJobs
    sender: AmendmentSender
    limits: Limits
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._locks = WeakValueDictionary[str, asyncio.Lock]()  # by job: each request builds on those before it

    async def amend(
        self, job: str, request: SteeringRequest, member: Member, key: str | None = None, *, is_joined: bool = False
    ) -> SteeringAnswer:
        """Ask for changes of a job; return each as it waits for its worker. The same `key` again changes nothing.

        `is_joined`: the member takes part in its picture, as the caller has checked. Raises
        `UserError`, and then nothing is asked for.
        """
        record = await self.job_views.load_record(job)
        if reason := forbidden_reason("steer", member, make_job_ref(record, is_joined=is_joined)):
            raise UserError(reason, 403)
        lock = self._locks.setdefault(job, asyncio.Lock())
        async with lock:
            return await self._ask(record, request, member, member_key(key, member), is_joined=is_joined)

    async def list_amendments(self, job: str, member: Member) -> list[AmendmentView]:
        """Return every change that was asked for of a job, in order. Raises `UserError`."""
        record = await self.job_views.load_record(job)
        if reason := refusal_reason("details", member, record):
            raise UserError(reason, 403)
        return [each.to_view(record.steps) for each in await self.store.query(list_amendments, job)]

    async def load_outlook(self, job: str, member: Member) -> SteeringOutlook | None:
        """Return what the member may change of a job now; None for an upscale. Raises `UserError`."""
        record = await self.job_views.load_record(job)
        known = await self.store.query(list_amendments, job)
        return self._make_outlook(record, known, member)

    def _make_outlook(
        self, record: JobRecord, known: Sequence[AmendmentRecord], member: Member, *, is_joined: bool = False
    ) -> SteeringOutlook | None:
        """Return what the member may change now of a job with these changes; None for an upscale."""
        if not isinstance(record.task, Recipe):
            return None
        step = self.active_jobs.find_step(record)
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
            recipe = require_steerable(record)
            probe = Amendment(1, min(step, MAX_STEPS - 1), SetNegative(recipe.negative))
            check_features(msgspec.structs.replace(recipe, amendments=(probe,)), self._find_model(recipe))
            return find_amendment_problem(msgspec.structs.replace(recipe, amendments=()), probe)
        except UserError as error:
            return error.sentence

    async def _ask(
        self, record: JobRecord, request: SteeringRequest, member: Member, key: str | None, *, is_joined: bool
    ) -> SteeringAnswer:
        job = record.id
        known = await self.store.query(list_amendments, job)
        if key is not None and (earlier := [each for each in known if each.key == key]):
            views = [each.to_view(record.steps) for each in earlier]
            return SteeringAnswer(views, self._make_outlook(record, known, member, is_joined=is_joined))
        speaker = _place_member(member, record)
        author = speaker if member.id == record.member else record.author
        situation = self._read_situation(record)
        plan = _work_out(record, known, request, situation)
        await self._check_words(plan.changes, request, speaker, author)

        def decide(locked: JobRecord, now_known: Sequence[AmendmentRecord], ledger: Ledger) -> Sequence[NewAmendment]:
            require_steerable(locked)
            is_same = (locked.task, now_known) == (record.task, known)  # mostly: then the plan holds
            new_plan = plan if is_same else _work_out(locked, now_known, request, situation)
            self._check_rules(locked, new_plan, speaker, author, ledger)
            return new_plan.priced_changes

        asked = await self.store.write(ask_for_amendments, job, speaker, author, key, decide, self.clock())
        if asked is None:
            raise UserError("There is no such job.", 404)
        views = [each.to_view(asked.job_record.steps) for each in asked.requested]
        self.sender.announce(asked.job_record, views)
        return SteeringAnswer(views, self._make_outlook(asked.job_record, asked.known, member, is_joined=is_joined))

    def _read_situation(self, record: JobRecord) -> _Situation:
        """Read what memory knows, before the store's thread decides."""
        model = self._find_model(require_steerable(record))
        return _Situation(model, self.active_jobs.find_step(record), secrets.randbelow(LARGEST_SEED))

    def _find_model(self, recipe: Recipe) -> ModelProfile:
        model = self.catalog.find_profile_for(recipe)
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
                await self.word_filter.check_texts(texts, speaker, ruled, texts[0])

    def _check_rules(self, record: JobRecord, plan: _Plan, speaker: Member, author: Member, ledger: Ledger) -> None:
        """Check the rules of both, and that the author's limits have room for the added cost. Raises `UserError`."""
        rules = ledger.load_rules()
        now = self.clock()
        author_rules = resolve(rules, author, self.limits)
        for each in (author_rules, resolve(rules, speaker, self.limits)):
            check_action(each, "steer")
        _check_count(record, plan.changes[-1].recipe, author_rules)
        if plan.added_cost:
            is_relaxed = record.tier == RELAXED_TIER
            check_device_time(plan.added_cost, author_rules, ledger, now, is_relaxed=is_relaxed, advice=ADVICE)


def _work_out(
    record: JobRecord, known: Sequence[AmendmentRecord], request: SteeringRequest, situation: _Situation
) -> _Plan:
    """Return the changes that a request means, on top of all known ones. Raises `UserError`."""
    recipe = require_steerable(record)
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


def require_steerable(record: JobRecord) -> Recipe:
    """Return the job's recipe. Raises `UserError` if it cannot be steered now, whatever the change is."""
    if not isinstance(record.task, Recipe):
        raise UserError(AN_UPSCALE)
    if is_end(record.state):
        raise UserError(f"Too late: it has {record.state} already.")
    if record.cancelling:
        raise UserError(CANCELLING)
    if record.task.sampler in PIPELINE_SAMPLERS:
        raise UserError(WHOLE_PIPELINE.format(record.task.sampler))
    return record.task


def presume_recipe(recipe: Recipe, known: Sequence[AmendmentRecord], step: int) -> Recipe:
    """Return the recipe as if every waiting change held from `step` on, in the order of their numbers."""
    known_numbers = {each.number for each in known}  # the others were in the recipe before: it reproduces a steered job
    amendments = [each for each in recipe.amendments if each.number not in known_numbers]
    accepted = [each for each in known if each.state != "refused"]
    if len(known) >= MAX_REQUESTS:
        raise UserError(TOO_MANY_REQUESTS)
    for index, each in enumerate(accepted):
        earliest = amendments[-1].step if amendments else 0
        later_steps = [later.step for later in accepted[index:] if later.step is not None]
        amendments.append(each.to_amendment(min([max(earliest, step), *later_steps])))
    return msgspec.structs.replace(recipe, amendments=tuple(amendments))


def check_changes(changes: Sequence[RequestedChange], model: ModelProfile) -> None:
    """Raise `UserError` if the model cannot do what a recipe asks for once it is changed."""
    recipe = changes[-1].recipe
    if "amendments" in model.lacks:
        check_features(recipe, model)
    check_capabilities(settle_fades(recipe), model)


class AmendmentSender:
    """Repeats changes of running jobs until a worker answers. Run `run` as a task."""

    def __init__(self, store: Store, bus: Bus, active_jobs: ActiveJobs, feed: Feed) -> None:
        self._store = store
        self._bus = bus
        self._active_jobs = active_jobs
        self._feed = feed
        self._waiting: set[str] | None = None  # jobs that may have waiting changes; None: SQL knows
        self._woken: set[str] = set()
        self._wake_event = asyncio.Event()

    def announce(self, record: JobRecord, views: Sequence[AmendmentView]) -> None:
        """Tell all listeners what waits now, and send it."""
        self._active_jobs.follow_record(record)
        self.wake(record.id)
        if isinstance(record.task, Recipe):
            for view in views:
                self._feed.publish(JobSteered(record.id, view, record.task))

    def wake(self, job: str) -> None:
        """Send a job's waiting changes now."""
        self._woken.add(job)
        self._wake_event.set()

    async def run(self) -> None:
        """Send until cancelled. Wait out an outage of broker or database."""
        repeat_at = 0.0
        while True:
            now = asyncio.get_running_loop().time()
            is_repeat = now >= repeat_at
            try:
                await self.run_round(is_repeat=is_repeat)
            except (BrokerUnreachable, DatabaseUnavailable) as error:
                log.warning("changes: %s", error)
            repeat_at = now + REPEAT_SECONDS if is_repeat else repeat_at
            await self._wait(repeat_at)

    async def _wait(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._wake_event.wait()
        except TimeoutError:
            return

    async def run_round(self, *, is_repeat: bool = True) -> None:
        """Send the waiting changes of the woken jobs, or of all. Raises `BrokerUnreachable`, `DatabaseUnavailable`."""
        self._wake_event.clear()
        if self._waiting is None:
            self._waiting = set(await self._store.query(list_jobs_with_waiting))
        woken = self._woken
        self._woken = set()
        self._waiting |= woken
        jobs = self._waiting if is_repeat else woken
        if not jobs:
            return
        by_job = await self._store.query(list_waiting, sorted(jobs))
        self._waiting -= jobs - by_job.keys() - self._woken
        for job, waiting in by_job.items():
            await self._send(job, waiting)

    async def _send(self, job: str, waiting: Sequence[AmendmentRecord]) -> None:
        """Send a job's changes to the claim that we know. Without one they wait for the next."""
        active_job = self._active_jobs.by_id.get(job)
        if active_job is None or not active_job.is_claimed:
            return
        requests = tuple(AmendmentRequest(each.number, each.change) for each in waiting[:MAX_AMENDMENTS_AT_ONCE])
        record = active_job.record
        await self._bus.send_amendments(record.pool, AmendJob(job=job, epoch=record.epoch, requests=requests))
