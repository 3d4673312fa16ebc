"""Wires the application: builds store, queue, services and metrics, and runs their tasks until it closes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp

from bot.app.leader_election import Leader
from bot.app.metrics import Metrics
from bot.app.metrics_page import MetricsPage
from bot.app.settings import Settings
from bot.domain.events import Feed
from bot.images.gallery import Gallery
from bot.images.picture_store import PictureStore
from bot.images.uploads.image_links import FetchFile, fetch_file
from bot.images.uploads.upload_decoder import UploadDecoder
from bot.queue.active_jobs import ActiveJobs
from bot.queue.cancellation import JobCanceller
from bot.queue.closed_guilds import ClosedGuildWatcher
from bot.queue.dispatcher import Dispatcher
from bot.queue.eta import Forecast
from bot.queue.external_changes import ExternalChangeWatcher
from bot.queue.job_completion import JobCompletion
from bot.queue.job_rerouter import JobRerouter
from bot.queue.model_catalog import ModelCatalog
from bot.queue.patrol import Patrol
from bot.queue.pause_priority import JobControl
from bot.queue.preview_relay import PreviewRelay
from bot.queue.results.consumer import ResultConsumer
from bot.queue.results.ingest import ResultIngest
from bot.services import Services
from bot.services.admission.admission import Admission
from bot.services.admission.word_filter import WordFilter
from bot.services.flag_aliases import FlagAliases
from bot.services.init_images.loader import InitImageLoader
from bot.services.job_views.deliveries import Deliveries
from bot.services.job_views.history import History
from bot.services.job_views.job_views import JobViews
from bot.services.jobs.job_service import JobService
from bot.services.ladder_decoder import LadderDecoder
from bot.services.moderation.moderation import Moderation
from bot.services.moderation.picture_review import PictureReview
from bot.services.preferences import Preferences
from bot.services.privacy.data_deletion import DataDeletion
from bot.services.privacy.data_export import DataExport
from bot.services.prompt_tools.image_to_prompt import ImageToPrompt
from bot.services.prompt_tools.prompt_shortening import PromptShortener
from bot.services.rule_admin import RuleAdmin
from bot.services.storage.file_cleanup import OrphanFiles
from bot.services.storage.retention import Retention, RetentionLimits
from bot.store import Store
from engine.bus import Bus
from engine.contract import Presence

STOP_SECONDS = 5.0  # the broker's client needs a moment to hand back messages in flight


@dataclass(frozen=True)
class App:
    """The built application: what front ends use, and the parts that tests inspect."""

    services: Services
    feed: Feed
    store: Store
    picture_store: PictureStore
    active_jobs: ActiveJobs
    dispatcher: Dispatcher
    patrol: Patrol
    rerouting: JobRerouter
    closed_guilds: ClosedGuildWatcher
    external_changes: ExternalChangeWatcher
    result_consumer: ResultConsumer
    retention: Retention
    orphan_files: OrphanFiles
    previews: PreviewRelay
    bus: Bus
    metrics: Metrics
    metrics_page: MetricsPage

    @property
    def jobs(self) -> JobService:
        return self.services.jobs

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the tasks that run while the application is open; if one of them raises, the application closes."""
        return {
            "bus": self.bus.wait_closed(),
            "settle": self.result_consumer.run(),
            "dispatcher": self.dispatcher.run(),
            "patrol": self.patrol.run(),
            "rerouting": self.rerouting.run(),
            "shutting": self.closed_guilds.run(),
            "noticing": self.external_changes.run(),
            "previews": self.previews.publish_frames(),
            "loadings": self.previews.publish_loadings(),
            "wants": self.previews.request_frames(),
            "sweep": self.services.moderation.run_sweeps(),
            "retention": self.retention.run(),
            "orphans": self.orphan_files.run(),
            "forgetting": self.services.data_deletion.run(),
        }


