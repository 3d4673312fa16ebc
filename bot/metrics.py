"""What happens in the house, counted for Prometheus: ends of jobs, refunds, returns to the queue, steps, edits.

Each method is called where a thing has just happened, and adds to numbers in memory; what waits and runs is read when
somebody asks (`bot.scrape`). Labels come from short lists of ours, and from the names of models; never from members,
servers or prompts. The registry is its own: two houses in one process count apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram

from bot.states import ENDS
from bot.store import Moved, Record
from bot.store.moves import POISON

MODELS = 100  # of which steps are told apart; a further one is "other"
OTHER = "other"
CAUSES = ("lost", "untaken", "failed", "incomplete", "asked", "regained")
WAITS = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400)  # seconds
STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """`clock` in seconds since 1970. The names are listed in `docs/operations.md`, which a test holds to them."""

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
        told = "A job's time with its worker, by its steps."
        self._step = Histogram("darkroom_step_seconds", told, ["model"], buckets=STEPS, registry=registry)
        self._failures = self._counter("darkroom_job_failures", "Jobs that failed, by whose fault.", "blame")
        self._refunds = self._counter("darkroom_refunds", "Jobs of which something was given back.", "outcome")
        self._refunded = self._counter("darkroom_refunded_device_seconds", "What was given back.", "outcome")
        self._requeues = self._counter("darkroom_requeues", "Jobs that had to be begun again, by cause.", "cause")
        self._poisoned = self._counter("darkroom_poisoned_jobs", "Jobs given up after attempts without progress.")
        self._edits = self._counter("darkroom_discord_edits", "Requests to Discord.", "kind", "outcome")
        for outcome in ENDS:  # all of them from the start: a rate needs a zero before the first one
            self._job.labels(outcome)
        for cause in CAUSES:
            self._requeues.labels(cause)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, labels, registry=self.registry)

    def ended(self, moved: Moved) -> None:
        """A job is over, and SQL has it."""
        one = moved.record
        self._job.labels(one.state).observe(max(0.0, (one.ended or one.created) - one.created))
        if one.state == "failed":
            self._failures.labels(one.blame or "us").inc()
            self._poisoned.inc(int(one.blame == "worker" and one.barren >= POISON))
        if one.state == "finished" and one.model and one.ms_per_step:
            self._step.labels(self._model(one.model)).observe(one.ms_per_step / 1000.0)
        self._refund(one)

    def _refund(self, one: Record) -> None:
        """What a job that made no pictures was not charged of its price. A relaxed one has none."""
        given = 0.0 if one.state == "finished" or one.tier == "relaxed" else one.cost - one.charged
        if given > 0.0:
            self._refunds.labels(one.state).inc()
            self._refunded.labels(one.state).inc(given)

    def _model(self, name: str) -> str:
        if len(self._models) < MODELS:
            self._models.add(name)
        return name if name in self._models else OTHER

    def returned(self, cause: str) -> None:
        """A job is in the queue again."""
        self._requeues.labels(cause).inc()

    def regained(self) -> None:
        """A job that ran was claimed anew: its worker lost it, or handed it over in order."""
        self._requeues.labels("regained").inc()

    def previewed(self, record: Record, now: float) -> None:
        """The first preview of a run. Of jobs that are older than we are, nobody knows whether it is the first."""
        if record.attempt == 1 and record.created >= self._since:
            self._preview.observe(max(0.0, now - record.created))

    def edited(self, kind: str, outcome: str) -> None:
        """A request to Discord about a message: a place in the queue, a preview or a final."""
        self._edits.labels(kind, outcome).inc()
