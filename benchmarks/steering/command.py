"""`darkroom bench steer`: measures steering with the real bot, broker and worker and the embedded model."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from random import Random

from benchmarks.queue.system.installation import open_client, open_system
from benchmarks.report.figure_row import FigureRow, format_json, format_table
from benchmarks.steering import loopback_parts, steered_jobs
from benchmarks.steering.loopback_parts import MODULES, measure_in_loopback
from benchmarks.steering.page_reader import open_page
from benchmarks.steering.steered_jobs import THROUGHPUT_NAME, RunningJobs, measure_responses, measure_steered_throughput
from bot.domain.errors import UserError

REPLAY_NAME = "a steered run against its recipe drawn anew, exact: equal to the bit"
ROW_NAMES = {
    "responses": steered_jobs.ROW_NAMES,
    "throughput": (THROUGHPUT_NAME,),
    "replays": (REPLAY_NAME,),
    **loopback_parts.ROW_NAMES,
}
PARTS = tuple(ROW_NAMES)
SEED = 22


def run(args: Sequence[str]) -> int:
    """Measure and print; return 0, even if goals are missed."""
    parser = argparse.ArgumentParser(prog="darkroom bench steer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer presses and scripts, shorter windows")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part alone; may be repeated")
    arguments = parser.parse_args(args)
    rows = measure(arguments.only or PARTS, quick=arguments.quick)
    print(format_json(rows) if arguments.json else format_table(rows))  # noqa: T201 - the command line's answer
    return 0


def measure(parts: Sequence[str], *, quick: bool) -> list[FigureRow]:
    """Return the rows of these parts. What cannot be measured here says why, and does not keep the others back."""
    rows = list[FigureRow]()
    for part in parts:
        try:
            rows += _measure_part(part, quick=quick)
        except UserError as error:
            rows += [FigureRow(name, None, None, "", error.sentence, 0) for name in ROW_NAMES[part]]
    return rows


def _measure_part(part: str, *, quick: bool) -> list[FigureRow]:
    if part in MODULES:
        return measure_in_loopback(part, quick=quick)
    if part == "replays":
        from benchmarks.steering.replays import measure_replays  # imports torch

        return [measure_replays(quick=quick)]
    return asyncio.run(measure_service(part, quick=quick))


async def measure_service(part: str, *, quick: bool) -> list[FigureRow]:
    """Return the rows of a part in an installation of its own. Raises `UserError` if it cannot be measured."""
    rng = Random(SEED)
    async with open_system(None) as system, open_client(system) as client, open_page(client) as reader:
        await system.workers.start_embedded("worker")
        jobs = RunningJobs(client, reader, rng)
        if part == "throughput":
            return [await measure_steered_throughput(jobs, quick=quick)]
        return await measure_responses(jobs, rng, quick=quick)
