"""`darkroom bench steer`: measures steering with the real bot, broker and worker and the embedded model."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from random import Random

from benchmarks.queue.system.http_client import open_client
from benchmarks.queue.system.installation import open_system
from benchmarks.report.figure_row import FigureRow, format_json, format_table
from benchmarks.steering import party, response_times
from benchmarks.steering.page_reader import open_page
from benchmarks.steering.running_jobs import RunningJobs
from benchmarks.steering.steered_throughput import THROUGHPUT_NAME, measure_steered_throughput
from bot.domain.errors import UserError

PARTS = ("responses", "throughput", "replays", "party")
REPLAY_NAME = "a steered run against its recipe drawn anew, exact: equal to the bit"
ROW_NAMES = {
    "responses": response_times.ROW_NAMES, "throughput": (THROUGHPUT_NAME,), "replays": (REPLAY_NAME,),
    "party": party.ROW_NAMES,
}  # fmt: skip
SEED = 22


def run(args: Sequence[str]) -> int:
    """Measure and print; return 0, even if goals are missed."""
    parser = argparse.ArgumentParser(prog="darkroom bench steer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer presses and scripts, shorter windows")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part alone; may be repeated")
    arguments = parser.parse_args(args)
    parts = arguments.only or PARTS
    try:
        rows = measure(parts, quick=arguments.quick)
    except UserError as error:
        rows = [FigureRow(name, None, None, "", error.sentence, 0) for part in parts for name in ROW_NAMES[part]]
    print(format_json(rows) if arguments.json else format_table(rows))  # noqa: T201 - the command line's answer
    return 0


def measure(parts: Sequence[str], *, quick: bool) -> list[FigureRow]:
    """Return the rows of these parts. Raises `UserError` without an engine."""
    rows = list[FigureRow]()
    if "responses" in parts or "throughput" in parts:
        rows += asyncio.run(measure_service(parts, quick=quick))
    if "replays" in parts:
        from benchmarks.steering.replays import measure_replays  # imports torch

        rows.append(measure_replays(quick=quick))
    if "party" in parts:
        rows += party.measure_party(quick=quick)
    return rows


async def measure_service(parts: Sequence[str], *, quick: bool) -> list[FigureRow]:
    """Return the rows of a whole installation. Raises `UserError` without an engine."""
    rows, rng = list[FigureRow](), Random(SEED)
    async with open_system(None) as system, open_client(system) as client, open_page(client) as reader:
        await system.workers.start_embedded("worker")
        jobs = RunningJobs(client, reader, rng)
        if "responses" in parts:
            rows += await response_times.measure_responses(jobs, rng, quick=quick)
        if "throughput" in parts:
            rows.append(await measure_steered_throughput(jobs, quick=quick))
    return rows
