"""Dispatch: sends jobs to the broker in fair order, and no more than live workers have free rows for.

The dispatcher sleeps until rows may be free (a job arrived or ended, a worker changed). It records a job as sent in SQL
before it submits it, so `republish` restores what the broker lacks. The rerouter moves jobs out of pools that can no
longer run them. Both know the store and the bus; nothing of front ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from bot.domain.concurrency import run_periodically
from bot.domain.events import Feed, QueueMoved
from bot.domain.texts import INIT_IMAGE_GONE
from bot.jobs.active_jobs import ActiveJob, ActiveJobs
from bot.jobs.completion import BrokerBlobs, JobCompletion
from bot.jobs.forecast import Forecast, QueuePlace
from bot.jobs.model_catalog import ModelCatalog, PoolSummary, group_by_pool
from bot.jobs.recipe import renew_recipe
from bot.pictures.picture_store import ContentMissing
from bot.policy.fair_queue import QueueBypass
from bot.policy.limits import Limits
from bot.policy.worker_losses import is_on_probation
from bot.store import DatabaseUnavailable, JobRecord, PickRequest, Store, Transition, rules
from bot.store.transitions import job_admin
from bot.store.transitions.amendments import read_recipe_cost
from engine.bus import BrokerUnreachable, Bus
from engine.contract import Job, MalformedMessage, Presence, Recipe, required_blobs
from engine.process.log_format import log_context

log = logging.getLogger(__name__)

# most rows of newcomers beyond the workers' rows: as a share, and absolute
MAX_OVERBOOK_SHARE = 12.0
MAX_OVERBOOK_ROWS = 96
IDLE_SECONDS = 1.0  # longest sleep without a wake event
PUBLISH_SECONDS = 1.0  # least time between two publications of queue places


def overbook_share(rows: int) -> float:
    """Return how far newcomers may exceed a pool's rows, as a share of them.

    A small pool has room for a grid or two: without this, nine members who arrive together would each wait for the last
    step of another before their first. In a large pool rows become free soon, so there the share is 1.
    """
    return max(1.0, min(MAX_OVERBOOK_SHARE, MAX_OVERBOOK_ROWS / max(1, rows)))


@dataclass(eq=False)
class JobSender:
    """Publishes jobs that SQL has as sent, each with its input pictures."""

    store: Store
    bus: Bus
    active_jobs: ActiveJobs
    feed: Feed
    models: ModelCatalog
    blobs: BrokerBlobs
    completion: JobCompletion

    async def republish(self) -> None:
        """Submit every sent or running job again; the broker ignores those that it has.

        Skips a job with waiting results, since it may be done. A job that was claimed before the broker lost its store
        is submitted all the same: its claim is lost, and its worker has stopped. A running job on probation is not:
        the patrol brings it back once its worker is lost.
        """
        reported_jobs = await self.bus.list_reported_jobs()
        first_epoch = await self.bus.read_first_epoch()
        for record in await self.completion.load_active():
            is_lost = 0 < record.epoch < first_epoch
            is_left_to_patrol = record.state == "running" and is_on_probation(record.attempts_without_progress)
            if not record.cancelling and (is_lost or not (record.id in reported_jobs or is_left_to_patrol)):
                await self.submit_or_fail(record)

    async def submit_or_fail(self, record: JobRecord) -> None:
        """Submit a job, or fail it: a job that cannot be published must not block those behind it."""
        try:
            with log_context(record.id):
                await self.submit(record)
        except (BrokerUnreachable, DatabaseUnavailable):
            raise
        except Exception:
            log.exception("job %s: cannot be handed to a worker", record.id)
            await self.completion.fail(record.id, "It could not be handed to a worker.", "us")

    async def submit(self, record: JobRecord) -> None:
        """Publish this attempt, with its input pictures. Idempotent.

        A job that waits for its next attempt is left to the patrol, which submits it then. Raises `BrokerUnreachable`
        or `DatabaseUnavailable`.
        """
        if record.id in self.active_jobs.next_attempt_at:
            return
        try:
            for sha256 in required_blobs(record.task):
                await self.blobs.put(sha256)
        except ContentMissing:
            await self.completion.fail(record.id, INIT_IMAGE_GONE, "us")
            return
        except BrokerUnreachable:
            raise
        except OSError as error:  # the patrol submits it again; the jobs behind it do not wait
            log.warning("job %s: not sent yet: %s", record.id, error)
            return
        if await self.bus.dispatch(await self._to_current_job(record)) and record.state == "running":
            log.warning("job %s: published again after the broker lost it", record.id)
        if self.feed.is_watched(record.id):
            await self.bus.request_previews(record.id)
        log.info("job %s: sent, attempt %d", record.id, record.attempt)

    async def _to_current_job(self, record: JobRecord) -> Job:
        """Return the wire value. A job that has not started uses its model's current weights.

        Its cost is that of its recipe: the worker adds what waiting changes cost once they hold.
        """
        cost = await self.store.query(read_recipe_cost, record.id)
        job = msgspec.structs.replace(record.to_job(), cost=cost)
        if isinstance(job.task, Recipe) and not record.step:
            with suppress(KeyError):
                task, notes = renew_recipe(job.task, self.models.find_entry(job.task.model))
                if notes:
                    log.warning("job %s: %s", record.id, notes[0])
                return msgspec.structs.replace(job, task=task)
        return job


class PlaceAnnouncer:
    """Publishes the places of waiting jobs to the feed."""

    def __init__(self, feed: Feed, forecast: Forecast, *, clock: Callable[[], float] = time.time) -> None:
        self._feed = feed
        self._forecast = forecast
        self._clock = clock
        self._published: dict[str, QueueMoved] = {}
        self._published_at = 0.0

    async def publish(self) -> None:
        """Publish the changed places of waiting jobs, if anybody listens."""
        now = self._clock()
        if not self._feed.has_subscribers or now - self._published_at < PUBLISH_SECONDS:
            return
        self._published_at = now
        layout = await self._forecast.get_layout()
        events = {job: self._to_queue_event(job, place) for job, place in layout.places.items()}
        for job, event in events.items():
            if not _is_same_place(self._published.get(job), event):
                self._feed.publish(event)
        self._published = events

    def _to_queue_event(self, job: str, place: QueuePlace) -> QueueMoved:
        return QueueMoved(
            job,
            place.jobs_ahead,
            self._forecast.estimate_wait(place),
            self._forecast.describe_startup(place.pool, place.model),
        )


def _is_same_place(old: QueueMoved | None, new: QueueMoved) -> bool:
    """Return True if a member would see no difference: the same place, and an ETA within 10 %."""
    if old is None or (old.jobs_ahead, old.startup_notice) != (new.jobs_ahead, new.startup_notice):
        return False
    old_eta = old.eta
    new_eta = new.eta
    return old_eta == new_eta or (
        old_eta is not None and new_eta is not None and abs(old_eta - new_eta) <= 0.1 * old_eta
    )


@dataclass(eq=False)
class Dispatcher:
    """Run `run` as a task. `limits`: the defaults."""

    store: Store
    bus: Bus
    active_jobs: ActiveJobs
    models: ModelCatalog
    sender: JobSender
    places: PlaceAnnouncer
    limits: Limits
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._bypass = QueueBypass()
        self._wake_event = asyncio.Event()
        self.active_jobs.on_rows_freed = self.wake
        self._must_republish = True  # the broker may lack jobs that SQL has as sent

    def wake(self) -> None:
        """Wake the dispatcher: something changed."""
        self._wake_event.set()

    async def handle_reconnect(self) -> None:
        """Publish everything again, since the broker was away."""
        self.active_jobs.losses.record_outage(self.clock())
        self._must_republish = True
        self.wake()

    async def prepare(self) -> None:
        """Load models and workers before the first request. Raises `BrokerUnreachable`, `DatabaseUnavailable`."""
        self.active_jobs.losses.record_outage(self.clock())  # nobody saw what broke while no bot ran
        await self.models.load()
        self.bus.add_reconnect_callback(self.handle_reconnect)
        await self.bus.watch_workers(self.wake)

    async def run(self) -> None:
        """Dispatch until cancelled. Wait out an outage of broker or database."""
        while True:
            self._wake_event.clear()
            try:
                await self.run_round()
            except (BrokerUnreachable, DatabaseUnavailable) as error:
                log.warning("dispatch: %s", error)
                self._must_republish = True
                await asyncio.sleep(IDLE_SECONDS)
            except MalformedMessage as error:  # a corrupt row: the next round begins by failing it
                log.error("dispatch: %s", error)
                self._must_republish = True
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    await self._wake_event.wait()
            except TimeoutError:
                continue

    async def run_round(self) -> None:
        """Dispatch all that fits now. Raises `BrokerUnreachable` and `DatabaseUnavailable`."""
        if self._must_republish:
            await self.bus.declare()  # after the reconnection this may have failed, for example on a full disk
            await self.sender.republish()
            self._must_republish = False
        await self.models.refresh()
        self.active_jobs.guild_limits = await self.store.query(rules.load_guild_limits)
        for pool_info in group_by_pool(self.bus.workers).values():
            while transition := await self._pick_next(pool_info):
                self.active_jobs.put(transition.record, self.clock())
                await self.sender.submit_or_fail(transition.record)
        await self.places.publish()

    async def _pick_next(self, pool_info: PoolSummary) -> Transition | None:
        """Mark the pool's next job as sent in SQL, and return the transition."""
        now = self.clock()
        loaded_models = self._bypass.bypass_models(pool_info.pool, pool_info.loaded_models, now)
        request = PickRequest(
            pool_info.pool,
            pool_info.models,
            self.limits.running,
            running_limits=self.active_jobs.guild_limits,
            bypass=self._bypass,
            paused_rows=self.active_jobs.count_paused_rows(pool_info.pool, pool_info.rows, pool_info.free_rows, now),
            loaded_models=None if pool_info.models <= loaded_models else pool_info.models & loaded_models,
        )
        return await self.store.pick_job(request, pool_info.rows, overbook_share(pool_info.rows), now)


