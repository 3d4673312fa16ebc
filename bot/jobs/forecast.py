"""Places in the queue, ETAs and wait reasons, from the fair order laid out and cached until the queue changes.

To lay out a long queue takes time, and a busy evening changes it hundreds of times a second. So concurrent callers
share one layout. For rough answers, as at each admission, a layout serves for a multiple of the time that it took;
newer jobs then get an estimated place.

Knows the store, the active jobs and the live workers; changes nothing. Estimates are in seconds from now.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from bot.domain.texts import format_startup
from bot.jobs.active_jobs import ActiveJobs
from bot.jobs.model_catalog import PoolSummary, group_by_pool
from bot.policy.fair_queue import Account, WaitEstimate, WaitFacts, WaitingJob, dispatch_order, wait_reason
from bot.store import JobRecord, Store
from bot.store.jobs import queries
from engine.contract import ModelProgress, Presence

MAX_JOBS = 1000  # a longer queue is not laid out; its places are estimates
FRESH_LAYOUT_SECONDS = 0.005  # seconds; a layout that took less is repeated at each call
REUSE_FACTOR = 20  # a slower layout is reused for rough answers for this many times its duration


@dataclass(frozen=True)
class QueuePlace:
    """A place in the queue: the jobs of the pool that start first, and the cost until it is done.

    `members_ahead`: how many other members have a job ahead; 0 if not counted.
    """

    jobs_ahead: int
    device_seconds: float
    pool: str
    model: str
    members_ahead: int = 0


@dataclass(frozen=True)
class QueueLayout:
    """The queue in fair order, and the waiting users of each pool. `is_complete`: it was short enough to lay out."""

    places: Mapping[str, QueuePlace] = field(default_factory=dict[str, QueuePlace])
    estimates: Mapping[str, WaitEstimate] = field(default_factory=dict[str, WaitEstimate])
    is_complete: bool = True


@dataclass(eq=False)
class Forecast:
    """Answers about the queue; reads it at most once per change, so calls are cheap."""

    store: Store
    active_jobs: ActiveJobs
    workers: Callable[[], Mapping[str, Presence]]
    clock: Callable[[], float] = time.time
    get_startup_progress: Callable[[str | None], ModelProgress | None] = lambda pool: None
    get_model_size: Callable[[str], int] = lambda model: 0

    def __post_init__(self) -> None:
        self._layout_version = -1
        self._reuse_until = 0.0
        self._layout = QueueLayout()
        self._layout_lock = asyncio.Lock()

    async def get_layout(self, *, allow_stale: bool = False) -> QueueLayout:
        """Return every waiting job's place. With `allow_stale` the answer may be a moment old."""
        async with self._layout_lock:
            started_at = time.monotonic()
            version = self.store.version
            if version != self._layout_version and (started_at >= self._reuse_until or not allow_stale):
                self._layout = await self._build_layout()
                self._layout_version = version
                duration = time.monotonic() - started_at
                self._reuse_until = started_at + (REUSE_FACTOR * duration if duration > FRESH_LAYOUT_SECONDS else 0.0)
        return self._layout

    async def _build_layout(self) -> QueueLayout:
        estimates = {
            pool: WaitEstimate(member_jobs)
            for pool, member_jobs in (await self.store.query(queries.summarise_waiting)).items()
        }
        queue_rows = await self.store.query(queries.load_waiting_queue, MAX_JOBS)
        if queue_rows is None:
            return QueueLayout({}, estimates, is_complete=False)
        waiting_jobs, accounts = queue_rows
        jobs_by_pool: dict[str, list[tuple[WaitingJob, str]]] = {}
        for waiting_job, model in waiting_jobs:
            jobs_by_pool.setdefault(waiting_job.account.partition("/")[0], []).append((waiting_job, model))
        return QueueLayout(
            {job: place for pool_jobs in jobs_by_pool.values() for job, place in _iter_places(pool_jobs, accounts)},
            estimates,
        )

    async def get_place(self, record: JobRecord, *, allow_stale: bool = False) -> QueuePlace | None:
        """Return a waiting job's place; None if it does not wait (any more)."""
        if record.state != "queued":
            return None
        layout = await self.get_layout(allow_stale=allow_stale)
        known_place = layout.places.get(record.id)
        if known_place is not None or (
            layout.is_complete and not (allow_stale and self._layout_version != self.store.version)
        ):
            return known_place
        earlier_jobs = await self.store.query(queries.count_earlier_jobs, record)
        jobs_ahead, device_seconds = layout.estimates.get(record.pool, WaitEstimate()).estimate(earlier_jobs)
        return QueuePlace(jobs_ahead, max(device_seconds, record.cost), record.pool, record.model)

    def has_worker(self, pool: str, model: str) -> bool:
        """Return True if a live worker of the pool offers the model."""
        pool_info = group_by_pool(self.workers()).get(pool)
        return pool_info is not None and (not model or model in pool_info.models)

    def describe_startup(self, pool: str, model: str) -> str:
        """Return the sentence about a starting worker of the pool; empty if a live one offers the model."""
        if self.has_worker(pool, model):
            return ""
        progress = self.get_startup_progress(pool)
        is_relevant = progress is not None and (not self.workers() or progress.model == model)
        return format_startup(progress) if is_relevant else ""

    def estimate_wait(self, place: QueuePlace) -> float | None:
        """Return the seconds until a waiting job is done; None if no worker can run it."""
        if not self.has_worker(place.pool, place.model):
            return None
        pool_info = group_by_pool(self.workers())[place.pool]
        return (
            self.active_jobs.remaining_cost(place.pool) + place.device_seconds
        ) / pool_info.worker_count + self.estimate_load(place.pool, place.model)

    def estimate_load(self, pool: str, model: str) -> float:
        """Return the seconds until a worker of the pool has loaded the model; 0 if one has, or nobody measured it."""
        pool_info = group_by_pool(self.workers()).get(pool)
        if pool_info is None or _is_loaded(pool_info, model):
            return 0.0
        return self.active_jobs.load_times.estimate_seconds(model, self.clock())

    def estimate_eta(self, record: JobRecord, place: QueuePlace | None, now: float) -> float | None:
        """Return the seconds until a job is done; None if it is over or no worker can run it."""
        if place is not None:
            return self.estimate_wait(place)
        active_job = self.active_jobs.by_id.get(record.id)
        if active_job is None or not self.has_worker(record.pool, record.model):
            return None
        reported_seconds = active_job.estimate_seconds_left(now)
        pool_info = group_by_pool(self.workers())[record.pool]
        return (
            self.active_jobs.remaining_cost(record.pool) / pool_info.worker_count
            if reported_seconds is None
            else reported_seconds
        )

    def explain_wait(self, record: JobRecord, place: QueuePlace | None, member_limit: int) -> str:
        """Return why a job waits, as a sentence; empty if it does not. `member_limit`: of its member's jobs at once."""
        return wait_reason(self._collect_facts(record, place, member_limit)) if record.state == "queued" else ""

    def _collect_facts(self, record: JobRecord, place: QueuePlace | None, member_limit: int) -> WaitFacts:
        workers = self.workers()
        model = record.model
        now = self.clock()
        pool_info = group_by_pool(workers).get(record.pool)
        active_records = [active_job.record for active_job in self.active_jobs.by_id.values()]
        guild_records = [other for other in active_records if other.guild == record.guild]
        return WaitFacts(
            model=model,
            startup_notice=self.describe_startup(record.pool, model),
            any_worker=bool(workers),
            is_offered=self.has_worker(record.pool, model),
            is_loaded=pool_info is None or _is_loaded(pool_info, model),
            loaded_share=self.active_jobs.load_times.get_progress(model, now),
            model_bytes=self.get_model_size(model),
            load_seconds=self.active_jobs.load_times.estimate_seconds(model, now),
            member_running=sum(one.member == record.member for one in active_records),
            member_limit=member_limit,
            guild_running=len(guild_records),
            guild_limit=self.active_jobs.guild_limits.limit_of(record.guild),
            channel_running=sum(one.channel == record.channel for one in guild_records),
            channel_limit=self.active_jobs.guild_limits.channel_limits_of(record.guild).get(record.channel),
            jobs_ahead=place.jobs_ahead if place else 0,
            other_members=place.members_ahead if place else 0,
        )


def _is_loaded(pool_info: PoolSummary, model: str) -> bool:
    return not model or model in pool_info.loaded_models


def _iter_places(
    waiting_jobs: list[tuple[WaitingJob, str]], accounts: Mapping[str, Account]
) -> Iterator[tuple[str, QueuePlace]]:
    by_id = {waiting_job.job: (waiting_job, model) for waiting_job, model in waiting_jobs}
    device_seconds = 0.0
    members = set[str]()
    for jobs_ahead, job in enumerate(dispatch_order(accounts, [one for one, _ in waiting_jobs])):
        waiting_job, model = by_id[job]
        device_seconds += waiting_job.cost
        pool = waiting_job.account.partition("/")[0]
        other_members = members - {waiting_job.account}
        yield job, QueuePlace(jobs_ahead, device_seconds, pool, model, len(other_members))
        members.add(waiting_job.account)
