"""Wires the application: builds store, queue, services and metrics, and runs their tasks until it closes.

It reads which models the operator chose as defaults (`darkroom models default`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from bot.app.leader_election import Leader
from bot.app.metrics import Metrics, MetricsPage
from bot.app.settings import Settings
from bot.domain.errors import UserError
from bot.domain.events import Feed
from bot.domain.feature import load_parts, merge_rows
from bot.jobs.active_jobs import ActiveJobs
from bot.jobs.admission import Admission, AdmittingTransaction
from bot.jobs.attended_requests import AttendedRequests
from bot.jobs.completion import BrokerBlobs, JobCompletion
from bot.jobs.control import ClosedGuildWatcher, ExternalChangeWatcher, JobCanceller, JobControl
from bot.jobs.costs import LoadCosts
from bot.jobs.dispatch import Dispatcher, JobRerouter, JobSender, PlaceAnnouncer
from bot.jobs.drawing import JobService
from bot.jobs.edits import EditService
from bot.jobs.forecast import Forecast
from bot.jobs.history import History
from bot.jobs.ingest import ResultIngest
from bot.jobs.init_images import InitImageLoader, PageAddresses
from bot.jobs.model_catalog import ModelCatalog
from bot.jobs.patrol import Patrol
from bot.jobs.preferences import ModelChoices, Preferences
from bot.jobs.previews import PreviewRelay
from bot.jobs.results import AmendmentAnswers, ClaimReports, ResultConsumer
from bot.jobs.retention import FileCleanup, OrphanFiles, Retention, RetentionLimits
from bot.jobs.steering import AmendmentSender, SteeringService
from bot.jobs.variations import VariationService
from bot.jobs.views import Deliveries, JobViews
from bot.jobs.word_filter import WordFilter
from bot.pictures.film_cache import FILMS, FilmCache
from bot.pictures.gallery import Gallery
from bot.pictures.picture_store import PictureStore
from bot.pictures.uploads.image_links import FetchFile, fetch_file
from bot.pictures.uploads.upload_decoder import WORKER_TIMEOUT, UploadDecoder
from bot.services import Services
from bot.services.api_keys import ApiKeys
from bot.services.data_deletion import DataDeletion
from bot.services.front_end_actions import FrontEndActions
from bot.services.ladder_decoder import LadderDecoder
from bot.services.moderation.moderation import Moderation
from bot.services.moderation.picture_review import PictureReview
from bot.services.rule_admin import RuleAdmin
from bot.services.sessions import Sessions
from bot.store import Store
from engine.bus import Bus
from engine.contract import JobRejected, Presence
from engine.process.model_settings import (
    EMBEDDED_MODEL,
    ModelSettingsError,
    ModelSettingsFile,
    read_model_settings,
    read_style_guide,
)
from engine.prompt.style_guide import StyleGuide

STOP_SECONDS = 5.0  # the broker's client needs a moment to hand back messages in flight


@dataclass(frozen=True)
class App:
    """The built application: what front ends use, and the parts that tests inspect."""

    core: Core
    services: Services
    feed: Feed
    store: Store
    picture_store: PictureStore
    queue: Queue
    retention: Retention
    orphan_files: OrphanFiles
    bus: Bus
    metrics: Metrics
    metrics_page: MetricsPage
    feature_tasks: Mapping[str, Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=dict[str, Any])

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the tasks that run while the application is open; if one of them raises, the application closes."""
        queue = self.queue
        tasks: dict[str, Coroutine[Any, Any, None]] = {
            "bus": self.bus.wait_closed(),
            "result-consumer": queue.result_consumer.run(),
            "broker-blobs": queue.blobs.run(),
            "dispatcher": queue.dispatcher.run(),
            "amendments": queue.amendment_sender.run(),
            "patrol": queue.patrol.run(),
            "job-rerouter": queue.rerouter.run(),
            "closed-guilds": queue.closed_guilds.run(),
            "external-changes": queue.external_changes.run(),
            "previews": queue.previews.publish_frames(),
            "loading-progress": queue.previews.publish_loadings(),
            "preview-requests": queue.previews.request_frames(),
            "moderation-sweep": self.services.moderation.run_sweeps(),
            "retention": self.retention.run(),
            "orphan-files": self.orphan_files.run(),
            "data-deletion": self.services.get(DataDeletion).run(),
        }
        return merge_rows(tasks, {name: run() for name, run in self.feature_tasks.items()})


def wire_app(core: Core, filter_thread: Executor, upload_decoder: UploadDecoder, fetch_upload: FetchFile) -> App:
    """Build all parts; starts nothing. `filter_thread`: the word filter's. `fetch_upload`: fetches from Discord."""
    store = core.store
    clock = core.clock
    settings = core.settings
    queue = wire_queue(core)
    services = wire_services(core, queue, filter_thread, upload_decoder, fetch_upload)
    retention = Retention(
        store,
        services.moderation.remove_files,
        RetentionLimits(settings.keep_seconds, settings.keep_bytes),
        clock=clock,
    )
    return App(
        core,
        services,
        core.feed,
        store,
        core.picture_store,
        queue,
        retention,
        OrphanFiles(store, core.picture_store, clock=clock),
        core.bus,
        core.metrics,
        MetricsPage(core.metrics, store, core.bus, clock=clock),
    )