def wire_app(
    settings: Settings,
    bus: Bus,
    store: Store,
    picture_store: PictureStore,
    filter_thread: Executor,
    upload_decoder: UploadDecoder,
    fetch_upload: FetchFile,
    *,
    clock: Callable[[], float] = time.time,
) -> App:
    """Build all parts; start nothing. `filter_thread` runs the word filter, `fetch_upload` fetches uploads."""
    active_jobs, feed, limits = ActiveJobs(), Feed(), settings.limits

    def live_workers() -> dict[str, Presence]:
        return bus.workers

    completion, catalog = (
        JobCompletion(store, bus, active_jobs, feed, clock=clock),
        ModelCatalog(store, live_workers, clock),
    )
    forecast = Forecast(
        store,
        active_jobs,
        live_workers,
        clock=clock,
        get_startup_progress=bus.get_startup_progress,
        get_model_size=bus.model_progress.get_model_size,
    )
    dispatcher = Dispatcher(
        store, bus, active_jobs, feed, forecast, catalog, picture_store, completion, limits=limits, clock=clock
    )
    completion.on_rows_freed = dispatcher.wake
    job_views = JobViews(store, active_jobs, forecast, limits=limits, clock=clock)
    admission = Admission(
        store, job_views, WordFilter(store, filter_thread, limits=limits, clock=clock), live_workers, limits=limits,
        max_age=settings.max_age, on_admitted=dispatcher.wake, clock=clock,
    )  # fmt: skip
    cancelling, job_control = (
        JobCanceller(store, bus, active_jobs, completion, live_workers),
        JobControl(bus, active_jobs, clock=clock),
    )
    gallery = Gallery(store, picture_store, LadderDecoder(bus.decode, live_workers).decode)
    init_image_loader, flag_aliases = (
        InitImageLoader(store, picture_store, gallery, job_views, upload_decoder, fetch_upload),
        FlagAliases(store, catalog.model_names),
    )
    jobs = JobService(
        store,
        feed,
        catalog,
        job_views,
        gallery,
        admission,
        init_image_loader,
        flag_aliases,
        cancelling,
        job_control,
        live_workers,
        startup_progress=bus.get_startup_progress,
        clock=clock,
    )
    services = _build_services(
        settings,
        jobs,
        flag_aliases,
        job_views,
        gallery,
        cancelling,
        store,
        picture_store,
        feed,
        bus,
        clock,
        init_image_loader,
        catalog,
    )
    retention_limits = RetentionLimits(settings.keep_seconds, settings.keep_bytes)
    retention = Retention(store, services.moderation.remove_files, retention_limits, clock=clock)
    result_consumer = ResultConsumer(
        store,
        bus,
        active_jobs,
        feed,
        completion,
        ResultIngest(store, bus, active_jobs, picture_store, clock=clock),
        clock=clock,
    )
    patrol = Patrol(store, bus, active_jobs, completion, dispatcher.submit, lease=bus.limits.lease, clock=clock)
    previews, closed_guilds = (
        PreviewRelay(bus, active_jobs, feed, clock=clock),
        ClosedGuildWatcher(store, cancelling.cancel),
    )
    metrics, external_changes = (
        _connect_metrics(active_jobs, completion, result_consumer, clock),
        ExternalChangeWatcher(store, completion, cancelling.cancel),
    )
    rerouting = JobRerouter(store, bus, active_jobs, completion, catalog, live_workers, clock=clock)
    return App(
        services,
        feed,
        store,
        picture_store,
        active_jobs,
        dispatcher,
        patrol,
        rerouting,
        closed_guilds,
        external_changes,
        result_consumer,
        retention,
        OrphanFiles(store, picture_store, clock=clock),
        previews,
        bus,
        metrics,
        MetricsPage(metrics, store, bus, clock=clock),
    )


def _connect_metrics(
    active_jobs: ActiveJobs, completion: JobCompletion, result_consumer: ResultConsumer, clock: Callable[[], float]
) -> Metrics:
    """Create the metrics and connect them to the parts that they count."""
    metrics = Metrics(clock)
    active_jobs.on_first_preview, completion.on_end, completion.on_requeue = (
        metrics.observe_first_preview,
        metrics.count_end,
        metrics.count_requeue,
    )
    result_consumer.on_reclaim = metrics.count_reclaim
    return metrics


def _build_services(
    settings: Settings,
    jobs: JobService,
    flag_aliases: FlagAliases,
    job_views: JobViews,
    gallery: Gallery,
    cancelling: JobCanceller,
    store: Store,
    picture_store: PictureStore,
    feed: Feed,
    bus: Bus,
    clock: Callable[[], float],
    init_image_loader: InitImageLoader,
    catalog: ModelCatalog,
) -> Services:
    """Build the services."""
    rule_admin = RuleAdmin(store, cancelling.cancel, limits=settings.limits, clock=clock)
    moderation = Moderation(store, picture_store, cancelling, feed, rule_admin.effective_rules, clock=clock)
    waits_for_discord = settings.discord_token is not None
    return Services(
        jobs,
        Deliveries(store, job_views, clock=clock),
        Preferences(store),
        flag_aliases,
        rule_admin,
        PictureReview(store, job_views, gallery, clock=clock),
        History(store, job_views),
        moderation,
        DataDeletion(
            store, cancelling.cancel, moderation.remove_files, feed, waits_for_discord=waits_for_discord, clock=clock
        ),
        DataExport(store, picture_store, clock=clock),
        PromptShortener(bus.embed),
        ImageToPrompt(bus.describe, init_image_loader.load_upload, catalog, rule_admin.effective_rules),
    )


@asynccontextmanager
async def open_app(
    settings: Settings, bus: Bus, *, leader: Leader | None = None, fetch_upload: FetchFile | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[App]:  # fmt: skip
    """Open the application and run its tasks beside the body; an error of a task ends the body too.

    `leader` proves that this bot leads, if others stand by. `fetch_upload` fetches Discord's uploads; None: by HTTPS.
    """
    await asyncio.to_thread(settings.data.mkdir, mode=0o700, parents=True, exist_ok=True)
    picture_store = await asyncio.to_thread(PictureStore, settings.pictures)
    store, filter_thread = await Store.open(settings.database), ThreadPoolExecutor(1, "screening")
    upload_decoder, session = UploadDecoder(), aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
    try:
        if leader is not None:
            await leader.begin_term(store)
        fetch_upload = fetch_upload or partial(fetch_file, session)
        app = wire_app(settings, bus, store, picture_store, filter_thread, upload_decoder, fetch_upload, clock=clock)
        await app.external_changes.prepare()
        await app.dispatcher.prepare()
        async with _run_tasks(app):
            yield app
    finally:
        if leader is not None:
            leader.note_close()
        await upload_decoder.close()
        await session.close()
        await asyncio.to_thread(filter_thread.shutdown)
        await store.close()


@asynccontextmanager
async def _run_tasks(app: App) -> AsyncIterator[None]:
    """Run the tasks beside the body. An error of the body passes through unchanged, not as a group."""
    body_error: Exception | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(task, name=name) for name, task in app.tasks().items()]
        try:
            yield
        except Exception as error:
            body_error = error
        finally:
            app.feed.close()
            await _cancel_tasks(tasks)
    if body_error is not None:
        raise body_error


async def _cancel_tasks(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks repeatedly until they end.

    Before Python 3.12 `asyncio.wait_for`, which the broker's client uses, may swallow one cancellation
    (python/cpython#86296); its task would then go on for ever.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=STOP_SECONDS)