INTERVAL_SECONDS = 2.0
ANY_MODEL = frozenset({""})  # the empty model name: any worker of the pool can run the job


@dataclass(eq=False)
class JobRerouter:
    """Run `run` as a task."""

    store: Store
    bus: Bus
    active_jobs: ActiveJobs
    completion: JobCompletion
    models: ModelCatalog
    workers: Callable[[], Mapping[str, Presence]]
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._page_cursors: dict[str, str] = {}  # pool → job after which the next round continues: some can never move

    async def run(self) -> None:
        """Run rounds until cancelled. Retry after an outage of broker or database."""
        await run_periodically(self.run_round, INTERVAL_SECONDS, "rerouting", log, pauses_first=True)

    async def run_round(self) -> None:
        """Check the sent jobs of pools without workers, and one page of waiting jobs per pool.

        Raises `BrokerUnreachable` and `DatabaseUnavailable`.
        """
        live_pools = group_by_pool(self.workers())
        if not live_pools:
            return
        for active_job in [run for run in self.active_jobs.by_id.values() if run.record.pool not in live_pools]:
            await self._recall_job(active_job)
        movable_models = {
            pool: _find_movable_models(pool, live_pools)
            for pool in await self.store.query(job_admin.list_waiting_pools)
        }
        self._page_cursors = {
            pool: await self._move_page(pool, models) for pool, models in movable_models.items() if models
        }

    async def _move_page(self, pool: str, models: Collection[str]) -> str:
        """Move the movable jobs of one page. Return the job after which the next page begins, empty to start over."""
        records, cursor = await self.store.query(
            job_admin.list_waiting_jobs, pool, models, self._page_cursors.get(pool, "")
        )
        for record in records:
            await self._move_job(record)
        return cursor

    async def _recall_job(self, active_job: ActiveJob) -> None:
        """Queue a sent, unclaimed job again if its pool has no workers and another pool can run it."""
        if (
            self._find_other_pool(active_job.record) is None
            or active_job.record.cancelling
            or self.active_jobs.results_behind_until > self.clock()
        ):
            return
        if await self.bus.get_holder(active_job.record.id) is None:
            audit_note = f"nobody serves the pool {active_job.record.pool}"
            await self.completion.requeue(
                active_job.record.id, step=active_job.step, audit_note=audit_note, cause="lost"
            )

    async def _move_job(self, record: JobRecord) -> None:
        pool = self._find_other_pool(record)
        if pool is not None and await self.store.reroute_job(record.id, pool, self.clock()) is not None:
            log.warning("job %s: from the pool %s to %s, where its model is offered", record.id, record.pool, pool)
            self.active_jobs.on_rows_freed()

    def _find_other_pool(self, record: JobRecord) -> str | None:
        """Return another pool that can run the job; None if there is none."""
        if isinstance(record.task, Recipe):
            pool = self.models.choose_pool(record.task.model, record.task.revision, recipe=record.task)
        else:
            pool = self.models.choose_live_pool(record.pool)
        return None if pool == record.pool else pool


def _find_movable_models(pool: str, live_pools: Mapping[str, PoolSummary]) -> frozenset[str]:
    """Return the models for which a job may leave a pool: offered in another pool and not in this one."""
    all_models = frozenset[str]().union(*(pool_info.models for pool_info in live_pools.values()))
    return all_models - live_pools[pool].models if pool in live_pools else all_models | ANY_MODEL
