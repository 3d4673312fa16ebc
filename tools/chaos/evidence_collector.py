"""Collects the evidence of a campaign: tables by SQL, jobs and pictures by the API, streams of the broker.

Works from outside. Of our code it uses only the terminal's key, and the wire contract to decode a row's task. Recipes
are drawn anew in a process of its own (`tools.chaos.redrawing`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import aiohttp
import msgspec
from nats.js.api import StreamState
from nats.js.errors import NotFoundError

from bot.web.auth import terminal_key
from engine.bus import Bus
from engine.contract import (
    Job,
    MalformedMessage,
    OtherVersion,
    Recipe,
    Result,
    UpscaleTask,
    decode,
    list_evaluated_steps,
    list_final_images,
)
from tools.chaos.database import Database
from tools.chaos.evidence import (
    Account,
    AmendmentRow,
    ApiJob,
    Evidence,
    JobRow,
    Move,
    PlaceRow,
    RecipeAmendment,
    RedrawnJob,
)
from tools.chaos.installation import Installation
from tools.chaos.program import ROOT
from tools.chaos.redrawing import hash_pixels

JOBS = (
    "SELECT id, state, key, ordinal, tier, pool, account, cost, charged, billed, step, task, blame, reason, "
    "created, ended FROM jobs ORDER BY id"
)
MOVES = "SELECT id, job, source, target, why, epoch FROM moves ORDER BY id"
PLACES = "SELECT job, role, kind, delivered, reason FROM places ORDER BY job, role"
ACCOUNTS = "SELECT path, parent, virtual, weight, queued, active FROM accounts ORDER BY path"
AMENDMENTS = "SELECT job, number, key, state, step, reason, change FROM amendments ORDER BY job, number"
TASKS = "SELECT id, task FROM jobs ORDER BY id"
MAX_REQUESTS = 8
REDRAWN_JOBS = 12  # of a campaign
REDRAWING_TIMEOUT = 300.0  # seconds
WORK = "work"
RESULTS = "results"
STREAMS = (WORK, RESULTS)
INSPECT_LIMIT = 20  # up to so many messages are inspected one by one


def read_jobs(database: Database) -> tuple[JobRow, ...]:
    return tuple(_to_job_row(row) for row in database.query_rows(JOBS))


def _to_job_row(row: dict[str, Any]) -> JobRow:
    task = _decode_task(row.pop("task"))
    if not isinstance(task, Recipe):
        return JobRow(**row, steps=1, count=1)
    if not task.amendments:
        return JobRow(**row, steps=task.steps, count=task.count, evaluated=tuple(list_evaluated_steps(task)))
    amendments = tuple(
        RecipeAmendment(each.number, each.step, _sort_keys(msgspec.to_builtins(each.change)))
        for each in task.amendments
    )
    images = tuple(image + 1 for image in list_final_images(task))
    return JobRow(**row, steps=task.steps, count=task.count, images=images, amendments=amendments)


def _decode_task(payload: Any) -> Recipe | UpscaleTask:
    """Decodes a row's task. psql gives bytes as hexadecimal text."""
    return decode(bytes.fromhex(payload[2:]) if isinstance(payload, str) else payload, Recipe | UpscaleTask)  # pyright: ignore


def _sort_keys(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def read_amendments(database: Database) -> tuple[AmendmentRow, ...]:
    """Every change that was asked for. sqlite3 gives a change as text, psql as JSON."""
    return tuple(_to_amendment_row(row) for row in database.query_rows(AMENDMENTS))


def _to_amendment_row(row: dict[str, Any]) -> AmendmentRow:
    change = row.pop("change")
    return AmendmentRow(**row, change=_sort_keys(json.loads(change) if isinstance(change, str) else change))


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


async def redraw_jobs(site: Installation, evidence: Evidence, seed: int) -> dict[str, RedrawnJob]:
    """A sample of the finished jobs that were steered: the pixels of their pictures, and of those of their recipes."""
    web_jobs = {one.job for one in evidence.accepted if one.front_end in evidence.repeatable_front_ends}
    steered = [row.id for row in evidence.jobs if row.state == "finished" and row.amendments and row.id in web_jobs]
    sample = random.Random(seed).sample(steered, min(REDRAWN_JOBS, len(steered)))
    recipes = await asyncio.to_thread(_read_recipes, site.database, sample)
    redrawn = await asyncio.to_thread(_draw_anew, site, recipes)
    pictures = await _fetch_pixels(site.url, site.folder / "bot", sample)
    return {job: RedrawnJob(pictures[job], redrawn[job]) for job in sample}


def _read_recipes(database: Database, jobs: Iterable[str]) -> dict[str, Recipe]:
    tasks = {row["id"]: row["task"] for row in database.query_rows(TASKS)}
    decoded = {job: _decode_task(tasks[job]) for job in jobs}
    return {job: task for job, task in decoded.items() if isinstance(task, Recipe)}


def _draw_anew(site: Installation, recipes: Mapping[str, Recipe]) -> dict[str, dict[int, str]]:
    """Draws recipes in a process with the threads of the campaign's workers."""
    payload = json.dumps({job: msgspec.msgpack.encode(recipe).hex() for job, recipe in recipes.items()})
    answer = subprocess.run(
        [sys.executable, "-m", "tools.chaos.redrawing", site.build.engine],
        input=payload,
        text=True,
        check=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        timeout=REDRAWING_TIMEOUT,
        env=site.make_environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"),
    ).stdout
    return {
        job: {image + 1: digest for image, digest in zip(list_final_images(recipes[job]), digests, strict=True)}
        for job, digests in json.loads(answer).items()
    }


async def _fetch_pixels(url: str, bot_folder: Path, jobs: Iterable[str]) -> dict[str, dict[int, str]]:
    headers = {"Authorization": f"Bearer {await asyncio.to_thread(terminal_key, bot_folder)}"}
    pixels: dict[str, dict[int, str]] = {}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        for job in jobs:
            async with session.get(f"/api/jobs/{job}") as answer:
                pictures = (await answer.json())["pictures"]
            pixels[job] = {int(one["n"]): await _fetch_picture_pixels(session, one["url"]) for one in pictures}
    return pixels


async def _fetch_picture_pixels(session: aiohttp.ClientSession, path: str) -> str:
    async with session.get(path) as answer:
        content = await answer.read()
        return await asyncio.to_thread(hash_pixels, content) if answer.status == 200 else ""


async def count_messages_left(bus: Bus) -> dict[str, int]:
    """How many messages the streams still hold. Messages of another version do not count: they wait for an update."""
    counts: dict[str, int] = {}
    for name in STREAMS:
        state = (await bus.js.stream_info(name)).state
        counts[name] = state.messages
        if state.messages <= INSPECT_LIMIT:
            counts[name] -= await _count_other_versions(bus, name, state)
    return counts


async def _count_other_versions(bus: Bus, stream: str, state: StreamState) -> int:
    count = 0
    number = state.first_seq
    for _ in range(state.messages):
        try:
            message = await bus.js.get_msg(stream, number, subject=f"{stream}.>", next=True)
        except NotFoundError:  # deleted meanwhile
            break
        number = (message.seq or number) + 1
        with suppress(MalformedMessage):
            count += _is_other_version(message.data or b"", stream)
    return count


def _is_other_version(payload: bytes, stream: str) -> bool:
    """Raises `MalformedMessage`."""
    try:
        decode(payload, cast("type[Result]", Result) if stream == RESULTS else Job)
    except OtherVersion:
        return True
    return False
