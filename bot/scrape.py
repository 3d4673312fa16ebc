"""The metrics page: the counters of `bot.metrics`, and gauges of the queue and the workers read at scrape time.

Each scrape reads the store and the live workers once. If the database is unreachable the page still comes, and says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bot.metrics import Metrics
from bot.models import Crew, crews
from bot.store import Store, Unavailable, present
from bot.store.present import Group
from engine.bus import Bus

TIERS = ("standard", "relaxed")  # always listed, empty or not
SENT = ("sent", "running")

Encode = Callable[[CollectorRegistry], bytes]


@dataclass(frozen=True)
class Moment:
    """The state at one scrape. `groups` is None while the database is unreachable."""

    now: float
    groups: Sequence[Group] | None
    crews: Mapping[str, Crew]
    broker: bool
    dead: Mapping[str, int]


class Scrape:
    def __init__(self, metrics: Metrics, store: Store, bus: Bus, *, clock: Callable[[], float] = time.time) -> None:
        self._metrics, self._store, self._bus, self._clock = metrics, store, bus, clock

    async def page(self, encode: Encode) -> bytes:
        """Return the whole page in the format that `encode` writes."""
        both = _Both(self._metrics.registry, _Present(await self._moment()))
        return await asyncio.to_thread(encode, both)

    def refused(self) -> list[dict[str, object]]:
        """Return the messages that this process refused within the last minute: from whom, why and how often."""
        return [{"who": one.who, "why": one.why, "count": one.count} for one in self._bus.refused.recent()]

    async def _moment(self) -> Moment:
        try:
            groups = await self._store.ask(present.groups)
        except Unavailable:
            groups = None
        return Moment(
            self._clock(), groups, crews(self._bus.workers), self._bus.connected, dict(self._bus.dead.count)
        )  # fmt: skip


class _Present(Collector):
    """Gauges of one scrape."""

    def __init__(self, moment: Moment) -> None:
        self._moment = moment

    def collect(self) -> Iterable[Metric]:
        one = self._moment
        yield GaugeMetricFamily("darkroom_store_up", "Whether the database answers.", float(one.groups is not None))
        yield GaugeMetricFamily("darkroom_broker_up", "Whether the broker is connected.", float(one.broker))
        letters = CounterMetricFamily("darkroom_dead_letters", "Messages that became dead letters.", labels=["subject"])
        for subject, count in sorted(one.dead.items()):
            letters.add_metric([subject], count)
        yield letters
        yield from _work(one.crews)
        if one.groups is not None:
            yield from _queue([each for each in one.groups if each.state == "queued"], one.now)
            yield from _active([each for each in one.groups if each.state in SENT], sorted(one.crews))


class _Both(CollectorRegistry):
    """The counters' registry combined with one scrape's gauges; for one page."""

    def __init__(self, events: CollectorRegistry, moment: Collector) -> None:
        super().__init__(auto_describe=False)
        self._events = events
        self.register(moment)

    def collect(self) -> Iterable[Metric]:
        for one in self._events.collect():  # each is new, and the time of its first event is of no use
            one.samples = [sample for sample in one.samples if not sample.name.endswith("_created")]
            yield one
        yield from super().collect()


def _queue(groups: Sequence[Group], now: float) -> Iterable[Metric]:
    """Return gauges of waiting jobs by tier, over all pools."""
    length = GaugeMetricFamily("darkroom_queue_jobs", "Waiting jobs.", labels=["tier"])
    age = GaugeMetricFamily("darkroom_queue_oldest_seconds", "How long the oldest job has waited.", labels=["tier"])
    for tier in sorted({*TIERS, *(one.tier for one in groups)}):
        mine = [one for one in groups if one.tier == tier]
        length.add_metric([tier], sum(one.jobs for one in mine))
        age.add_metric([tier], max((max(0.0, now - one.oldest) for one in mine), default=0.0))
    return length, age


def _active(groups: Sequence[Group], pools: Sequence[str]) -> Iterable[Metric]:
    """Return gauges of jobs that the broker or a worker has, by pool."""
    count = GaugeMetricFamily("darkroom_active_jobs", "Jobs that were sent or run.", labels=["pool", "state"])
    rows = GaugeMetricFamily("darkroom_active_rows", "Batch rows of sent and running jobs.", labels=["pool", "state"])
    for pool in sorted({*pools, *(one.pool for one in groups)}):
        for state in SENT:
            mine = [one for one in groups if (one.pool, one.state) == (pool, state)]
            count.add_metric([pool, state], sum(one.jobs for one in mine))
            rows.add_metric([pool, state], sum(one.rows for one in mine))
    return count, rows


def _work(found: Mapping[str, Crew]) -> Iterable[Metric]:
    """Return gauges of the live workers by pool, from their presences."""
    workers = GaugeMetricFamily("darkroom_workers", "Live workers.", labels=["pool"])
    rows = GaugeMetricFamily("darkroom_worker_rows", "Rows that live workers take at once.", labels=["pool"])
    free = GaugeMetricFamily("darkroom_worker_rows_free", "Free rows of live workers.", labels=["pool"])
    fill = GaugeMetricFamily("darkroom_batch_fill_ratio", "Share of the workers' rows in use.", labels=["pool"])
    for pool, crew in sorted(found.items()):
        workers.add_metric([pool], crew.workers)
        rows.add_metric([pool], crew.rows)
        free.add_metric([pool], crew.free)
        fill.add_metric([pool], 1.0 - crew.free / crew.rows if crew.rows else 0.0)
    return workers, rows, free, fill
