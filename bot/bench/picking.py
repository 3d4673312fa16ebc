"""Measures how long the store takes to pick the next job of a long queue, and how that grows with the queue."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ulid import ULID

from bot.bench.figures import Row, at, growth, row
from bot.bench.premises import HERE, member
from bot.store import Draft, Store, Wish
from bot.store.filling import fill
from engine.job import Concept, Recipe

SIZES, QUICK = (1_000, 10_000, 100_000), (1_000, 10_000)
PICKS, FEW = 400, 100
USERS_SHARE = 10  # jobs a user
ROOM = 64  # rows of a few workers
P50 = "pick of {:,} queued by {:,} users, p50"
P99 = "pick of 100,000 queued by 10,000 users, p99"
EXPONENT = "pick: exponent of its growth, from 1,000 to 100,000 queued"
NAMES = (*(P50.format(size, size // USERS_SHARE) for size in SIZES), P99, EXPONENT)
MODEL = "simulated"


async def measure(opened: Sequence[Store], database: str, *, quick: bool) -> list[Row]:
    """Measure each size in a fresh store."""
    sizes = QUICK if quick else SIZES
    medians, rows, times, count = list[float](), list[Row](), list[float](), FEW if quick else PICKS
    for size, store in zip(sizes, opened, strict=True):
        times = await _times(store, size, count)
        medians.append(at(times, 0.5))
        note = f"{len(times)} picks, p99 {at(times, 0.99):.2g} ms"
        name = P50.format(size, size // USERS_SHARE)
        rows.append(row(name, database, medians[-1], note, samples=len(times), of=count))
    whole = sizes == SIZES
    if whole:
        rows.append(row(P99, database, at(times, 0.99), f"slowest {max(times):.2g} ms", samples=len(times), of=count))
    exponent = growth(sizes, medians)
    rows.append(
        row(
            EXPONENT,
            database,
            exponent,
            "" if whole else f"to {sizes[-1]:,} alone: --quick",
            samples=len(medians),
            of=2,
        )
    )
    return rows


async def _times(store: Store, size: int, count: int) -> list[float]:
    """Return the milliseconds of each pick. Each picked job is finished before the next, so there is always room."""
    await store.write(fill, _draft(), size, size // USERS_SHARE)
    wish, times = Wish("default", [MODEL], running=3), list[float]()
    for _ in range(count):
        began = time.perf_counter()
        moved = await store.pick(wish, ROOM, 1.0, time.time())
        times.append(1000 * (time.perf_counter() - began))
        if moved is None:
            raise RuntimeError("A pick found nothing, and there was room.")
        await store.end("finish", moved.record.id, time.time(), moved.record.cost)
    return times


def _draft() -> Draft:
    recipe = Recipe(
        concepts=(Concept("a lamp"),), model=MODEL, sampler="ddpm", steps=100, seed=1, guidance=3.0, width=64,
        height=64, dtype="float32",
    )  # fmt: skip
    return Draft(
        id=str(ULID()), action="imagine", prompt="a lamp", notes=(), task=recipe, member=member(0), place=HERE,
        pool="default", model=MODEL, cost=1.0, created=time.time(), deadline=time.time() + 86_400,
    )  # fmt: skip


def sqlite(folder: Path, number: int) -> str:
    """Return the URL of the store `number`."""
    return f"sqlite:///{folder / f'{number}.sqlite'}"
