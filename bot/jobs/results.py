"""Consumes workers' results: stores each, publishes it to the feed, and only then acknowledges it.

Jobs run in parallel, the results of one job in order. Pictures of one job that wait together, and the end that follows
them, are one transaction. A faulty result affects no other: it is retried twice, then becomes a dead letter. During an
outage of database or disk a result is retried without limit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bot.domain.events import Feed, JobProgress, JobSteered
from bot.domain.job_states import is_end
from bot.jobs.active_jobs import ActiveJob, ActiveJobs
from bot.jobs.completion import BrokerBlobs, JobCompletion
from bot.jobs.ingest import IncompleteJob, ResultIngest
from bot.policy.worker_losses import is_on_probation
from bot.store import DatabaseUnavailable, Store
from bot.store.transitions import job_writes
from bot.store.transitions.amendments import answer_amendment
from engine.bus import BrokerUnreachable, Bus, BusMessage, subjects
from engine.contract import (
    JobAmended,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobHandedBack,
    JobStarted,
    ModelProfile,
    PictureReady,
    Recipe,
    Result,
)
from engine.process.log_format import log_context

log = logging.getLogger(__name__)

MAX_TRIES = 3
MAX_CONCURRENT = 16
MAX_FETCHED = 128  # most fetched results: the broker redelivers what is not acknowledged in time
BEHIND_THRESHOLD = 128  # with more results waiting at the broker, we are behind
BEHIND_SECONDS = 10.0  # seconds for which a result's count of waiting ones is valid: another result may never come
RETRY_PAUSE = 0.25  # seconds before a redelivery, times its tries
OUTAGE_PAUSE = 2.0


@dataclass(eq=False)
class ResultConsumer:
    """Run `run` as a task."""

    bus: Bus
    active_jobs: ActiveJobs
    completion: JobCompletion
    ingest: ResultIngest
    claims: ClaimReports
    answers: AmendmentAnswers
    blobs: BrokerBlobs
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._work_slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._fetch_slots = asyncio.Semaphore(MAX_FETCHED)
        self._pending: dict[str, deque[BusMessage[Result]]] = {}  # job → its fetched results, in order
        self._faults: Counter[int] = Counter()  # faults of each result, by stream sequence number
        self._delayed_pictures: dict[str, dict[PictureReady, str]] = {}  # job → those that wait for an outage's end

    async def run(self) -> None:
        """Consume results until cancelled."""
        async with asyncio.TaskGroup() as group:
            async for message in self.bus.consume_results():
                await self._fetch_slots.acquire()
                self.active_jobs.results_behind_until = (
                    self.clock() + BEHIND_SECONDS if message.pending_count > BEHIND_THRESHOLD else 0.0
                )
                job = message.value.job
                if (pending := self._pending.get(job)) is not None:
                    pending.append(message)
                    continue
                self._pending[job] = deque([message])
                group.create_task(self._handle_job(job), name=f"results {job}")

    async def _handle_job(self, job: str) -> None:
        """Handle the fetched results of one job, until none is left."""
        pending = self._pending[job]
        try:
            while pending:
                async with self._work_slots:
                    with log_context(job, getattr(pending[0].value, "worker", "")):
                        await self._handle_next(pending)
        finally:
            del self._pending[job]

    async def _handle_next(self, pending: deque[BusMessage[Result]]) -> None:
        """Handle the first result, or all results at the head of the queue that can be stored together."""
        batch = select_batch(pending, self._is_healthy)
        try:
            if len(batch) == 1 or not await self._store_batch(batch):
                for message in batch:
                    await self.handle_result(message)
        finally:
            for _ in batch:
                pending.popleft()
                self._fetch_slots.release()

    def _is_healthy(self, message: BusMessage[Result]) -> bool:
        """Return whether a result never had a fault, so that it may be stored with others."""
        is_unaffected = message.value.job not in self._delayed_pictures and not self._faults[_sequence_number(message)]
        return is_unaffected and not find_sender_fault(message, self.active_jobs)

    async def _store_batch(self, batch: Sequence[BusMessage[Result]]) -> bool:
        """Store results together, then acknowledge them. False: this failed, and none was acknowledged.

        The caller then handles them one by one, so that a fault affects only its own result.
        """
        pictures = [each_message.value for each_message in batch if isinstance(each_message.value, PictureReady)]
        finished = next((message.value for message in batch if isinstance(message.value, JobFinished)), None)
        try:
            _, transition = await self.ingest.ingest_pictures(pictures, finished)
            if finished is not None and transition is None:
                return False
            await self.completion.announce_and_clear(transition)
            await asyncio.gather(*(one.ack() for one in batch))
        except Exception as error:
            log.info("job %s: %d results are stored one by one: %s", batch[0].value.job, len(batch), error)
            return False
        self.blobs.drop_soon(picture.sha256 for picture in pictures)
        return True

    async def handle_result(self, message: BusMessage[Result]) -> None:
        """Handle one result. Any fault is logged, and the result retried or made a dead letter."""
        result = message.value
        sequence = _sequence_number(message)
        try:
            if fault := find_sender_fault(message, self.active_jobs):
                await message.dead_letter(fault)
                return
            try:
                await self.apply_result(result, is_last_try=self._faults[sequence] >= MAX_TRIES - 1)
            except (BrokerUnreachable, DatabaseUnavailable, OSError) as error:
                log.warning("job %s: %s is retried after the outage: %s", result.job, _result_name(message), error)
                self._note_delay(result, error)
                await message.nak(OUTAGE_PAUSE)
            except Exception as error:
                await self._count_fault(message, error)
            else:
                self._clear_faults(result, sequence)
                await message.ack()
                if isinstance(result, PictureReady):
                    self.blobs.drop_soon([result.sha256])
        except BrokerUnreachable as error:
            log.warning("job %s: %s will be redelivered: %s", result.job, _result_name(message), error)

    def _note_delay(self, result: Result, error: OSError) -> None:
        if isinstance(result, PictureReady):
            self._delayed_pictures.setdefault(result.job, {})[result] = str(error)

    def _clear_faults(self, result: Result, sequence: int) -> None:
        self._faults.pop(sequence, None)
        if isinstance(result, PictureReady):
            delayed = self._delayed_pictures.get(result.job, {})
            delayed.pop(result, None)
            if not delayed:
                self._delayed_pictures.pop(result.job, None)

    async def _count_fault(self, message: BusMessage[Result], error: Exception) -> None:
        """Count a fault here: the broker's count of deliveries includes those that failed in an outage."""
        sequence = _sequence_number(message)
        self._faults[sequence] += 1
        tries = self._faults[sequence]
        log.error("job %s: %s, try %d", message.value.job, _result_name(message), tries, exc_info=error)
        if tries < MAX_TRIES:
            await message.nak(RETRY_PAUSE * tries)
        else:
            await message.dead_letter(f"{type(error).__name__}: {error}")
            self._clear_faults(message.value, sequence)

    async def apply_result(self, result: Result, *, is_last_try: bool = False) -> None:
        """Apply a result. Duplicate, late and stale ones change nothing. `is_last_try`: it will not be redelivered."""
        match result:
            case JobStarted():
                await self.claims.apply_start(result)
            case PictureReady():
                await self.ingest.ingest_pictures([result])
            case JobFinished():
                await self._apply_finished(result, is_last_try)
            case JobFailed():
                await self._apply_failed(result)
            case JobAmended():
                await self.answers.record_answer(result)
            case JobHandedBack():
                await self.claims.apply_hand_back(result)
            case JobCancelled():
                await self.completion.cancel(
                    result.job, result.cost, epoch=result.epoch, audit_note=f"after {result.steps} steps"
                )

    async def _apply_finished(self, result: JobFinished, is_last_try: bool) -> None:
        _, transition = await self.ingest.ingest_pictures([], result)
        if await self.completion.announce_and_clear(transition) is None:
            await self._handle_incomplete(result, is_last_try)

    async def _handle_incomplete(self, result: JobFinished, is_last_try: bool) -> None:
        """Handle a job reported as done that is over, deleted, of a newer epoch, or lacks changes or pictures."""
        if (unfinished := await self.ingest.find_unfinished(result)) is None:
            return
        record, missing = unfinished
        if record.deleted is not None:  # deleted while it ran: its pictures were not stored
            await self.completion.cancel(result.job, result.cost, epoch=result.epoch, audit_note="deleted")
            return
        if delayed := self._delayed_pictures.get(result.job):
            raise OSError(next(iter(delayed.values())))  # not lost: they are stored after the outage
        elif is_last_try:
            reason = f"A worker reported it done without {', '.join(missing)}."
            await self.completion.requeue(
                result.job, step=record.step, audit_note=reason, reason=reason, epoch=result.epoch, cause="incomplete"
            )
        else:
            raise IncompleteJob(f"{', '.join(missing)} of job {result.job}: not here yet")

    async def _apply_failed(self, result: JobFailed) -> None:
        if result.retry:
            active_job = self.active_jobs.by_id.get(result.job)
            step = active_job.step if active_job else 0
            await self.completion.requeue(
                result.job, step=step, audit_note=result.reason, reason=result.reason, epoch=result.epoch
            )
        else:
            await self.completion.fail(result.job, result.reason, result.blame, epoch=result.epoch)


