"""`darkroom bench clients`: measures the APIs that other programs speak beside our own, on a simulated worker."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

from benchmarks.clients.openai_requests import (
    OVERHEAD_NAME,
    PARTIAL_NAME,
    draw_by_openai,
    measure_first_partial,
    measure_overhead,
)
from benchmarks.clients.shared_queue import JAIN_NAME, measure_fairness
from benchmarks.clients.webui_requests import WEBUI_NAME, draw_by_webui_api
from benchmarks.queue.system.http_client import open_client
from benchmarks.queue.system.installation import open_system
from benchmarks.queue.system.job_watch import watch_jobs
from benchmarks.report.figure_row import FigureRow, format_json, format_table
from bot.domain.errors import UserError

ROW_MS = 5.0  # of a simulated step, a row
ROW_NAMES = (OVERHEAD_NAME, WEBUI_NAME, PARTIAL_NAME, JAIN_NAME)


def run(args: Sequence[str]) -> int:
    """Measure and print; return 0, even if goals are missed."""
    parser = argparse.ArgumentParser(prog="darkroom bench clients", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a shorter window")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    arguments = parser.parse_args(args)
    try:
        rows = asyncio.run(measure(quick=arguments.quick))
    except UserError as error:
        rows = [FigureRow(name, None, None, "", error.sentence, 0) for name in ROW_NAMES]
    print(format_json(rows) if arguments.json else format_table(rows))  # noqa: T201 - the command line's answer
    return 0


async def measure(*, quick: bool) -> list[FigureRow]:
    """Return all rows. Raises `UserError` without an engine."""
    async with open_system(None) as system, open_client(system) as client, watch_jobs(system.app.feed) as watch:
        await system.workers.start("worker", row_ms=ROW_MS)
        return [
            await measure_overhead(client, OVERHEAD_NAME, draw_by_openai, quick=quick),
            await measure_overhead(client, WEBUI_NAME, draw_by_webui_api, quick=quick),
            await measure_first_partial(client, watch, quick=quick),
            await measure_fairness(client, system, watch, quick=quick),
        ]