def _read_style_guides() -> dict[str, StyleGuide]:
    """Read the style guides of the models that have one. Raises `UserError` for a damaged one."""
    try:
        guide = read_style_guide()
    except JobRejected as error:
        raise UserError(str(error)) from error
    return {} if guide is None else {EMBEDDED_MODEL: guide}


@asynccontextmanager
async def open_app(
    settings: Settings,
    bus: Bus,
    *,
    leader: Leader | None = None,
    fetch_upload: FetchFile | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncGenerator[App]:
    """Open the application and run its tasks beside the body; an error of a task ends the body too.

    `leader`: proves that this bot leads, where others stand by. `fetch_upload`: fetches uploads from Discord; None:
    over HTTPS.
    """
    await asyncio.to_thread(settings.data.mkdir, mode=0o700, parents=True, exist_ok=True)
    picture_store = await asyncio.to_thread(PictureStore, settings.pictures)
    store = await Store.open(settings.database)
    filter_thread = ThreadPoolExecutor(1, "word-filter")
    # two decoders: a flood of uploads delays no result
    upload_decoder = UploadDecoder()
    worker_decoder = UploadDecoder(timeout=WORKER_TIMEOUT)
    session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
    try:
        if leader is not None:
            await leader.begin_term(store)
        fetch_upload = fetch_upload or partial(fetch_file, session)
        default_model = (await asyncio.to_thread(read_model_choices, settings.data)).default
        style_guides = await asyncio.to_thread(_read_style_guides)
        core = Core(
            settings,
            bus,
            store,
            picture_store,
            Feed(),
            Metrics(clock),
            worker_decoder,
            clock,
            style_guides,
            default_model,
        )
        app = wire_app(core, filter_thread, upload_decoder, fetch_upload)
        async with _open_features(app) as app:
            await app.queue.external_changes.prepare()
            await app.queue.completion.load_active()
            await app.queue.dispatcher.prepare()
            async with _run_tasks(app):
                yield app
    finally:
        if leader is not None:
            leader.note_close()
        await upload_decoder.close()
        await worker_decoder.close()
        await session.close()
        await asyncio.to_thread(filter_thread.shutdown)
        await store.close()


@asynccontextmanager
async def _open_features(app: App) -> AsyncGenerator[App]:
    """Open every feature over the application, and yield it with their services and tasks."""
    async with AsyncExitStack() as stack:
        modules = (await asyncio.to_thread(load_parts, "service")).values()
        running = [await stack.enter_async_context(module.open_service(app)) for module in modules]
        added: dict[type, object] = {type(feature.service): feature.service for feature in running}
        by_class = {**app.services.by_class, **added}
        tasks = {name: run for feature in running for name, run in feature.tasks.items()}
        yield replace(app, services=replace(app.services, by_class=by_class), feature_tasks=tasks)


@asynccontextmanager
async def _run_tasks(app: App) -> AsyncGenerator[None]:
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


def wire_services(
    core: Core, queue: Queue, filter_thread: Executor, upload_decoder: UploadDecoder, fetch_upload: FetchFile
) -> Services:
    """Build the services."""
    store = core.store
    clock = core.clock
    catalog = queue.catalog
    limits = core.settings.limits
    active_jobs = queue.active_jobs
    job_views = JobViews(store, active_jobs, queue.forecast, limits=limits, clock=clock)
    ladder_decoder = LadderDecoder(core.bus.decode, core.live_workers, core.worker_decoder)
    films = FilmCache(core.settings.data / FILMS)
    gallery = Gallery(store, core.picture_store, ladder_decoder.decode, films, clock=clock)
    loader = InitImageLoader(store, core.picture_store, gallery, job_views, upload_decoder, fetch_upload)
    preferences = Preferences(store)
    aliases = preferences.load_flag_aliases
    page_addresses = PageAddresses()
    word_filter = WordFilter(store, filter_thread, limits=limits, clock=clock)
    admission = Admission(
        AdmittingTransaction(store, job_views, core.live_workers, limits),
        job_views,
        word_filter,
        LoadCosts(queue.forecast.estimate_load),
        loader,
        max_age=core.settings.max_job_age,
        on_admitted=queue.dispatcher.wake,
        clock=clock,
    )
    shared = (catalog, job_views, gallery, loader, aliases, admission)
    rule_admin = RuleAdmin(store, queue.canceller.cancel, limits=limits, clock=clock)
    rules = rule_admin.effective_rules
    jobs = JobService(catalog, admission, loader, aliases, rules, page_addresses, core.style_guides)
    job_control = JobControl(core.bus, active_jobs, job_views, queue.canceller, clock=clock)
    front_end = FrontEndActions()

    async def drop_copies(hashes: Collection[str]) -> None:
        await films.forget(hashes)
        await queue.blobs.drop(hashes)

    remove_files = FileCleanup(store, core.picture_store, drop_copies)
    added = (
        AttendedRequests(jobs, job_control, job_views, gallery, core.feed),
        DataDeletion(
            store,
            queue.canceller.cancel,
            remove_files,
            core.feed,
            front_end,
            waits_for_discord=core.settings.discord_token is not None,
            clock=clock,
        ),
        PictureReview(store, job_views, gallery, clock=clock),
        Sessions(store, clock=clock),
        ApiKeys(store, clock=clock),
        ModelChoices(store),
        core.worker_decoder,
        loader,
        page_addresses,
        word_filter,
        front_end,
    )
    return Services(
        jobs=jobs,
        job_control=job_control,
        variations=VariationService(*shared),
        edits=EditService(*shared),
        steering=SteeringService(
            store, job_views, word_filter, catalog, active_jobs, queue.amendment_sender, limits=limits, clock=clock
        ),
        job_views=job_views,
        gallery=gallery,
        catalog=catalog,
        feed=core.feed,
        live_workers=core.live_workers,
        deliveries=Deliveries(store, job_views, clock=clock),
        preferences=preferences,
        rule_admin=rule_admin,
        history=History(store, job_views),
        moderation=Moderation(store, queue.canceller, core.feed, rules, front_end, remove_files, clock=clock),
        by_class={type(each): each for each in added},
    )


def read_model_choices(data: Path) -> ModelSettingsFile:
    """Return the choices of a data folder. Raise `UserError` where the file cannot be read."""
    try:
        return read_model_settings(data)
    except ModelSettingsError as error:
        raise UserError(str(error)) from error


@dataclass(frozen=True)
class Core:
    """What all parts use."""

    settings: Settings
    bus: Bus
    store: Store
    picture_store: PictureStore
    feed: Feed
    metrics: Metrics
    worker_decoder: UploadDecoder  # decodes pictures of workers
    clock: Callable[[], float]
    style_guides: Mapping[str, StyleGuide]  # by model
    default_model: str = ""  # empty: the embedded one

    def live_workers(self) -> dict[str, Presence]:
        """Return the live workers by name."""
        return self.bus.workers


@dataclass(frozen=True)
class Queue:
    """The parts that move jobs from SQL to workers and back."""

    active_jobs: ActiveJobs
    blobs: BrokerBlobs
    catalog: ModelCatalog
    forecast: Forecast
    completion: JobCompletion
    sender: JobSender
    dispatcher: Dispatcher
    canceller: JobCanceller
    result_consumer: ResultConsumer
    patrol: Patrol
    rerouter: JobRerouter
    closed_guilds: ClosedGuildWatcher
    external_changes: ExternalChangeWatcher
    previews: PreviewRelay
    amendment_sender: AmendmentSender


def wire_queue(core: Core) -> Queue:
    """Build the queue's parts; starts nothing."""
    store = core.store
    bus = core.bus
    feed = core.feed
    metrics = core.metrics
    clock = core.clock
    active_jobs = ActiveJobs(on_first_preview=metrics.observe_first_preview)
    catalog = ModelCatalog(store, core.live_workers, clock, core.default_model)
    forecast = Forecast(
        store,
        active_jobs,
        core.live_workers,
        clock=clock,
        get_startup_progress=bus.get_startup_progress,
        get_model_size=bus.model_progress.get_model_size,
    )
    blobs = BrokerBlobs(bus, core.picture_store, active_jobs)
    completion = JobCompletion(
        store,
        bus,
        active_jobs,
        feed,
        clock=clock,
        blobs=blobs,
        on_end=metrics.count_end,
        on_requeue=metrics.count_requeue,
    )
    sender = JobSender(store, bus, active_jobs, feed, catalog, blobs, completion)
    places = PlaceAnnouncer(feed, forecast, clock=clock)
    limits = core.settings.limits
    dispatcher = Dispatcher(store, bus, active_jobs, catalog, sender, places, limits=limits, clock=clock)
    canceller = JobCanceller(store, bus, active_jobs, completion, core.live_workers)
    amendment_sender = AmendmentSender(store, bus, active_jobs, feed)
    claims = ClaimReports(
        store,
        bus,
        active_jobs,
        feed,
        completion,
        on_reclaim=metrics.count_reclaim,
        on_start=amendment_sender.wake,
        clock=clock,
    )
    result_consumer = ResultConsumer(
        bus,
        active_jobs,
        completion,
        ResultIngest(store, bus, active_jobs, core.picture_store, core.worker_decoder, clock=clock),
        claims,
        AmendmentAnswers(store, active_jobs, feed, catalog.find_profile_for),
        blobs,
        clock=clock,
    )
    return Queue(
        active_jobs,
        blobs,
        catalog,
        forecast,
        completion,
        sender,
        dispatcher,
        canceller,
        result_consumer,
        Patrol(store, bus, active_jobs, completion, sender.submit, lease=bus.limits.lease, clock=clock),
        JobRerouter(store, bus, active_jobs, completion, catalog, core.live_workers, clock=clock),
        ClosedGuildWatcher(store, canceller.cancel),
        ExternalChangeWatcher(store, completion, canceller.cancel),
        PreviewRelay(bus, active_jobs, feed, core.worker_decoder, clock=clock),
        amendment_sender,
    )