def _sequence_number(message: BusMessage[Result]) -> int:
    return message.nats_msg.metadata.sequence.stream


def _result_name(message: BusMessage[Result]) -> str:
    return str(message.value.__struct_config__.tag)


def find_sender_fault(message: BusMessage[Result], active_jobs: ActiveJobs) -> str:
    """Return why the sender may not report on this job; empty if it may.

    The broker makes a worker with its own key send under its own name, which the subject contains. For a known epoch,
    only the worker that started it may report. A newer epoch belongs to a worker that took over.
    """
    result = message.value
    worker, job = subjects.parse_result_subject(message.nats_msg.subject)
    active_job = active_jobs.by_id.get(result.job)
    claimed_record = active_job.record if active_job is not None and active_job.record.epoch == result.epoch else None
    if job != result.job:
        return f"it is about job {result.job}, but its subject says {job}"
    if isinstance(result, JobStarted) and result.worker != worker:
        return f"{worker} reports a start of {result.worker}"
    if claimed_record is not None and claimed_record.worker not in ("", worker):
        return f"{worker} reports on a job of {claimed_record.worker}"
    return ""


MAX_BYTES = 8 * 1024 * 1024  # most bytes of pictures in memory at once


def select_batch(
    pending: Sequence[BusMessage[Result]],
    is_healthy: Callable[[BusMessage[Result]], bool],
    byte_budget: int = MAX_BYTES,
) -> list[BusMessage[Result]]:
    """Return the longest usable head of the queue; only the first result if it is of another kind, or had a fault.

    A result that had a fault is stored alone, so that the fault affects no other.
    """
    batch: list[BusMessage[Result]] = []
    slots: set[tuple[str, int]] = set()
    for message in pending:
        value = message.value
        if (
            not isinstance(value, PictureReady | JobFinished)
            or not is_healthy(message)
            or value.epoch != pending[0].value.epoch
        ):
            break
        if isinstance(value, JobFinished):
            batch.append(message)
            break
        byte_budget -= value.bytes
        if (batch and byte_budget < 0) or (value.kind, value.image) in slots:
            break
        slots.add((value.kind, value.image))
        batch.append(message)
    return batch or [pending[0]]


