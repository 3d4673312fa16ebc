"""Wires the application: builds store, queue, services and metrics, and runs their tasks until it closes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import aiohttp

from bot.app.leader_election import Leader
from bot.app.metrics import Metrics
from bot.app.metrics_page import MetricsPage
from bot.app.model_choices import read_model_choices
from bot.app.queue_wiring import Core, Queue, wire_queue
from bot.app.service_wiring import wire_services
from bot.app.settings import Settings
from bot.domain.errors import UserError
from bot.domain.events import Feed
from bot.domain.feature import load_parts, merge_rows
from bot.images.picture_store import PictureStore
from bot.images.uploads.image_links import FetchFile, fetch_file
from bot.images.uploads.upload_decoder import WORKER_TIMEOUT, UploadDecoder
from bot.jobs.retention import OrphanFiles, Retention, RetentionLimits
from bot.services import Services
from bot.store import Store
from engine.bus import Bus
from engine.contract import JobRejected
from engine.process.model_settings import EMBEDDED_MODEL, read_style_guide
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
            "data-deletion": self.services.data_deletion.run(),
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
        tasks = {name: run for feature in running for name, run in feature.tasks.items()}
        yield replace(app, services=replace(app.services, added=added), feature_tasks=tasks)


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
