"""The metrics page: the counters of `bot.app.metrics`, and gauges of the queue and the workers read at scrape time.

Each scrape reads the store and the live workers once. If the database is unreachable, the page still renders and says
so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bot.app.metrics import Metrics
from bot.jobs.model_catalog import PoolSummary, group_by_pool
from bot.store import DatabaseUnavailable, Store
from bot.store.jobs import queries
from bot.store.jobs.queries import JobGroup
from engine.bus import Bus

TIERS = ("standard", "relaxed")  # always listed, empty or not
ACTIVE_STATES = ("sent", "running")

Encode = Callable[[CollectorRegistry], bytes]


@dataclass(frozen=True)
class QueueSnapshot:
    """The state at one scrape. `groups` is None while the database is unreachable."""

    now: float
    groups: Sequence[JobGroup] | None
    pools: Mapping[str, PoolSummary]
    broker_up: bool
    dead_letters: Mapping[str, int]


class MetricsPage:
    def __init__(self, metrics: Metrics, store: Store, bus: Bus, *, clock: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._store = store
        self._bus = bus
        self._clock = clock

    async def render(self, encode: Encode) -> bytes:
        """Return the whole page in the format that `encode` writes."""
        registry = _CombinedRegistry(self._metrics.registry, _SnapshotCollector(await self._read_snapshot()))
        return await asyncio.to_thread(encode, registry)

    def refused_messages(self) -> list[dict[str, object]]:
        """Return the messages that this process refused within the last minute: from whom, why and how often."""
        return [
            {"sender": sender.subject, "reason": sender.reason, "count": sender.count}
            for sender in self._bus.rejections.list_recent()
        ]

    async def _read_snapshot(self) -> QueueSnapshot:
        try:
            groups = await self._store.query(queries.count_open_jobs)
        except DatabaseUnavailable:
            groups = None
        return QueueSnapshot(
            self._clock(),
            groups,
            group_by_pool(self._bus.workers),
            self._bus.is_connected,
            dict(self._bus.dead_letters.count),
        )


class _SnapshotCollector(Collector):
    """Gauges of one scrape."""

    def __init__(self, snapshot: QueueSnapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        snapshot = self._snapshot
        yield GaugeMetricFamily(
            "darkroom_store_up", "Whether the database answers.", float(snapshot.groups is not None)
        )
        yield GaugeMetricFamily("darkroom_broker_up", "Whether the broker is connected.", float(snapshot.broker_up))
        dead_letters = CounterMetricFamily(
            "darkroom_dead_letters", "Messages that became dead letters.", labels=["subject"]
        )
        for subject, count in sorted(snapshot.dead_letters.items()):
            dead_letters.add_metric([subject], count)
        yield dead_letters
        yield from _worker_metrics(snapshot.pools)
        if snapshot.groups is not None:
            yield from _queue_metrics([group for group in snapshot.groups if group.state == "queued"], snapshot.now)
            yield from _active_metrics(
                [group for group in snapshot.groups if group.state in ACTIVE_STATES], sorted(snapshot.pools)
            )


class _CombinedRegistry(CollectorRegistry):
    """The counters' registry combined with one scrape's gauges; for one page."""

    def __init__(self, counters: CollectorRegistry, gauges: Collector) -> None:
        super().__init__(auto_describe=False)
        self._counters = counters
        self.register(gauges)

    def collect(self) -> Iterable[Metric]:
        for metric in self._counters.collect():  # without creation times, which nobody needs
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
        yield from super().collect()


def _queue_metrics(groups: Sequence[JobGroup], now: float) -> Iterable[Metric]:
    """Return gauges of waiting jobs by tier, over all pools."""
    length = GaugeMetricFamily("darkroom_queue_jobs", "Waiting jobs.", labels=["tier"])
    age = GaugeMetricFamily("darkroom_queue_oldest_seconds", "How long the oldest job has waited.", labels=["tier"])
    for tier in sorted({*TIERS, *(group.tier for group in groups)}):
        of_tier = [group for group in groups if group.tier == tier]
        length.add_metric([tier], sum(group.jobs for group in of_tier))
        age.add_metric([tier], max((max(0.0, now - group.oldest_created) for group in of_tier), default=0.0))
    return length, age


def _active_metrics(groups: Sequence[JobGroup], pools: Sequence[str]) -> Iterable[Metric]:
    """Return gauges of jobs that the broker or a worker has, by pool."""
    count = GaugeMetricFamily("darkroom_active_jobs", "Jobs that were sent or run.", labels=["pool", "state"])
    rows = GaugeMetricFamily("darkroom_active_rows", "Batch rows of sent and running jobs.", labels=["pool", "state"])
    for pool in sorted({*pools, *(group.pool for group in groups)}):
        for state in ACTIVE_STATES:
            matching_groups = [group for group in groups if (group.pool, group.state) == (pool, state)]
            count.add_metric([pool, state], sum(group.jobs for group in matching_groups))
            rows.add_metric([pool, state], sum(group.rows for group in matching_groups))
    return count, rows


def _worker_metrics(pools: Mapping[str, PoolSummary]) -> Iterable[Metric]:
    """Return gauges of the live workers by pool, from their presences."""
    workers = GaugeMetricFamily("darkroom_workers", "Live workers.", labels=["pool"])
    rows = GaugeMetricFamily("darkroom_worker_rows", "Rows that live workers take at once.", labels=["pool"])
    free_rows = GaugeMetricFamily("darkroom_worker_rows_free", "Free rows of live workers.", labels=["pool"])
    fill_ratio = GaugeMetricFamily("darkroom_batch_fill_ratio", "Share of the workers' rows in use.", labels=["pool"])
    for pool, summary in sorted(pools.items()):
        workers.add_metric([pool], summary.worker_count)
        rows.add_metric([pool], summary.rows)
        free_rows.add_metric([pool], summary.free_rows)
        fill_ratio.add_metric([pool], 1.0 - summary.free_rows / summary.rows if summary.rows else 0.0)
    return workers, rows, free_rows, fill_ratio
