"""`darkroom bench scale`: measures one, two, four and eight workers, as processes, on one broker and one bot.

Their device is simulated, and so slow that a machine of two cores can drive eight of them. So this measures whether bot
and broker keep them busy, not the processor. Rows that miss their goal say MISS (JSON: pass false); the exit code stays
0.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence

from benchmarks.queue.system.installation import TIMEOUT_SECONDS, BenchSystem, cpu_seconds, make_member, open_system
from benchmarks.report.figure_row import FigureRow, make_parser, print_progress, print_rows
from benchmarks.report.measures import rate_per_second
from bot.store.jobs import queries

JobRate = tuple[float, int]  # jobs a second, and how many jobs ended in the window
WORKERS = (1, 2, 4, 8)
ROW_MS = 40.0
ROWS = 16
STEPS = 10
PROMPT = f"a lamp --steps {STEPS} --count 2"  # 4 rows, with guidance
JOB_ROWS = 4
GOAL = "≥ 0.9"
WINDOW_SECONDS = 30.0
QUICK_SECONDS = 6.0
WARMUP_SECONDS = 4.0  # until every worker's batch is full
# As many members a worker as its rows have room for. With more, each one's first job begins at once, and all end
# together, in a burst that is longer than the window.
USERS_PER_WORKER = ROWS // JOB_ROWS


def run(args: Sequence[str]) -> int:
    """Measure and print; return 0, even if goals are missed."""
    arguments = make_parser("scale", __doc__, "one and two workers, some seconds").parse_args(args)
    print_rows(asyncio.run(measure(quick=arguments.quick)), as_json=arguments.json)
    return 0


async def measure(*, quick: bool) -> list[FigureRow]:
    """Measure each number of workers on a fresh installation."""
    rates = dict[int, JobRate]()
    rows = list[FigureRow]()
    seconds = QUICK_SECONDS if quick else WINDOW_SECONDS
    for count in WORKERS[:2] if quick else WORKERS:
        print_progress(f"{count} workers")
        async with open_system(None) as system:
            rates[count], note = await _measure_rate(system, count, seconds)
        rate, end_count = rates[count]
        name = f"jobs a second, {count} {'worker' if count == 1 else 'workers'}"
        rows.append(FigureRow(name, rate, None, "", note, end_count, max(2, count)))
        if count > 1:
            rows.append(efficiency_row(rates, count))
    return rows


def efficiency_row(rates: Mapping[int, JobRate], count: int) -> FigureRow:
    """Return what each of `count` workers does, relative to one alone; the goal is for eight."""
    (single_rate, single_ends), (joint_rate, joint_ends) = rates[1], rates[count]
    ratio = joint_rate / (count * single_rate) if single_rate else None
    jobs_per_second = 1000 / (STEPS * JOB_ROWS * ROW_MS)
    note = (
        f"a job is {1 / jobs_per_second:.1f} s of simulated device time: the machine's own {os.cpu_count()} cores "
        "hardly count"
    )
    goal = GOAL if count == max(WORKERS) else None
    return FigureRow(f"efficiency of {count} workers", ratio, goal, "", note, min(single_ends, joint_ends), 2)


async def _measure_rate(system: BenchSystem, count: int, seconds: float) -> tuple[JobRate, str]:
    """Return jobs a second in a window, the number of these jobs, and a note on the CPU time of each process."""
    names = [f"worker-{number}" for number in range(count)]
    for name in names:
        await system.workers.start(name, row_ms=ROW_MS, rows=ROWS)
    users = USERS_PER_WORKER * count
    jobs = [await system.imagine(PROMPT, make_member(n % users)) for n in range(_job_count(count, seconds))]
    await _wait_until_busy(system, count)
    start_time = time.time()
    cpu_before = _cpu_by_process(system)
    await asyncio.sleep(seconds)
    records = (await system.app.store.query(queries.get_jobs, jobs)).values()
    end_times = [record.ended for record in records if record.ended is not None and record.ended >= start_time]
    cpu_after = _cpu_by_process(system)
    cpu_note = ", ".join(f"{name} {cpu_after[name] - cpu_before.get(name, 0.0):.1f}" for name in cpu_after)
    note = f"{len(end_times)} jobs in {time.time() - start_time:.0f} s; seconds of a core: {cpu_note}"
    return (rate_per_second(end_times), len(end_times)), note


def _job_count(count: int, seconds: float) -> int:
    """Return a number of jobs that so many workers cannot finish in the window."""
    return int(1.3 * count * (seconds + 2 * WARMUP_SECONDS) * 1000 / (STEPS * JOB_ROWS * ROW_MS)) + count * ROWS


async def _wait_until_busy(system: BenchSystem, count: int) -> None:
    """Wait until every worker has a job, and then for their batches to fill."""
    workers = set[str]()
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while len(workers) < count:
            await asyncio.sleep(0.1)
            active = await system.app.store.query(queries.list_active)
            workers = {record.worker for record in active if record.worker}
    await asyncio.sleep(WARMUP_SECONDS)


def _cpu_by_process(system: BenchSystem) -> dict[str, float]:
    """Return CPU seconds. The bot and the measurement are both this process."""
    worker_seconds = cpu_seconds(system.workers.pids())
    seconds = cpu_seconds({"the bot": os.getpid(), "the broker": system.broker.pid})
    return seconds | {"all workers": sum(worker_seconds.values())}
