"""`darkroom bench steer`: measures steering with the real bot, broker and worker and the embedded model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from random import Random

from benchmarks.loopback_discord import ROOT, find_obstacle, make_environment
from benchmarks.queue.system.installation import open_client, open_system
from benchmarks.report.figure_row import FigureRow, make_parser, missing_rows, print_rows
from benchmarks.steering import steered_jobs
from benchmarks.steering.steered_jobs import (
    THROUGHPUT_NAME,
    RunningJobs,
    measure_responses,
    measure_steered_throughput,
    open_page,
)
from bot.domain.errors import UserError

REPLAY_NAME = "a steered run against its recipe drawn anew, exact: equal to the bit"
EDIT_NAME = "press in Discord → the first edit whose picture shows it, p99"
FAIR_NAME = "one party, 10 asked a second: Jain's index by members heard"
LIMITED_NAME = "one party: 429 caused by us"
LATE_NAME = "one party: late finals"
ROW_NAMES = {
    "responses": steered_jobs.ROW_NAMES,
    "throughput": (THROUGHPUT_NAME,),
    "replays": (REPLAY_NAME,),
    "discord": (EDIT_NAME,),
    "party": (FAIR_NAME, LIMITED_NAME, LATE_NAME),
}
# Measured over the loopback Discord, each in a process of its own: they need a checkout.
LOOPBACK_MODULES = {"discord": "tools.loopback.bench_steer", "party": "tools.loopback.bench_party"}
PARTS = tuple(ROW_NAMES)
SEED = 22


def run(args: Sequence[str]) -> int:
    """Measure and print; return 0, even if goals are missed."""
    parser = make_parser("steer", __doc__, "fewer presses and scripts, shorter windows")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part alone; may be repeated")
    arguments = parser.parse_args(args)
    print_rows(measure(arguments.only or PARTS, quick=arguments.quick), as_json=arguments.json)
    return 0


def measure(parts: Sequence[str], *, quick: bool) -> list[FigureRow]:
    """Return the rows of these parts. What cannot be measured here says why, and does not keep the others back."""
    rows = list[FigureRow]()
    for part in parts:
        try:
            rows += _measure_part(part, quick=quick)
        except UserError as error:
            rows += missing_rows(ROW_NAMES[part], error.sentence)
    return rows


def _measure_part(part: str, *, quick: bool) -> list[FigureRow]:
    if part in LOOPBACK_MODULES:
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


def measure_in_loopback(part: str, *, quick: bool) -> list[FigureRow]:
    """Return the rows that the part's module prints.

    Raises `UserError` where the tests or their packages are missing, or if its process fails.
    """
    if obstacle := find_obstacle():
        raise UserError(obstacle)
    command = [sys.executable, "-m", LOOPBACK_MODULES[part], *["--quick"] * quick]
    done = subprocess.run(command, env=make_environment(), stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise UserError(f"The measurement's process ended with code {done.returncode}.")
    return [FigureRow.from_dict(row) for row in json.loads(done.stdout)]
