"""Prometheus counters of events: ends of jobs, refunds, requeues, steps, requests to Discord.

Each method is called right after its event and changes numbers in memory; gauges are read at scrape time
(`bot.app.metrics`). Labels come from short fixed lists and from model names; never from members, servers or
prompts. Each instance has its own registry, so two in one process count apart.

The metrics page: the counters of `bot.app.metrics`, and gauges of the queue and the workers read at scrape time.

Each scrape reads the store and the live workers once. If the database is unreachable, the page still renders and says
so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bot.domain.job_states import END_STATES
from bot.jobs.model_catalog import PoolSummary, group_by_pool
from bot.store import DatabaseUnavailable, JobRecord, Store, Transition
from bot.store.jobs import queries
from bot.store.jobs.queries import JobGroup
from bot.store.transitions.job_transitions import POISON_ATTEMPTS
from engine.bus import Bus

MAX_MODELS = 100  # models with their own label; any further one is "other"
OTHER_MODEL = "other"
REQUEUE_CAUSES = ("lost", "unclaimed", "failed", "incomplete", "operator", "reclaimed")
WAIT_BUCKETS = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400)  # seconds
STEP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """`clock`: seconds since 1970. `docs/operations.md` lists the names; a test compares them."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.registry = registry = CollectorRegistry()
        self._started_at = clock()
        self._labelled_models: set[str] = set()
        self._job_seconds = Histogram(
            "darkroom_job_seconds", "From admission to the end.", ["outcome"], buckets=WAIT_BUCKETS, registry=registry
        )
        self._preview_seconds = Histogram(
            "darkroom_first_preview_seconds",
            "From admission to the first preview.",
            buckets=WAIT_BUCKETS,
            registry=registry,
        )
        step_help = "A job's time with its worker, divided by its steps."
        self._step_seconds = Histogram(
            "darkroom_step_seconds", step_help, ["model"], buckets=STEP_BUCKETS, registry=registry
        )
        self._failures = self._add_counter("darkroom_job_failures", "Jobs that failed, by whose fault.", "blame")
        self._refunds = self._add_counter("darkroom_refunds", "Jobs that were refunded, in part or in full.", "outcome")
        self._refunded_seconds = self._add_counter(
            "darkroom_refunded_device_seconds", "Device-seconds refunded.", "outcome"
        )
        self._requeues = self._add_counter("darkroom_requeues", "Jobs that were started again, by cause.", "cause")
        self._poisoned_jobs = self._add_counter(
            "darkroom_poisoned_jobs", "Jobs given up after attempts without progress."
        )
        self._discord_requests = self._add_counter(
            "darkroom_discord_requests", "Requests to Discord.", "kind", "outcome"
        )
        for outcome in END_STATES:  # from the start: a rate needs a zero before the first event
            self._job_seconds.labels(outcome)
        for cause in REQUEUE_CAUSES:
            self._requeues.labels(cause)

    def _add_counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, registry=self.registry)

    def count_end(self, transition: Transition) -> None:
        """Count a job that ended and whose end is stored."""
        record = transition.record
        self._job_seconds.labels(record.state).observe(max(0.0, (record.ended or record.created) - record.created))
        if record.state == "failed":
            self._failures.labels(record.blame or "us").inc()
            self._poisoned_jobs.inc(
                int(record.blame == "worker" and record.attempts_without_progress >= POISON_ATTEMPTS)
            )
        if record.state == "finished" and record.model and record.ms_per_step:
            self._step_seconds.labels(self._model_label(record.model)).observe(record.ms_per_step / 1000.0)
        self._count_refund(record)

    def _count_refund(self, record: JobRecord) -> None:
        """Count the part of its reserved cost that a job without pictures got back. A relaxed job has none."""
        refund = 0.0 if record.state == "finished" or record.tier == "relaxed" else record.cost - record.charged
        if refund > 0.0:
            self._refunds.labels(record.state).inc()
            self._refunded_seconds.labels(record.state).inc(refund)

    def _model_label(self, name: str) -> str:
        if len(self._labelled_models) < MAX_MODELS:
            self._labelled_models.add(name)
        return name if name in self._labelled_models else OTHER_MODEL

    def count_requeue(self, cause: str) -> None:
        """Count a job that went back into the queue."""
        self._requeues.labels(cause).inc()

    def count_reclaim(self) -> None:
        """Count a running job that was claimed anew: its worker lost it, or handed it back in order."""
        self._requeues.labels("reclaimed").inc()

    def observe_first_preview(self, record: JobRecord, now: float) -> None:
        """Observe the time to a job's first preview. An older job than this process may have had it long ago."""
        if record.attempt == 1 and record.created >= self._started_at:
            self._preview_seconds.observe(max(0.0, now - record.created))

    def count_discord_request(self, kind: str, outcome: str) -> None:
        """Count a request to Discord about a message: a place in the queue, a preview or a final."""
        self._discord_requests.labels(kind, outcome).inc()


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
