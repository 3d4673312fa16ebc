"""Moderation: deletes a job's pictures, takes reports, and lists incidents.

It returns the messages that show a deleted job; a front end removes the pictures there. Every method may raise
`UserError`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from bot.domain.concurrency import run_periodically
from bot.domain.dto import Delivery, DeliveryRole, Member
from bot.domain.errors import UserError
from bot.domain.events import Feed, JobEnded
from bot.domain.incidents import Incident
from bot.domain.job_states import is_end
from bot.domain.texts import PICTURES_DELETED, clean_text
from bot.jobs.control import JobCanceller
from bot.jobs.retention import FileCleanup
from bot.jobs.views import make_job_ref, missing_job_error
from bot.policy.permissions import Action, forbidden_reason
from bot.policy.rules import EffectiveRules
from bot.services.front_end_actions import FrontEndActions, Report
from bot.store import JobRecord, Store
from bot.store.deletion import deletion_steps
from bot.store.jobs import destinations
from bot.store.moderation import incidents

log = logging.getLogger(__name__)

MAX_REASON = 500  # characters of a report
MAX_INCIDENTS = 20  # incidents
SWEEP_SECONDS = 600.0


@dataclass(frozen=True)
class Deletion:
    """A deletion: job → the messages that front ends empty; the job itself first, then its upscales. Films likewise."""

    job: str
    sentence: str
    deliveries: Mapping[str, Mapping[DeliveryRole, Delivery]]
    films: Mapping[str, Sequence[Delivery]]


@dataclass(eq=False)
class Moderation:
    """`effective_rules` returns a member's rules where they are. The front end posts reports."""

    store: Store
    canceller: JobCanceller
    feed: Feed
    effective_rules: Callable[[Member], Awaitable[EffectiveRules]]
    front_end: FrontEndActions
    remove_files: FileCleanup
    clock: Callable[[], float] = time.time

    async def delete_pictures(self, job: str, member: Member) -> Deletion:
        """Delete a job's pictures and all upscales of them; cancel what still runs. Idempotent."""
        record = await self._find_record(job)
        _check_permission("delete", member, record)
        ids = await self.store.query(deletion_steps.list_jobs_of_picture, job)
        deliveries = {job_id: await self.store.query(destinations.list_deliveries, job_id) for job_id in ids}
        actor = (member.id, member.name)
        marked_jobs = await self.store.write(deletion_steps.mark_deleted, ids, actor, self.clock())
        films = {
            job_id: await self.store.query(destinations.list_films, job_id) for job_id in ids
        }  # after the mark, nobody can record another film
        for job_id in marked_jobs:
            await self._stop_job(job_id)
        await self.remove_files(
            await self.store.query(deletion_steps.list_leftover_files, marked_jobs)
        )  # the sweep removes the files of others
        sentence = "Deleted. Its pictures are gone for good." if job in marked_jobs else PICTURES_DELETED
        return Deletion(job, sentence, deliveries, films)

    async def _stop_job(self, job: str) -> None:
        """Cancel a job that has not ended; tell subscribers about one that has."""
        record = await self._find_record(job)
        if not is_end(record.state):
            await self.canceller.cancel(job)
        else:
            self.feed.publish(JobEnded(job, record.state, PICTURES_DELETED))

    async def remove_leftovers(self) -> None:
        """Remove the files of deleted jobs that no other job shares. A later sweep retries failures."""
        await self.remove_files(await self.store.query(deletion_steps.list_leftover_files))

    async def run_sweeps(self) -> None:
        """Sweep periodically until cancelled: a crash or an outage may have left files."""
        await run_periodically(self.remove_leftovers, SWEEP_SECONDS, "sweep", log)

    async def report_picture(self, job: str, member: Member, reason: str) -> str:
        """Report a picture to the moderators, once for each member and job; say where the report went."""
        record = await self._find_record(job)
        _check_permission("report", member, record)
        if record.deleted is not None:
            raise UserError(PICTURES_DELETED, 404)
        reason_text = clean_text(reason)
        if not reason_text:
            raise UserError("Say in a few words what is wrong with it.")
        if len(reason_text) > MAX_REASON:
            raise UserError(f"A report has at most {MAX_REASON} characters; this one has {len(reason_text)}.")
        row = (record.guild, member.id, member.name, reason_text, self.clock(), job)
        number = await self.store.write(incidents.write_report, *row)
        if await self._post_report(record, member, number, reason_text):
            return "Reported: the moderators of this server see it in their channel. Thank you."
        return "Reported: it stands in the list of the moderators of this server. Thank you."

    async def _post_report(self, record: JobRecord, member: Member, number: int, reason: str) -> bool:
        """Post the report into the moderators' channel; return whether it is there. Their list has it in any case."""
        channel = (await self.effective_rules(member)).reports
        if not channel or self.front_end.post_report is None:
            return False
        report = Report(number, record.guild, channel, record.id, record.member_name, member.name, reason)
        try:
            return await self.front_end.post_report(report)
        except Exception:
            log.exception("report %d: it could not be put into its channel", number)
            return False

    async def list_incidents(
        self, member: Member, limit: int = MAX_INCIDENTS, *, undecided_only: bool = False
    ) -> list[Incident]:
        """Return the newest incidents of the member's server, or only undecided ones. For moderators."""
        _check_permission("settings", member)
        return await self.store.query(incidents.list_incidents, member.guild, limit, open_only=undecided_only)

    async def close_incident(self, number: int, member: Member) -> Incident:
        """Close an incident. For moderators."""
        _check_permission("dismiss", member)
        actor = (member.id, member.name)
        return await self.store.write(incidents.close_incident, member.guild, number, actor, self.clock())

    async def note_block(self, blocked_name: str, member: Member, reason: str) -> None:
        """Note that `member` blocked `blocked_name` (a name), and why; the block itself is a rule of `RuleAdmin`."""
        _check_permission("set", member)
        detail = f"{blocked_name}: {clean_text(reason)}" if clean_text(reason) else blocked_name
        row = (member.guild, "barred", member.id, member.name, detail, self.clock())
        await self.store.write(incidents.write_incident, *row)

    async def _find_record(self, job: str) -> JobRecord:
        """Return a job's row, deleted or not."""
        record = await self.store.get_job(job)
        if record is None:
            raise await missing_job_error(self.store, job)
        return record


def _check_permission(action: Action, member: Member, record: JobRecord | None = None) -> None:
    job = None if record is None else make_job_ref(record)
    if reason := forbidden_reason(action, member, job):
        raise UserError(reason, 403)