@dataclass(eq=False)
class ClaimReports:
    """Records which worker runs a job. Calls `on_start` at each claim, `on_reclaim` if it ran already."""

    store: Store
    bus: Bus
    active_jobs: ActiveJobs
    feed: Feed
    completion: JobCompletion
    on_reclaim: Callable[[], None] = lambda: None
    on_start: Callable[[str], None] = lambda _job: None
    clock: Callable[[], float] = time.time

    async def apply_start(self, result: JobStarted) -> None:
        """Record a worker's claim, or stop a worker whose claim does not count."""
        active_job = self.active_jobs.by_id.get(result.job)
        snapshots_lost = active_job is not None and await self._are_snapshots_lost(active_job, result.epoch)
        preview_step = active_job.step if active_job and not snapshots_lost else 0
        is_shown = active_job is not None and active_job.preview_epoch == result.epoch
        shown_step = active_job.preview_step if active_job and is_shown else 0
        now = self.clock()
        transition = await self.store.start_job(
            result.job,
            result.epoch,
            result.worker,
            result.step,
            now,
            preview_step=preview_step,
            snapshots_lost=snapshots_lost,
            is_suspect=not snapshots_lost and self._record_loss(active_job, result.epoch, now),
        )
        if transition is None:
            await self._stop_stray(result)
        elif is_end(transition.record.state):
            self.completion.announce_end(transition)
            await self.completion.clear_broker(transition.record, tombstone=True)
        else:
            if transition.old_state == "running" and active_job is not None and active_job.record.epoch != result.epoch:
                self.on_reclaim()
            if is_on_probation(transition.record.attempts_without_progress):
                await self.completion.clear_attempt(transition.record)
            if snapshots_lost:
                self.active_jobs.reset_steps(result.job)
            active_job = self.active_jobs.put(transition.record, now)
            step = max(active_job.step, shown_step)  # a preview may overtake the report, and no step goes back
            self.feed.publish(JobProgress(result.job, step, transition.record.steps, active_job.remaining_cost))
            if transition.record.cancelling:
                await self.bus.cancel(result.job)
            self.on_start(result.job)
            if self.feed.is_watched(result.job):
                await self.bus.request_previews(result.job)

    def _record_loss(self, active_job: ActiveJob | None, epoch: int, now: float) -> bool:
        """Record the loss that a newer claim of a running job shows. Return whether the job is poison by its losses."""
        if active_job is None or not active_job.is_claimed or not active_job.record.worker:
            return False
        return active_job.record.epoch < epoch and self.active_jobs.record_loss(active_job, now)

    async def apply_hand_back(self, result: JobHandedBack) -> None:
        """Record that a worker gave its claim back."""
        is_first_report = await self.store.write(job_writes.record_hand_back, result.job, result.epoch)
        active_job = self.active_jobs.by_id.get(result.job)
        if is_first_report and active_job is not None and active_job.record.epoch == result.epoch:
            idle_attempts = active_job.record.attempts_without_progress - 1
            active_job.record = replace(active_job.record, worker="", attempts_without_progress=idle_attempts)

    async def _are_snapshots_lost(self, active_job: ActiveJob, epoch: int) -> bool:
        """Return True if the broker lost its store, and the job's snapshots, between the known claim and this one.

        Raises `BrokerUnreachable`.
        """
        return 0 < active_job.record.epoch < epoch and active_job.record.epoch < await self.bus.read_first_epoch()

    async def _stop_stray(self, result: JobStarted) -> None:
        """Stop a worker that started an ended job because the broker delivered it twice. Ignore a stale epoch."""
        record = await self.store.get_job(result.job)
        if record is not None and is_end(record.state):
            log.warning("job %s: %s began it though it is %s", result.job, result.worker, record.state)
            await self.completion.clear_broker(record, tombstone=True)


