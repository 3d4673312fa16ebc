"""Prometheus counters of events: ends of jobs, refunds, requeues, steps, requests to Discord.

Each method is called right after its event and changes numbers in memory; gauges are read at scrape time
(`bot.app.metrics_page`). Labels come from short fixed lists and from model names; never from members, servers or
prompts. Each instance has its own registry, so two in one process count apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram

from bot.domain.job_states import END_STATES
from bot.store import JobRecord, Transition
from bot.store.transitions.job_transitions import POISON_ATTEMPTS

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
        """Observe the time to a job's first preview. Skips jobs older than this process: their first preview may be
        long past.
        """
        if record.attempt == 1 and record.created >= self._started_at:
            self._preview_seconds.observe(max(0.0, now - record.created))

    def count_discord_request(self, kind: str, outcome: str) -> None:
        """Count a request to Discord about a message: a place in the queue, a preview or a final."""
        self._discord_requests.labels(kind, outcome).inc()
