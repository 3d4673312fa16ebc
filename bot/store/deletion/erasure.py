"""Erases members who asked to be forgotten: one row for each pending request, and the deletion of their data.

Jobs are deleted as for retention (`bot.store.deletion.retention`). Their messages are deleted too: a destination's row
goes once its message is deleted in Discord. Each function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from sqlalchemy import ColumnElement, Connection, and_, exists, func, select, update

from bot.domain.feature import load_hooks
from bot.domain.job_states import JobState
from bot.store.deletion import deletion_steps
from bot.store.deletion.deletion_steps import mark_without_incident
from bot.store.deletion.retention import BATCH_SIZE, record_reasons
from bot.store.members.api_keys import KEY_MEMBER_PREFIX
from bot.store.schema.tables import (
    accounts,
    amendments,
    api_keys,
    deleted_jobs,
    destinations,
    erasure_requests,
    favourites,
    incidents,
    jobs,
    preferences,
    sessions,
)

MEMBER_INCIDENT_KINDS = ("word", "blocked", "report", "held")  # about a member's actions; others: of the staff
DELETED_MEMBER = "deleted member"
VISITOR_PREFIX = "local:"  # of the member id of a visitor to the chatroom (`bot.web.middleware.member_of`)


@dataclass(frozen=True)
class ErasureRequest:
    """A request to be forgotten: everywhere, or in one `guild`. Data newer than `requested_at` stays."""

    member: str
    guild: str
    requested_at: float


def request_erasure(connection: Connection, request: ErasureRequest) -> int:
    """Record the request and return how many jobs it covers. A pending one is extended to newer jobs."""
    conditions = (erasure_requests.c.member == request.member, erasure_requests.c.guild == request.guild)
    connection.execute(erasure_requests.delete().where(*conditions))
    values = {"member": request.member, "guild": request.guild, "asked": request.requested_at}
    connection.execute(erasure_requests.insert().values(**values))
    return int(connection.execute(select(func.count()).select_from(jobs).where(_is_covered_job(request))).scalar_one())


def list_requests(connection: Connection) -> list[ErasureRequest]:
    """Return every pending request, the oldest first."""
    rows = connection.execute(select(erasure_requests).order_by(erasure_requests.c.asked)).mappings()
    return [ErasureRequest(row["member"], row["guild"], row["asked"]) for row in rows]


def mark_batch_deleted(connection: Connection, request: ErasureRequest, now: float) -> list[str]:
    """Mark a batch of the member's jobs as deleted, and others' upscales of them, whose rows stay. Empty: none left."""
    query = select(jobs.c.id).where(_is_covered_job(request), ~_is_being_erased()).order_by(jobs.c.id).limit(BATCH_SIZE)
    member_job_ids = list(connection.execute(query).scalars())
    upscales = deletion_steps.find_descendants(connection, member_job_ids, jobs.c.action == "upscale")
    job_ids = sorted({*member_job_ids, *upscales})
    mark_without_incident(connection, job_ids, now)
    deletion_steps.release_inputs(connection, job_ids)
    # a job that retention removed keeps its messages
    connection.execute(deleted_jobs.delete().where(deleted_jobs.c.job.in_(member_job_ids)))
    record_reasons(connection, member_job_ids, "forgotten", now)
    upscales_query = select(jobs.c.id).where(jobs.c.id.in_(job_ids), ~_is_covered_job(request))
    record_reasons(connection, list(connection.execute(upscales_query).scalars()), "enlarged", now)
    return job_ids


def erase_member_data(connection: Connection, request: ErasureRequest) -> None:
    """Delete what belongs to no job of theirs: preferences, favourites, sessions, a program's key, what features keep,
    and the name in incidents and in changes of others' jobs. What they changed there stays: those pictures are made of
    it.
    """
    for erase_member in load_hooks("erase_member"):
        erase_member(connection, request.member, request.guild, request.requested_at)
    in_guild = select(jobs.c.id).where(jobs.c.guild == request.guild)
    favourite_conditions = [favourites.c.member == request.member, favourites.c.at <= request.requested_at]
    incident_conditions = [incidents.c.actor == request.member, incidents.c.at <= request.requested_at]
    amendment_conditions = [amendments.c.member == request.member, amendments.c.at <= request.requested_at]
    if request.guild:
        favourite_conditions.append(favourites.c.job.in_(in_guild))
        incident_conditions.append(incidents.c.guild == request.guild)
        amendment_conditions.append(amendments.c.job.in_(in_guild))
    else:
        connection.execute(preferences.delete().where(preferences.c.member == request.member))
        _delete_sessions(connection, request)
        _delete_key(connection, request)
    connection.execute(favourites.delete().where(*favourite_conditions))
    is_members_incident = and_(*incident_conditions, incidents.c.kind.in_(MEMBER_INCIDENT_KINDS))
    connection.execute(incidents.delete().where(is_members_incident, incidents.c.closed.is_not(None)))
    connection.execute(update(incidents).where(is_members_incident).values(actor="", actor_name=DELETED_MEMBER))
    names = {"member": "", "member_name": DELETED_MEMBER, "key": None}
    connection.execute(update(amendments).where(*amendment_conditions).values(names))


def _delete_sessions(connection: Connection, request: ErasureRequest) -> None:
    """Sign a visitor out in every browser that was signed in before the request."""
    if request.member.startswith(VISITOR_PREFIX):
        is_theirs = sessions.c.visitor == request.member.removeprefix(VISITOR_PREFIX)
        connection.execute(sessions.delete().where(is_theirs, sessions.c.issued <= request.requested_at))


def _delete_key(connection: Connection, request: ErasureRequest) -> None:
    """Delete the API keys of a program that were made before the request, and what features keep for them."""
    if request.member.startswith(KEY_MEMBER_PREFIX):
        name = request.member.removeprefix(KEY_MEMBER_PREFIX)
        connection.execute(api_keys.delete().where(api_keys.c.name == name, api_keys.c.issued <= request.requested_at))
        for erase_key in load_hooks("erase_key"):
            erase_key(connection, name, request.requested_at)


def read_state(connection: Connection, job: str) -> JobState | None:
    """Return a job's state even if the rest of its row is corrupt; None where it has no row."""
    state = connection.execute(select(jobs.c.state).where(jobs.c.id == job)).scalar_one_or_none()
    return cast("JobState | None", state)