class AmendmentAnswers:
    """`find_profile`: of a recipe's model, which says what a change costs; None if it is unknown."""

    def __init__(
        self, store: Store, active_jobs: ActiveJobs, feed: Feed, find_profile: Callable[[Recipe], ModelProfile | None]
    ) -> None:
        self._store = store
        self._active_jobs = active_jobs
        self._feed = feed
        self._find_profile = find_profile

    async def record_answer(self, answer: JobAmended) -> None:
        """Record an answer. A repeated or stale one changes nothing.

        Raises ValueError for a change that contradicts an earlier one: an earlier answer may come after it.
        """
        active_job = self._active_jobs.by_id.get(answer.job)
        recipe = active_job.record.task if active_job is not None else None
        model = self._find_profile(recipe) if isinstance(recipe, Recipe) else None
        answered = await self._store.write(answer_amendment, answer, model)
        if answered is None:
            return
        self._store.version += 1  # its rows may be others now
        record = answered.job_record
        amendment = answered.amendment
        self._active_jobs.follow_record(record)
        if isinstance(record.task, Recipe):
            self._feed.publish(JobSteered(record.id, amendment.to_view(record.steps), record.task))
        outcome = f"made at step {amendment.step}" if amendment.state == "made" else f"refused: {amendment.reason}"
        log.info("job %s: change %d %s", record.id, amendment.number, outcome)
