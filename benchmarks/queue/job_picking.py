"""Measures the store's queue: jobs admitted a second and their order, how long a pick takes, and how that grows.

Admission goes through the real use case, rules and quota check. Members send requests concurrently, each again after
its answer. One busy worker is online, so nearly all jobs wait. For the picks the queue is filled in bulk: to admit
100,000 jobs one by one would take minutes. It has what a pick reads, jobs and their accounts, but no destinations and
no audit.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Table
from ulid import ULID

from benchmarks.queue.figures import make_row, pick_spread
from benchmarks.queue.system.installation import WEB_DESTINATION, BenchSystem, make_member
from benchmarks.report.figure_row import FigureRow
from benchmarks.report.measures import growth_exponent, percentile
from bot.policy.fair_queue import account_paths, parent_path
from bot.store import NewJob, PickRequest, Store
from bot.store.jobs import queries
from bot.store.schema.tables import accounts, jobs
from engine.contract import BillingKey, Concept, Recipe

USERS = 100
GUILDS = 10
CONCURRENT_REQUESTS = 64
WINDOW_SECONDS = 10.0
QUICK_SECONDS = 2.0
PROMPT = "a lamp --steps 1000 --count 4"
FAIRNESS_NAME = "accepted jobs: most jobs of one user beyond another's in the next picks"
RATE_NAME = "accepted jobs a second"
ADMISSION_NAMES = (RATE_NAME, FAIRNESS_NAME)
NO_LIMIT = 1_000_000


async def measure_admission(system: BenchSystem, *, quick: bool) -> list[FigureRow]:
    """Measure rate and fairness. All admitted jobs stay in the queue."""
    await system.workers.start("worker", row_ms=50.0, rows=8)
    counter = itertools.count()
    await _submit_until(system, counter, time.monotonic() + 0.5)
    count_before = next(counter)
    start_time = time.monotonic()
    cpu_before = time.process_time()
    end_time = start_time + (QUICK_SECONDS if quick else WINDOW_SECONDS)
    await asyncio.gather(*(_submit_until(system, counter, end_time) for _ in range(CONCURRENT_REQUESTS)))
    seconds = time.monotonic() - start_time
    admitted = next(counter) - count_before - 1
    cpu_share = (time.process_time() - cpu_before) / seconds
    members = await _pick_members(system)
    note = (
        f"{admitted} jobs in {seconds:.1f} s, {CONCURRENT_REQUESTS} requests at a time, {USERS} users in {GUILDS} "
        f"servers; the bot had {cpu_share:.2f} of a core"
    )
    return [
        make_row(RATE_NAME, admitted / seconds, note, admitted, USERS),
        make_row(FAIRNESS_NAME, pick_spread(members, USERS), f"of {len(members)} picks", len(members), USERS),
    ]


async def _submit_until(system: BenchSystem, counter: Iterator[int], end_time: float) -> None:
    while time.monotonic() < end_time:
        number = next(counter) % USERS
        await system.imagine(PROMPT, make_member(number, number % GUILDS))


async def _pick_members(system: BenchSystem) -> list[str]:
    """Return the members who are served first, as many as there are users.

    First come those whose jobs the worker had. When the worker has gone and nobody else dispatches, we pick the others.
    """
    system.workers.stop("worker")
    await system.workers.wait_for_end("worker")
    async with asyncio.timeout(60):
        while system.bus.workers:
            await asyncio.sleep(0.1)
    store = system.app.store
    request = PickRequest("default", ["simulated"], member_limit=NO_LIMIT)
    members = [record.member for record in await store.query(queries.list_active)]
    while len(members) < USERS and (picked := await store.pick_job(request, NO_LIMIT, 0.0, time.time())) is not None:
        members.append(picked.record.member)
    return members


QUEUE_SIZES = (1_000, 10_000, 100_000)
QUICK_SIZES = (1_000, 10_000)
PICKS = 400
QUICK_PICKS = 100
JOBS_PER_USER = 10  # jobs a user
ROW_LIMIT = 64  # rows of a few workers
P50_NAME = "pick of {:,} queued by {:,} users, p50"
P99_NAME = "pick of 100,000 queued by 10,000 users, p99"
EXPONENT_NAME = "pick: exponent of its growth, from 1,000 to 100,000 queued"
PICK_NAMES = (*(P50_NAME.format(size, size // JOBS_PER_USER) for size in QUEUE_SIZES), P99_NAME, EXPONENT_NAME)
MODEL = "simulated"


async def measure_picks(stores: Sequence[Store], *, quick: bool) -> list[FigureRow]:
    """Measure each size in a fresh store."""
    sizes = QUICK_SIZES if quick else QUEUE_SIZES
    medians = list[float]()
    rows = list[FigureRow]()
    times = list[float]()
    count = QUICK_PICKS if quick else PICKS
    for size, store in zip(sizes, stores, strict=True):
        times = await _time_picks(store, size, count)
        medians.append(percentile(times, 0.5))
        note = f"{len(times)} picks, p99 {percentile(times, 0.99):.2g} ms"
        name = P50_NAME.format(size, size // JOBS_PER_USER)
        rows.append(make_row(name, medians[-1], note, len(times), count))
    is_full = sizes == QUEUE_SIZES
    if is_full:
        rows.append(make_row(P99_NAME, percentile(times, 0.99), f"slowest {max(times):.2g} ms", len(times), count))
    note = "" if is_full else f"to {sizes[-1]:,} alone: --quick"
    return [*rows, make_row(EXPONENT_NAME, growth_exponent(sizes, medians), note, len(medians), 2)]


async def _time_picks(store: Store, size: int, count: int) -> list[float]:
    """Return the milliseconds of each pick. Each picked job is finished before the next, so there is always room."""
    await store.write(seed_queue, _make_template(), size, size // JOBS_PER_USER)
    pick_request = PickRequest("default", [MODEL], member_limit=3)
    times = list[float]()
    for _ in range(count):
        start_time = time.perf_counter()
        transition = await store.pick_job(pick_request, ROW_LIMIT, 1.0, time.time())
        times.append(1000 * (time.perf_counter() - start_time))
        if transition is None:
            raise RuntimeError("A pick found nothing, and there was room.")
        await store.end_job("finish", transition.record.id, time.time(), transition.record.cost)
    return times


def _make_template() -> NewJob:
    recipe = Recipe(
        concepts=(Concept("a lamp"),),
        model=MODEL,
        sampler="ddpm",
        steps=100,
        seed=1,
        guidance=3.0,
        width=64,
        height=64,
        dtype="float32",
    )
    return NewJob(
        id=str(ULID()),
        action="imagine",
        prompt="a lamp",
        notes=(),
        task=recipe,
        member=make_member(0),
        destination=WEB_DESTINATION,
        pool="default",
        model=MODEL,
        cost=1.0,
        created=time.time(),
        deadline=time.time() + 86_400,
    )


ROWS_PER_STATEMENT = 2000  # rows per statement
USERS_PER_GUILD = 100


def seed_queue(connection: Connection, template: NewJob, count: int, users: int) -> None:
    """Insert `count` jobs like `template`, by `users` members in turn, whose accounts have random virtual times."""
    rng = random.Random(1)
    billing_keys = [
        BillingKey(template.member.tier, f"guild-{index // USERS_PER_GUILD}", f"user-{index}") for index in range(users)
    ]
    queued_by_path: dict[str, int] = {}
    for number in range(count):
        for path in account_paths(template.pool, billing_keys[number % users]):
            queued_by_path[path] = queued_by_path.get(path, 0) + 1
    account_rows = (_account_row(path, count, template, rng) for path, count in queued_by_path.items())
    _insert_rows(connection, accounts, account_rows)
    job_rows = (_job_row(template, billing_keys[number % users], number) for number in range(count))
    _insert_rows(connection, jobs, job_rows)
    if connection.dialect.name == "postgresql":  # autovacuum would run it within a minute
        connection.exec_driver_sql("ANALYZE")


def _account_row(path: str, queued: int, template: NewJob, rng: random.Random) -> dict[str, Any]:
    is_user = path.count("/") == 3
    return {
        "path": path,
        "parent": parent_path(path),
        "virtual": rng.random() * template.cost,
        "floor": 0.0,
        "weight": 1.0,
        "queued": queued,
        "active": 0,
        "since": template.created - rng.random() if is_user else None,
    }


def _job_row(template: NewJob, billing_key: BillingKey, number: int) -> dict[str, Any]:
    account = account_paths(template.pool, billing_key)[-1]
    values = template.to_row(None, number)
    return values | {"id": str(ULID()), "member": billing_key.user, "guild": billing_key.guild, "account": account}


def _insert_rows(connection: Connection, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    while chunk := list(islice(rows, ROWS_PER_STATEMENT)):
        connection.execute(table.insert(), chunk)
