"""Jobs as people see them: views, accepted jobs, why one is missing, where each is delivered, who may use it.

A job is settled once each destination shows its final state, or has a reason why it never will. A front end checks the
job that the member named; if that leads to another job, `check_original` checks the other one: else a public job would
give access to a private one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from bot.domain.dto import (
    AcceptedJob,
    Delivery,
    DeliveryRole,
    Destination,
    DestinationKind,
    JobView,
    Member,
    PictureRef,
)
from bot.domain.errors import UserError
from bot.domain.job_states import ACTIVE_STATES, is_end
from bot.domain.texts import PICTURES_DELETED, format_startup
from bot.jobs.active_jobs import ActiveJobs
from bot.jobs.forecast import Forecast, QueuePlace
from bot.policy.limits import Limits
from bot.policy.permissions import Action, JobRef, forbidden_reason
from bot.store import JobRecord, Store, StoredPicture
from bot.store.deletion import retention
from bot.store.deletion.retention import DeletionReason
from bot.store.jobs import destinations, queries
from engine.contract import Recipe, count_requested_evaluations

MAX_WAITING_SHOWN = 100  # waiting jobs
UNKNOWN_JOB = "There is no such job."
REMOVAL_SENTENCES: Mapping[DeletionReason, str] = MappingProxyType(
    {
        "age": "It is not kept any more: this bot keeps pictures for a limited time.",
        "room": "It is not kept any more: the oldest pictures here make room for new ones.",
        "forgotten": "It is gone for good: its author had everything removed.",
        "enlarged": PICTURES_DELETED,
    }
)


@dataclass(eq=False)
class JobViews:
    """Reads jobs for front ends."""

    store: Store
    active_jobs: ActiveJobs
    forecast: Forecast
    limits: Limits
    clock: Callable[[], float] = time.time

    async def load_record(self, job: str) -> JobRecord:
        """Return a job's row. Raises `UserError` (404 or 410), also if its pictures were deleted."""
        record = await self.store.get_job(job)
        if record is None or record.deleted is not None:
            raise await missing_job_error(self.store, job, is_deleted=record is not None)
        return record

    async def was_shown_to(self, job: str, guild: str, member: str) -> bool:
        """Return whether a job, deleted or not, is one of this guild that this member may see. False: it has no row."""
        record = await self.store.get_job(job)
        return record is not None and record.guild == guild and (not record.private or record.member == member)

    async def is_from_interpolation(self, record: JobRecord) -> bool:
        """Return whether an interpolation gave the recipe its mixed prompt, or an ancestor's with the same prompt."""
        ancestor: JobRecord | None = record
        while ancestor is not None and isinstance(ancestor.task, Recipe):
            if ancestor.task.interpolation is not None:
                return ancestor.task.interpolation.end_prompt is not None or len(ancestor.task.styles) > 1
            parent = await self.store.get_job(ancestor.parent[0]) if ancestor.parent else None
            ancestor = parent if parent is not None and parent.prompt == ancestor.prompt else None
        return False

    async def next_free_at(self, member: str) -> float | None:
        """Return when the first of a member's jobs ends, for the sentence of a refusal; None if unknown.

        That is the end of a running job; if none runs, of the first that waits.
        """
        now = self.clock()
        running = [
            active_job.record for active_job in self.active_jobs.by_id.values() if active_job.record.member == member
        ]
        etas = [self.forecast.estimate_eta(record, None, now) for record in running]
        if not any(end is not None for end in etas):
            first_waiting = {
                record.account: record
                for record in reversed(await self.store.query(queries.list_queued_of_member, member))
            }
            places = [
                (record, await self.forecast.get_place(record, allow_stale=True)) for record in first_waiting.values()
            ]
            etas = [self.forecast.estimate_eta(record, place, now) for record, place in places]
        known_etas = [end for end in etas if end is not None]
        return now + min(known_etas) if known_etas else None

    def any_free_at(self) -> float | None:
        """Return when the first of all running jobs ends, so that another may start; None if unknown."""
        now = self.clock()
        active_jobs = self.active_jobs.by_id.values()
        known_ends = [
            active_job.reported_at + active_job.reported_seconds_left
            for active_job in active_jobs
            if active_job.reported_seconds_left is not None
        ]
        if known_ends:  # each admission calls this: it must be cheap with a thousand active jobs
            return max(now, min(known_ends))
        etas = (self.forecast.estimate_eta(active_job.record, None, now) for active_job in active_jobs)
        return next((now + eta for eta in etas if eta is not None), None)

    def startup_notice(self) -> str:
        """Return a sentence about a worker that starts up, in any pool; empty if none does."""
        return format_startup(self.forecast.get_startup_progress(None))

    async def accepted_job(self, record: JobRecord) -> AcceptedJob:
        """Return what a member sees after a job was accepted."""
        task = record.task
        place = await self.forecast.get_place(record, allow_stale=True)
        recipe = task if isinstance(task, Recipe) else None
        return AcceptedJob(
            job=record.id,
            jobs_ahead=place.jobs_ahead if place else 0,
            eta=self.forecast.estimate_eta(record, place, self.clock()),
            has_worker=self.forecast.has_worker(record.pool, record.model),
            startup_notice=self.forecast.describe_startup(record.pool, record.model),
            notes=record.notes,
            prompt=record.prompt,
            steps=record.steps,
            evaluations=count_requested_evaluations(recipe) if recipe else 0,
            sampler=task.sampler if isinstance(task, Recipe) else task.method,
            seed=recipe.seed if recipe else 0,
            count=record.image_count,
            cost=record.cost,
            is_private=record.private,
        )

    async def build_views(self, records: Sequence[JobRecord]) -> list[JobView]:
        """Return views in the order of the records."""
        stored_files: dict[str, list[StoredPicture]] = {}
        for file in await self.store.query(queries.list_pictures, [record.id for record in records]):
            stored_files.setdefault(file.job, []).append(file)
        interpolated = [
            record for record in records if isinstance(record.task, Recipe) and record.task.interpolation is not None
        ]
        film_enders = await self.store.query(queries.find_last_finished, interpolated) if interpolated else set[str]()
        return [
            self._build_view(
                record, await self.forecast.get_place(record), stored_files.get(record.id, []), record.id in film_enders
            )
            for record in records
        ]

    def _build_view(
        self,
        record: JobRecord,
        place: QueuePlace | None,
        stored_files: Sequence[StoredPicture],
        ends_interpolation: bool,
    ) -> JobView:
        is_over = is_end(record.state)
        return JobView(
            id=record.id,
            state=record.state,
            prompt=record.prompt,
            task=record.task,
            member_id=record.member,
            member_name=record.member_name,
            guild=record.guild,
            created=record.created,
            started=record.started,
            finished=record.ended,
            seconds=record.seconds,
            ms_per_step=record.ms_per_step,
            jobs_ahead=place.jobs_ahead if place else None,
            eta=None if is_over else self.forecast.estimate_eta(record, place, self.clock()),
            reason=record.reason,
            step=self.active_jobs.find_step(record),
            total_steps=record.steps,
            pictures=tuple(_picture_ref(file) for file in stored_files if file.kind == "image"),
            ladder_images=tuple(file.image for file in stored_files if file.kind == "ladder"),
            parent_image=record.parent,
            action=record.action,
            notes=record.notes,
            cost=record.charged,
            is_cancelling=record.cancelling,
            has_worker=is_over or self.forecast.has_worker(record.pool, record.model),
            startup_notice="" if is_over else self.forecast.describe_startup(record.pool, record.model),
            wait_reason=self.forecast.explain_wait(record, place, self._running_limit(record)),
            is_private=record.private,
            needs_check=record.check,
            deleted_at=record.deleted,
            channel=record.channel,
            thread=record.thread,
            ends_interpolation=ends_interpolation,
        )

    def _running_limit(self, record: JobRecord) -> int:
        """Return how many jobs of its member may run at once: by the rules at its admission, else the default."""
        caps = [cap for cap in (record.running_here, record.running_everywhere) if cap is not None]
        return min(caps, default=self.limits.running)

    async def load_view(self, job: str) -> JobView:
        """Return a job's view. Raises `UserError` (404 or 410)."""
        return (await self.build_views([await self.load_record(job)]))[0]

    async def load_queue(self, guild: str | None = None) -> list[JobView]:
        """Return active jobs, oldest first, then at most a hundred waiting jobs.

        These are in fair order, or the oldest first in a queue that is too long to foretell.
        """
        layout = await self.forecast.get_layout()
        if layout.is_complete:
            waiting_ids = list(layout.places)
        else:
            waiting_ids = [
                record.id for record in await self.store.query(queries.list_queued, guild, MAX_WAITING_SHOWN)
            ]
        records = await self.store.query(queries.get_active_and_waiting, waiting_ids)
        return await self.build_views(select_queue(records, waiting_ids, guild))

    async def load_recent(self, guild: str | None = None, limit: int = 50) -> list[JobView]:
        """Return the newest jobs first."""
        return await self.build_views(await self.store.query(queries.list_newest, guild, limit))


