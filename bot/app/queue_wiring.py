"""Builds the queue: the parts that move jobs from SQL to workers and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bot.app.metrics import Metrics
from bot.app.settings import Settings
from bot.domain.events import Feed
from bot.jobs.active_jobs import ActiveJobs
from bot.jobs.completion import BrokerBlobs, JobCompletion
from bot.jobs.control import ClosedGuildWatcher, ExternalChangeWatcher, JobCanceller
from bot.jobs.dispatch import Dispatcher, JobRerouter, JobSender, PlaceAnnouncer
from bot.jobs.forecast import Forecast
from bot.jobs.ingest import ResultIngest
from bot.jobs.model_catalog import ModelCatalog
from bot.jobs.patrol import Patrol
from bot.jobs.previews import PreviewRelay
from bot.jobs.results import AmendmentAnswers, ClaimReports, ResultConsumer
from bot.jobs.steering import AmendmentSender
from bot.pictures.picture_store import PictureStore
from bot.pictures.uploads.upload_decoder import UploadDecoder
from bot.store import Store
from engine.bus import Bus
from engine.contract import Presence
from engine.prompt.style_guide import StyleGuide


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