def delete_destination(connection: Connection, job: str, role: str) -> None:
    """Drop a destination whose message was deleted, or cannot be."""
    connection.execute(destinations.delete().where(destinations.c.job == job, destinations.c.role == role))


def close_upscale_deletions(connection: Connection, ids: Sequence[str]) -> None:
    """Close the deletion of others' upscales once pictures and messages are gone. Their rows stay."""
    connection.execute(deleted_jobs.delete().where(deleted_jobs.c.job.in_(ids), deleted_jobs.c.why == "enlarged"))


def close_request(connection: Connection, request: ErasureRequest) -> bool:
    """Close the request if no job of the member is left, and delete their idle accounts of the fair order."""
    if connection.execute(select(jobs.c.id).where(_is_covered_job(request)).limit(1)).first() is not None:
        return False
    escaped_member = request.member.replace("%", "%25").replace("/", "%2F")
    account_conditions = [
        accounts.c.path.endswith(f"/{escaped_member}", autoescape=True),
        accounts.c.queued == 0,
        accounts.c.active == 0,
    ]
    if request.guild:
        guild = request.guild.replace("%", "%25").replace("/", "%2F")
        account_conditions.append(accounts.c.path.endswith(f"/{guild}/{escaped_member}", autoescape=True))
    has_jobs = exists().where(jobs.c.account == accounts.c.path)
    connection.execute(accounts.delete().where(*account_conditions, ~has_jobs))
    conditions = (
        erasure_requests.c.member == request.member,
        erasure_requests.c.guild == request.guild,
        erasure_requests.c.asked == request.requested_at,
    )
    return connection.execute(erasure_requests.delete().where(*conditions)).rowcount > 0


def _is_covered_job(request: ErasureRequest) -> ColumnElement[bool]:
    is_members_job = and_(jobs.c.member == request.member, jobs.c.created <= request.requested_at)
    return and_(is_members_job, jobs.c.guild == request.guild) if request.guild else is_members_job


def _is_being_erased() -> ColumnElement[bool]:
    return exists().where(deleted_jobs.c.job == jobs.c.id, deleted_jobs.c.why == "forgotten")
