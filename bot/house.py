"""Wires the application: builds the store, the queue, the services and the metrics, and runs their tasks until it
closes.
"""

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

from bot.config import Settings
from bot.desk import Desk
from bot.desk.administration import Administration
from bot.desk.admission import Admission
from bot.desk.decoding import Decoding
from bot.desk.deliveries import Deliveries
from bot.desk.describing import Describing
from bot.desk.export import Export
from bot.desk.forgetting import Forgetting
from bot.desk.moderation import Moderation
from bot.desk.options import Options
from bot.desk.orphans import Orphans
from bot.desk.preferences import Preferences
from bot.desk.register import Register
from bot.desk.retention import Keep, Retention
from bot.desk.review import Review
from bot.desk.screening import Screening
from bot.desk.shelf import Shelf
from bot.desk.shortening import Shortening
from bot.desk.starting import Starting
from bot.desk.studio import Studio
from bot.feed import Feed
from bot.images.gallery import Gallery
from bot.images.intake import Intake
from bot.images.links import Fetch, fetch
from bot.images.pictures import Pictures
from bot.leader import Leader
from bot.metrics import Metrics
from bot.models import Models
from bot.previews import Previews
from bot.queue.arrivals import Arrivals
from bot.queue.board import Board
from bot.queue.cancelling import Cancelling
from bot.queue.closing import Closing
from bot.queue.dispatcher import Dispatcher
from bot.queue.forecast import Forecast
from bot.queue.noticing import Noticing
from bot.queue.patrol import Patrol
from bot.queue.rerouting import Rerouting
from bot.queue.settle import Settle
from bot.queue.shutting import Shutting
from bot.queue.steering import Steering
from bot.scrape import Scrape
from bot.store import Store
from engine.bus import Bus
from engine.job import Presence

STOP_SECONDS = 5.0  # the broker's client needs a moment to hand back messages in flight


@dataclass(frozen=True)
class House:
    """The built application: what front ends use, and the parts that tests inspect."""

    desk: Desk
    feed: Feed
    store: Store
    pictures: Pictures
    board: Board
    dispatcher: Dispatcher
    patrol: Patrol
    rerouting: Rerouting
    shutting: Shutting
    noticing: Noticing
    settle: Settle
    retention: Retention
    orphans: Orphans
    previews: Previews
    bus: Bus
    metrics: Metrics
    scrape: Scrape

    @property
    def studio(self) -> Studio:
        return self.desk.studio

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the tasks that run while the application is open; if one of them raises, the application closes."""
        return {
            "bus": self.bus.hold(),
            "settle": self.settle.run(),
            "dispatcher": self.dispatcher.run(),
            "patrol": self.patrol.run(),
            "rerouting": self.rerouting.run(),
            "shutting": self.shutting.run(),
            "noticing": self.noticing.run(),
            "previews": self.previews.show(),
            "loadings": self.previews.tell(),
            "wants": self.previews.want(),
            "sweep": self.desk.moderation.keep_clean(),
            "retention": self.retention.run(),
            "orphans": self.orphans.run(),
            "forgetting": self.desk.forgetting.run(),
        }


def build(
    settings: Settings, bus: Bus, store: Store, pictures: Pictures, reader: Executor, intake: Intake, outside: Fetch, *,
    clock: Callable[[], float] = time.time,
) -> House:  # fmt: skip
    """Build all parts; starts nothing. `reader`: the word filter's thread. `outside`: fetches uploads from Discord."""
    board, feed, limits = Board(), Feed(), settings.limits

    def workers() -> dict[str, Presence]:
        return bus.workers

    closing, models = Closing(store, bus, board, feed, clock=clock), Models(store, workers, clock)
    forecast = Forecast(store, board, workers, clock=clock, starting=bus.starting, size=bus.progress.size)
    dispatcher = Dispatcher(store, bus, board, feed, forecast, models, pictures, closing, limits=limits, clock=clock)
    closing.freed = dispatcher.poke
    register = Register(store, board, forecast, limits=limits, clock=clock)
    admission = Admission(
        store, register, Screening(store, reader, limits=limits, clock=clock), workers, limits=limits,
        max_age=settings.max_age, woken=dispatcher.poke, clock=clock,
    )  # fmt: skip
    cancelling, steering = Cancelling(store, bus, board, closing, workers), Steering(bus, board, clock=clock)
    gallery = Gallery(store, pictures, Decoding(bus.decode, workers).decode)
    starting, options = Starting(store, pictures, gallery, register, intake, outside), Options(store, models.names)
    studio = Studio(
        store, feed, models, register, gallery, admission, starting, options, cancelling, steering, workers,
        on_its_way=bus.starting, clock=clock,
    )  # fmt: skip
    desk = _desk(
        settings, studio, options, register, gallery, cancelling, store, pictures, feed, bus, clock, starting, models
    )  # fmt: skip
    keep = Keep(settings.keep_seconds, settings.keep_bytes)
    retention = Retention(store, desk.moderation.empty, keep, clock=clock)
    settle = Settle(store, bus, board, feed, closing, Arrivals(store, bus, board, pictures, clock=clock), clock=clock)
    patrol = Patrol(store, bus, board, closing, dispatcher.submit, lease=bus.kept.lease, clock=clock)
    previews, shutting = Previews(bus, board, feed, clock=clock), Shutting(store, cancelling.cancel)
    metrics, noticing = _counted(board, closing, settle, clock), Noticing(store, closing, cancelling.cancel)
    rerouting = Rerouting(store, bus, board, closing, models, workers, clock=clock)
    return House(
        desk, feed, store, pictures, board, dispatcher, patrol, rerouting, shutting, noticing, settle, retention,
        Orphans(store, pictures, clock=clock), previews, bus, metrics, Scrape(metrics, store, bus, clock=clock),
    )  # fmt: skip


