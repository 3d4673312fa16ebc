"""Permission to make a job from another job, checked on the job that is really used.

A front end checks the job that the member named. If that leads to another job (an upscale to its original, an address
to its picture), this checks the other one: else a public job would give access to a private one.
"""

from __future__ import annotations

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.policy.permissions import Action, JobRef, forbidden_reason
from bot.store import JobRecord

ORIGINAL_FORBIDDEN = "This picture is an upscale, and you may not use its original. {}"


def make_job_ref(record: JobRecord, *, is_joined: bool = False) -> JobRef:
    """Return what permissions ask of a job. `is_joined`: the member takes part in the party whose picture it is."""
    return JobRef(record.member, record.member_name, record.guild, record.private, is_joined)


def refusal_reason(action: Action, member: Member, record: JobRecord) -> str | None:
    """Return why `member` may not do this, as a sentence; None if they may. A job in a channel or private thread
    that they cannot see counts as private.
    """
    is_hidden = record.private or not member.can_see_place(record.channel, record.thread)
    return forbidden_reason(action, member, JobRef(record.member, record.member_name, record.guild, is_hidden))


def check_original(action: Action, member: Member, record: JobRecord) -> None:
    """Raise `UserError` (403) if an upscale leads to a job that the member may not use."""
    if reason_text := refusal_reason(action, member, record):
        raise UserError(ORIGINAL_FORBIDDEN.format(reason_text), 403)
