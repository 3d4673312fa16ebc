"""Collects the evidence of a campaign: tables by SQL, jobs and pictures by the API, streams of the broker.

Works from outside. Of our code it uses only the terminal's key, and the wire contract to decode a row's task.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import aiohttp
from nats.js.api import StreamState
from nats.js.errors import NotFoundError

from bot.web.auth import terminal_key
from chaos.database import Database
from chaos.evidence import Account, ApiJob, JobRow, Move, PlaceRow
from engine.bus import Bus
from engine.contract import Job, MalformedMessage, NewerVersion, Recipe, Result, UpscaleTask, decode

JOBS = (
    "SELECT id, state, key, ordinal, tier, pool, account, cost, charged, billed, step, task, blame, reason, "
    "created, ended FROM jobs ORDER BY id"
)
MOVES = "SELECT id, job, source, target, why, epoch FROM moves ORDER BY id"
PLACES = "SELECT job, role, kind, delivered, reason FROM places ORDER BY job, role"
ACCOUNTS = "SELECT path, parent, virtual, weight, queued, active FROM accounts ORDER BY path"
MAX_REQUESTS = 8
WORK, RESULTS = "work", "results"
STREAMS = (WORK, RESULTS)
INSPECT_LIMIT = 20  # up to so many messages are inspected one by one


def read_jobs(database: Database) -> tuple[JobRow, ...]:
    return tuple(_to_job_row(row) for row in database.query_rows(JOBS))


def _to_job_row(row: dict[str, Any]) -> JobRow:
    payload = row.pop("task")
    task = decode(bytes.fromhex(payload[2:]) if isinstance(payload, str) else payload, Recipe | UpscaleTask)  # pyright: ignore
    steps, count = (task.steps, task.count) if isinstance(task, Recipe) else (1, 1)
    return JobRow(**row, steps=steps, count=count)


def read_moves(database: Database) -> tuple[Move, ...]:
    return tuple(Move(**row) for row in database.query_rows(MOVES))


def read_destinations(database: Database) -> tuple[PlaceRow, ...]:
    return tuple(PlaceRow(**row) for row in database.query_rows(PLACES))


def read_accounts(database: Database) -> tuple[Account, ...]:
    return tuple(Account(**row) for row in database.query_rows(ACCOUNTS))


async def fetch_jobs(url: str, bot_folder: Path, job_ids: list[str]) -> dict[str, ApiJob]:
    """Every job by the API now, as the operator, with the true SHA-256 of each picture's bytes."""
    jobs_by_id: dict[str, ApiJob] = {}
    slots = asyncio.Semaphore(MAX_REQUESTS)

    async def fetch_job(session: aiohttp.ClientSession, job: str) -> None:
        with suppress(aiohttp.ClientError, TimeoutError):  # then the API does not know it
            async with slots, session.get(f"{url}/api/jobs/{job}") as answer:
                if answer.status == 200:
                    jobs_by_id[job] = await _read_job(session, url, await answer.json())

    headers = {"Authorization": f"Bearer {await asyncio.to_thread(terminal_key, bot_folder)}"}
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as group:
        for job in job_ids:
            group.create_task(fetch_job(session, job))
    return jobs_by_id


async def _read_job(session: aiohttp.ClientSession, url: str, body: Mapping[str, Any]) -> ApiJob:
    pictures = []
    for one in body["pictures"]:
        async with session.get(url + one["url"]) as answer:
            content = await answer.read()
            digest = hashlib.sha256(content).hexdigest() if answer.status == 200 else ""
        pictures.append((int(one["n"]), str(one["sha256"]), digest))
    return ApiJob(str(body["state"]), tuple(pictures))


async def count_messages_left(bus: Bus) -> dict[str, int]:
    """How many messages the streams still hold. Messages of a newer version do not count: they wait for an update."""
    counts: dict[str, int] = {}
    for name in STREAMS:
        state = (await bus.js.stream_info(name)).state
        counts[name] = state.messages - (await _count_newer(bus, name, state) if state.messages <= INSPECT_LIMIT else 0)
    return counts


async def _count_newer(bus: Bus, stream: str, state: StreamState) -> int:
    count, number = 0, state.first_seq
    for _ in range(state.messages):
        try:
            message = await bus.js.get_msg(stream, number, subject=f"{stream}.>", next=True)
        except NotFoundError:  # deleted meanwhile
            break
        number = (message.seq or number) + 1
        with suppress(MalformedMessage):
            count += _is_newer(message.data or b"", stream)
    return count


def _is_newer(payload: bytes, stream: str) -> bool:
    """Raises `MalformedMessage`."""
    try:
        decode(payload, cast("type[Result]", Result) if stream == RESULTS else Job)
    except NewerVersion:
        return True
    return False
