"""`darkroom bench queue`: measures the queue on SQLite and on PostgreSQL, and prints each figure beside its goal.

Every measurement has a fresh installation. Rows that miss their goal say MISS (JSON: pass false); the exit code is 0.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bot.bench import admitting, delivery, fairness, handing, latency, picking
from bot.bench.cluster import cluster
from bot.bench.figures import EMBEDDED, Row, as_json, as_table, missing
from bot.bench.premises import premises
from bot.refused import Refused
from bot.store import Store

Say = Callable[[str], None]
DATABASES = (EMBEDDED, "PostgreSQL")
PARTS = ("latency", "delivery", "admitting", "picking", "fairness", "handing")


def run(args: Sequence[str]) -> int:
    """Measure and print; return 0, even if goals are missed."""
    parser = argparse.ArgumentParser(prog="darkroom bench queue", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter queues")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    parser.add_argument("--on", choices=DATABASES, action="append", help="one database alone; may be repeated")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part alone; may be repeated")
    chosen = parser.parse_args(args)
    rows = asyncio.run(measure(chosen.on or DATABASES, chosen.only or PARTS, quick=chosen.quick, say=_say))
    print(as_json(rows) if chosen.json else as_table(rows))  # noqa: T201 - the command line's answer
    return 0


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)  # noqa: T201


async def measure(databases: Iterable[str], parts: Iterable[str], *, quick: bool, say: Say) -> list[Row]:
    """Return all rows, part after part, on each of the databases."""
    rows = list[Row]()
    for part in parts:
        for database in databases:
            say(f"{part}, {database}")
            rows += await _part(part, database, quick)
    return rows


async def _part(part: str, database: str, quick: bool) -> list[Row]:
    names = {
        "latency": latency.NAMES, "delivery": delivery.NAMES, "admitting": admitting.NAMES,
        "picking": picking.NAMES, "fairness": fairness.NAMES, "handing": handing.NAMES,
    }  # fmt: skip
    try:
        return await _measured(part, database, quick)
    except Refused as refused:
        return missing(database, names[part], refused.sentence)


async def _measured(part: str, database: str, quick: bool) -> list[Row]:
    if part == "picking":
        return await _picking(database, quick)
    async with _url(database) as url:
        if part == "delivery":
            return await delivery.measure(url, database, quick=quick)
        if part == "fairness":
            return await _fairness(url, database, quick)
        async with premises(url) as here:
            measured = {"latency": latency.measure, "admitting": admitting.measure, "handing": handing.measure}
            return await measured[part](here, database, quick=quick)


async def _fairness(url: str | None, database: str, quick: bool) -> list[Row]:
    async with premises(url) as here:
        rows = await fairness.beside_one(here, database, quick=quick)
    async with _url(database) as other, premises(other) as here:
        return rows + await fairness.beside_nine(here, database, quick=quick)


async def _picking(database: str, quick: bool) -> list[Row]:
    """Measure with a separate store for each size of queue."""
    async with AsyncExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="darkroom-bench-")))
        stores = list[Store]()
        for number, _ in enumerate(picking.QUICK if quick else picking.SIZES):
            url = await parts.enter_async_context(_url(database)) or picking.sqlite(folder, number)
            stores.append(store := await Store.open(url))
            parts.push_async_callback(store.close)
        return await picking.measure(stores, database, quick=quick)


@asynccontextmanager
async def _url(database: str) -> AsyncIterator[str | None]:
    """Yield the URL of a fresh database; None: SQLite in the installation's folder. Raise `Refused` if unavailable."""
    if database == EMBEDDED:
        yield None
        return
    async with cluster() as url:
        yield url
