"""`darkroom bench queue`: measures the queue on SQLite and on PostgreSQL, and prints each figure beside its goal.

Every measurement has a fresh installation. Rows that miss their goal say MISS (JSON: pass false); the exit code is 0.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from benchmarks.queue import admission, failover, fairness, job_picking, preview_delivery, start_latency
from benchmarks.queue.figures import SQLITE, missing_rows
from benchmarks.queue.system.installation import open_system
from benchmarks.queue.system.private_postgres import run_postgres
from benchmarks.report.figure_row import FigureRow, format_json, format_table
from bot.domain.errors import UserError
from bot.store import Store

PrintLine = Callable[[str], None]
DATABASES = (SQLITE, "PostgreSQL")
MEASUREMENTS = ("latency", "delivery", "admitting", "picking", "fairness", "handing")


def run(args: Sequence[str]) -> int:
    """Measure and print; return 0, even if goals are missed."""
    parser = argparse.ArgumentParser(prog="darkroom bench queue", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter queues")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    parser.add_argument("--on", choices=DATABASES, action="append", help="one database alone; may be repeated")
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="one part alone; may be repeated")
    arguments = parser.parse_args(args)
    rows = asyncio.run(
        measure(
            arguments.on or DATABASES, arguments.only or MEASUREMENTS, quick=arguments.quick, print_line=_print_progress
        )
    )
    print(format_json(rows) if arguments.json else format_table(rows))  # noqa: T201 - the command line's answer
    return 0


def _print_progress(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)  # noqa: T201


async def measure(
    databases: Iterable[str], parts: Iterable[str], *, quick: bool, print_line: PrintLine
) -> list[FigureRow]:
    """Return all rows, part after part, on each of the databases."""
    rows = list[FigureRow]()
    for part in parts:
        for database in databases:
            print_line(f"{part}, {database}")
            rows += await _run_part(part, database, quick)
    return rows


async def _run_part(part: str, database: str, quick: bool) -> list[FigureRow]:
    names = {
        "latency": start_latency.ROW_NAMES,
        "delivery": preview_delivery.ROW_NAMES,
        "admitting": admission.ROW_NAMES,
        "picking": job_picking.ROW_NAMES,
        "fairness": fairness.ROW_NAMES,
        "handing": failover.ROW_NAMES,
    }
    try:
        return await _measure_part(part, database, quick)
    except UserError as error:
        return missing_rows(database, names[part], error.sentence)


async def _measure_part(part: str, database: str, quick: bool) -> list[FigureRow]:
    if part == "picking":
        return await _measure_picking(database, quick)
    async with _fresh_database(database) as url:
        if part == "delivery":
            return await preview_delivery.measure(url, database, quick=quick)
        if part == "fairness":
            return await _measure_fairness(url, database, quick)
        async with open_system(url) as system:
            functions = {"latency": start_latency.measure, "admitting": admission.measure, "handing": failover.measure}
            return await functions[part](system, database, quick=quick)


async def _measure_fairness(url: str | None, database: str, quick: bool) -> list[FigureRow]:
    async with open_system(url) as system:
        rows = await fairness.measure_flood_beside_one_user(system, database, quick=quick)
    async with _fresh_database(database) as second_url, open_system(second_url) as system:
        return rows + await fairness.measure_flood_beside_nine_users(system, database, quick=quick)


async def _measure_picking(database: str, quick: bool) -> list[FigureRow]:
    """Measure with a separate store for each size of queue."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darkroom-bench-")))
        stores = list[Store]()
        for number, _ in enumerate(job_picking.QUICK_SIZES if quick else job_picking.QUEUE_SIZES):
            url = await stack.enter_async_context(_fresh_database(database)) or job_picking.sqlite_url(folder, number)
            stores.append(store := await Store.open(url))
            stack.push_async_callback(store.close)
        return await job_picking.measure(stores, database, quick=quick)


@asynccontextmanager
async def _fresh_database(database: str) -> AsyncGenerator[str | None]:
    """Yield the URL of a fresh database; None: SQLite in the installation's folder. Raises `UserError`."""
    if database == SQLITE:
        yield None
        return
    async with run_postgres() as url:
        yield url