def _counted(board: Board, closing: Closing, settle: Settle, clock: Callable[[], float]) -> Metrics:
    """Create the metrics and connect them to the parts that they count."""
    metrics = Metrics(clock)
    board.first, closing.ended, closing.returned = metrics.previewed, metrics.ended, metrics.returned
    settle.regained = metrics.regained
    return metrics


def _desk(
    settings: Settings, studio: Studio, options: Options, register: Register, gallery: Gallery,
    cancelling: Cancelling, store: Store, pictures: Pictures, feed: Feed, bus: Bus, clock: Callable[[], float],
    starting: Starting, models: Models,
) -> Desk:  # fmt: skip
    """Build the services."""
    administration = Administration(store, cancelling.cancel, limits=settings.limits, clock=clock)
    moderation = Moderation(store, pictures, cancelling, feed, administration.terms, clock=clock)
    waits = settings.discord_token is not None
    return Desk(
        studio,
        Deliveries(store, register, clock=clock),
        Preferences(store),
        options,
        administration,
        Review(store, register, gallery, clock=clock),
        Shelf(store, register),
        moderation,
        Forgetting(store, cancelling.cancel, moderation.empty, feed, waits=waits, clock=clock),
        Export(store, pictures, clock=clock),
        Shortening(bus.embed),
        Describing(bus.describe, starting.picture, models, administration.terms),
    )


@asynccontextmanager
async def open_house(
    settings: Settings, bus: Bus, *, leader: Leader | None = None, outside: Fetch | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[House]:  # fmt: skip
    """Open the application and run its tasks beside the body; an error of a task ends the body too.

    `leader`: proves that this bot leads, where others stand by. `outside`: fetches uploads from Discord; None: over
    HTTPS.
    """
    await asyncio.to_thread(settings.data.mkdir, mode=0o700, parents=True, exist_ok=True)
    pictures = await asyncio.to_thread(Pictures, settings.pictures)
    store, reader = await Store.open(settings.database), ThreadPoolExecutor(1, "screening")
    intake, session = Intake(), aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
    try:
        if leader is not None:
            await leader.begin(store)
        outside = outside or partial(fetch, session)
        house = build(settings, bus, store, pictures, reader, intake, outside, clock=clock)
        await house.noticing.prepare()
        await house.dispatcher.prepare()
        async with _at_work(house):
            yield house
    finally:
        if leader is not None:
            leader.end()
        await intake.close()
        await session.close()
        await asyncio.to_thread(reader.shutdown)
        await store.close()


@asynccontextmanager
async def _at_work(house: House) -> AsyncIterator[None]:
    """Run the tasks beside the body. An error of the body is raised as itself, not as a group."""
    raised: Exception | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(task, name=name) for name, task in house.tasks().items()]
        try:
            yield
        except Exception as error:
            raised = error
        finally:
            house.feed.close()
            await _stop(tasks)
    if raised is not None:
        raise raised


async def _stop(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks repeatedly until they end.

    Before Python 3.12 `asyncio.wait_for`, which the broker's client uses, may swallow one cancellation
    (python/cpython#86296); its task would then go on for ever.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=STOP_SECONDS)