def select_queue(records: Mapping[str, JobRecord], waiting_ids: Sequence[str], guild: str | None) -> list[JobRecord]:
    """Return a server's active jobs (None: of all), then at most a hundred of the waiting ones, in their order."""
    visible = {job: one for job, one in records.items() if guild in (None, one.guild) and one.deleted is None}
    active = [record for record in visible.values() if record.state in ACTIVE_STATES]
    waiting = [visible[job] for job in waiting_ids if job in visible and visible[job].state == "queued"]
    return [*active, *waiting[:MAX_WAITING_SHOWN]]


async def missing_job_error(store: Store, job: str, *, is_deleted: bool = False) -> UserError:
    """Return the error for a job without a row, or (`is_deleted`) for one whose pictures were deleted."""
    cause = await store.query(retention.read_deletion_reason, job)
    if cause is not None:
        return UserError(REMOVAL_SENTENCES[cause], 404 if cause == "enlarged" else 410)
    return UserError(PICTURES_DELETED if is_deleted else UNKNOWN_JOB, 404)


def _picture_ref(stored_file: StoredPicture) -> PictureRef:
    return PictureRef(
        stored_file.image,
        stored_file.sha256,
        stored_file.width,
        stored_file.height,
        stored_file.verdict,
        stored_file.reviewed,
    )


