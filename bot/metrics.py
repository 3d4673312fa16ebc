"""Prometheus counters of events: ends of jobs, refunds, requeues, steps, requests to Discord.

Each method is called right after its event and changes numbers in memory; gauges are read at scrape time
(`bot.scrape`). Labels come from short fixed lists and from model names; never from members, servers or prompts. Each
instance has its own registry, so two in one process count apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram

from bot.states import ENDS
from bot.store import Moved, Record
from bot.store.moves import POISON

MODELS = 100  # that get their own label; a further one is "other"
OTHER = "other"
CAUSES = ("lost", "untaken", "failed", "incomplete", "asked", "regained")
WAITS = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400)  # seconds
STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """`clock`: seconds since 1970. `docs/operations.md` lists the names; a test compares them."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.registry = registry = CollectorRegistry()
        self._since = clock()
        self._models: set[str] = set()
        self._job = Histogram(
            "darkroom_job_seconds", "From admission to the end.", ["outcome"], buckets=WAITS, registry=registry
        )
        self._preview = Histogram(
            "darkroom_first_preview_seconds", "From admission to the first preview.", buckets=WAITS, registry=registry
        )
        told = "A job's time with its worker, divided by its steps."
        self._step = Histogram("darkroom_step_seconds", told, ["model"], buckets=STEPS, registry=registry)
        self._failures = self._counter("darkroom_job_failures", "Jobs that failed, by whose fault.", "blame")
        self._refunds = self._counter("darkroom_refunds", "Jobs that were refunded, in part or in full.", "outcome")
        self._refunded = self._counter("darkroom_refunded_device_seconds", "Device-seconds refunded.", "outcome")
        self._requeues = self._counter("darkroom_requeues", "Jobs that were started again, by cause.", "cause")
        self._poisoned = self._counter("darkroom_poisoned_jobs", "Jobs given up after attempts without progress.")
        self._edits = self._counter("darkroom_discord_edits", "Requests to Discord.", "kind", "outcome")
        for outcome in ENDS:  # from the start: a rate needs a zero before the first event
            self._job.labels(outcome)
        for cause in CAUSES:
            self._requeues.labels(cause)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, labels, registry=self.registry)

    def ended(self, moved: Moved) -> None:
        """Count a job that ended and whose end is stored."""
        one = moved.record
        self._job.labels(one.state).observe(max(0.0, (one.ended or one.created) - one.created))
        if one.state == "failed":
            self._failures.labels(one.blame or "us").inc()
            self._poisoned.inc(int(one.blame == "worker" and one.barren >= POISON))
        if one.state == "finished" and one.model and one.ms_per_step:
            self._step.labels(self._model(one.model)).observe(one.ms_per_step / 1000.0)
        self._refund(one)

    def _refund(self, one: Record) -> None:
        """Count the part of its cost that a job without pictures was not charged. A relaxed job has none."""
        given = 0.0 if one.state == "finished" or one.tier == "relaxed" else one.cost - one.charged
        if given > 0.0:
            self._refunds.labels(one.state).inc()
            self._refunded.labels(one.state).inc(given)

    def _model(self, name: str) -> str:
        if len(self._models) < MODELS:
            self._models.add(name)
        return name if name in self._models else OTHER

    def returned(self, cause: str) -> None:
        """Count a job that went back into the queue."""
        self._requeues.labels(cause).inc()

    def regained(self) -> None:
        """Count a running job that was claimed anew: its worker lost it, or handed it back in order."""
        self._requeues.labels("regained").inc()

    def previewed(self, record: Record, now: float) -> None:
        """Observe the time to a job's first preview. Skips jobs older than this process: their first preview may be
        long past.
        """
        if record.attempt == 1 and record.created >= self._since:
            self._preview.observe(max(0.0, now - record.created))

    def edited(self, kind: str, outcome: str) -> None:
        """Count a request to Discord about a message: a place in the queue, a preview or a final."""
        self._edits.labels(kind, outcome).inc()
