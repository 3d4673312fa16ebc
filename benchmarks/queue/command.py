"""`darkroom bench queue`: measures the queue on SQLite and on PostgreSQL, and prints each figure beside its goal.

Every measurement has a fresh installation. Rows that miss their goal say MISS (JSON: pass false); the exit code is 0.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from benchmarks.queue import failover, job_picking, member_waits, preview_delivery
from benchmarks.queue.figures import SQLITE, make_row, name_database
from benchmarks.queue.system.installation import open_system
from benchmarks.queue.system.private_postgres import run_postgres
from benchmarks.report.figure_row import FigureRow, make_parser, print_progress, print_rows
from bot.domain.errors import UserError
from bot.store import Store

DATABASES = (SQLITE, "PostgreSQL")
ROW_NAMES = {
    "latency": member_waits.LATENCY_NAMES,
    "delivery": preview_delivery.ROW_NAMES,
    "admitting": job_picking.ADMISSION_NAMES,
    "picking": job_picking.PICK_NAMES,
    "fairness": member_waits.FLOOD_NAMES,
    "handing": failover.ROW_NAMES,
}
# What is measured in a fresh installation each.
SYSTEM_PARTS = {
    "latency": (member_waits.measure_latency,),
    "admitting": (job_picking.measure_admission,),
    "fairness": (member_waits.measure_flood_beside_one_user, member_waits.measure_flood_beside_nine_users),
    "handing": (failover.measure,),
}


def run(args: Sequence[str]) -> int:
    """Measure and print; return 0, even if goals are missed."""
    parser = make_parser("queue", __doc__, "fewer rounds, shorter queues")
    parser.add_argument("--on", choices=DATABASES, action="append", help="one database alone; may be repeated")
    parser.add_argument("--only", choices=tuple(ROW_NAMES), action="append", help="one part alone; may be repeated")
    arguments = parser.parse_args(args)
    rows = asyncio.run(measure(arguments.on or DATABASES, arguments.only or ROW_NAMES, quick=arguments.quick))
    print_rows(rows, as_json=arguments.json)
    return 0


async def measure(databases: Iterable[str], parts: Iterable[str], *, quick: bool) -> list[FigureRow]:
    """Return all rows, part after part, on each of the databases."""
    rows = list[FigureRow]()
    for part in parts:
        for database in databases:
            print_progress(f"{part}, {database}")
            try:
                part_rows = await _measure_part(part, database, quick)
            except UserError as error:
                part_rows = [make_row(name, None, error.sentence, 1, 1) for name in ROW_NAMES[part]]
            rows += name_database(part_rows, database)
    return rows


async def _measure_part(part: str, database: str, quick: bool) -> list[FigureRow]:
    if part == "picking":
        return await _measure_picking(database, quick)
    if part == "delivery":
        async with _fresh_database(database) as url:
            return await preview_delivery.measure(url, quick=quick)
    rows = list[FigureRow]()
    for measure_system in SYSTEM_PARTS[part]:
        async with _fresh_database(database) as url, open_system(url) as system:
            rows += await measure_system(system, quick=quick)
    return rows


async def _measure_picking(database: str, quick: bool) -> list[FigureRow]:
    """Measure with a separate store for each size of queue."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darkroom-bench-")))
        stores = list[Store]()
        for number, _ in enumerate(job_picking.QUICK_SIZES if quick else job_picking.QUEUE_SIZES):
            url = (
                await stack.enter_async_context(_fresh_database(database)) or f"sqlite:///{folder / f'{number}.sqlite'}"
            )
            stores.append(store := await Store.open(url))
            stack.push_async_callback(store.close)
        return await job_picking.measure_picks(stores, quick=quick)


@asynccontextmanager
async def _fresh_database(database: str) -> AsyncGenerator[str | None]:
    """Yield the URL of a fresh database; None: SQLite in the installation's folder. Raises `UserError`."""
    if database == SQLITE:
        yield None
        return
    async with run_postgres() as url:
        yield url