class Deliveries:
    """Reads and notes destinations for front ends."""

    def __init__(self, store: Store, job_views: JobViews, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._job_views = job_views
        self._clock = clock

    async def answer_destination(self, job: str) -> Destination:
        """Return where a job's request was answered. Raises `UserError` (404)."""
        destination = await self._store.query(destinations.get_destination, job)
        if destination is None:
            raise await missing_job_error(self._store, job)
        return destination

    async def list_deliveries(self, job: str) -> dict[DeliveryRole, Delivery]:
        """Return every destination of a job except its films."""
        return await self._store.query(destinations.list_deliveries, job)

    async def list_films(self, job: str) -> list[Delivery]:
        """Return the messages that show a job's film."""
        return await self._store.query(destinations.list_films, job)

    async def add_film(self, job: str, destination: Destination) -> bool:
        """Note a message with a job's film. False: the job is deleted by now, so the message must go too."""
        return await self._store.write(destinations.add_film, job, destination, self._clock())

    async def forget_film(self, job: str, message: str) -> None:
        """Note that a film's message is gone."""
        await self._store.write(destinations.delete_film, job, message)

    async def list_undelivered(self, kind: DestinationKind) -> list[tuple[JobView, Destination]]:
        """Return jobs, ended or not, whose final state such a destination still has to show; oldest first."""
        undelivered_jobs = await self._store.query(destinations.list_undelivered, kind)
        views = await self._job_views.build_views([record for record, _ in undelivered_jobs])
        return [(view, destination) for view, (_, destination) in zip(views, undelivered_jobs, strict=True)]

    async def add_destination(self, job: str, role: DeliveryRole, destination: Destination) -> bool:
        """Add a destination. False if the job already has one of that role."""
        return await self._store.write(destinations.add_destination, job, role, destination)

    async def update_address(self, job: str, role: DeliveryRole = "answer", /, **address: str) -> None:
        """Record what a front end learnt about a destination (its message, a new token, …)."""
        await self._store.write(destinations.update_destination, job, address, role)

    async def mark_lost(self, job: str, reason: str, role: DeliveryRole = "answer") -> None:
        """Note that a destination is gone before its job has ended; `reason` is a sentence for the member."""
        await self._store.write(destinations.mark_lost, job, reason, role)

    async def mark_delivered(self, job: str, role: DeliveryRole = "answer", reason: str = "") -> None:
        """Record that the final state was shown, or why it never can be: `reason` is a sentence for the member."""
        await self._store.write(destinations.mark_delivered, job, self._clock(), role, reason)

    async def list_undeliverable(self, member: str) -> dict[str, str]:
        """Return a member's jobs whose final state no destination could show, newest first, each with the reason."""
        return await self._store.query(destinations.list_undeliverable, member)

    async def find_job(self, message: str) -> str | None:
        """Return the job that a message shows, at any of its destinations."""
        return await self._store.query(destinations.find_job, message)


ORIGINAL_FORBIDDEN = "This picture is an upscale, and you may not use its original. {}"


def make_job_ref(record: JobRecord, *, is_joined: bool = False) -> JobRef:
    """Return what permissions ask of a job. `is_joined`: the member takes part in its picture."""
    return JobRef(record.member, record.member_name, record.guild, record.private, is_joined)


def refusal_reason(action: Action, member: Member, record: JobRecord) -> str | None:
    """Return why `member` may not do this; None if they may. A job in a place that they cannot see is private."""
    is_hidden = record.private or not member.can_see_place(record.channel, record.thread)
    return forbidden_reason(action, member, JobRef(record.member, record.member_name, record.guild, is_hidden))


def check_original(action: Action, member: Member, record: JobRecord) -> None:
    """Raise `UserError` (403) if an upscale leads to a job that the member may not use."""
    if reason_text := refusal_reason(action, member, record):
        raise UserError(ORIGINAL_FORBIDDEN.format(reason_text), 403)
