"""Measures how long the store takes to pick the next job of a long queue, and how that grows with the queue."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ulid import ULID

from benchmarks.queue.figures import growth_exponent, make_row, percentile
from benchmarks.queue.queue_seed import seed_queue
from benchmarks.queue.system.installation import WEB_DESTINATION, make_member
from benchmarks.report.figure_row import FigureRow
from bot.store import NewJob, PickRequest, Store
from engine.contract import Concept, Recipe

QUEUE_SIZES = (1_000, 10_000, 100_000)
QUICK_SIZES = (1_000, 10_000)
PICKS = 400
QUICK_PICKS = 100
JOBS_PER_USER = 10  # jobs a user
ROW_LIMIT = 64  # rows of a few workers
P50_NAME = "pick of {:,} queued by {:,} users, p50"
P99_NAME = "pick of 100,000 queued by 10,000 users, p99"
EXPONENT_NAME = "pick: exponent of its growth, from 1,000 to 100,000 queued"
ROW_NAMES = (*(P50_NAME.format(size, size // JOBS_PER_USER) for size in QUEUE_SIZES), P99_NAME, EXPONENT_NAME)
MODEL = "simulated"


async def measure(stores: Sequence[Store], database: str, *, quick: bool) -> list[FigureRow]:
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
        rows.append(make_row(name, database, medians[-1], note, samples=len(times), expected=count))
    is_full = sizes == QUEUE_SIZES
    if is_full:
        rows.append(
            make_row(
                P99_NAME,
                database,
                percentile(times, 0.99),
                f"slowest {max(times):.2g} ms",
                samples=len(times),
                expected=count,
            )
        )
    exponent = growth_exponent(sizes, medians)
    rows.append(
        make_row(
            EXPONENT_NAME,
            database,
            exponent,
            "" if is_full else f"to {sizes[-1]:,} alone: --quick",
            samples=len(medians),
            expected=2,
        )
    )
    return rows


async def _time_picks(store: Store, size: int, count: int) -> list[float]:
    """Return the milliseconds of each pick. Each picked job is finished before the next, so there is always room."""
    await store.write(seed_queue, _make_request(), size, size // JOBS_PER_USER)
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


def _make_request() -> NewJob:
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


def sqlite_url(folder: Path, number: int) -> str:
    """Return the URL of the store `number`."""
    return f"sqlite:///{folder / f'{number}.sqlite'}"
