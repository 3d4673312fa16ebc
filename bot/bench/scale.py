"""`darkroom bench scale`: measures one, two, four and eight workers, as processes, on one broker and one bot.

Their device is simulated, and so slow that a machine of two cores can drive eight of them. So this measures whether bot
and broker keep them busy, not the processor. Rows that miss their goal say MISS (JSON: pass false); the exit code stays
0.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from bot.bench.figures import Row, as_json, as_table, pace
from bot.bench.premises import Premises, cpu_seconds, member, premises
from bot.bench.watch import PATIENCE
from bot.store import reads

Say = Callable[[str], None]
Rate = tuple[float, int]  # jobs a second, and how many jobs ended in the window
WORKERS = (1, 2, 4, 8)
ROW_MS, ROWS = 40.0, 16
STEPS = 10
PROMPT = f"a lamp --steps {STEPS} --count 2"  # 4 rows, with guidance
JOB_ROWS = 4
GOAL = "≥ 0.9"
SECONDS, QUICK = 30.0, 6.0
WARMING = 4.0  # until every worker's batch is full
# As many members a worker as its rows have room for. With more, each one's first job begins at once, and all end
# together, in a burst that is longer than the window.
USERS = ROWS // JOB_ROWS


def run(args: Sequence[str]) -> int:
    """Measure and print; return 0, even if goals are missed."""
    parser = argparse.ArgumentParser(prog="darkroom bench scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one and two workers, some seconds")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    chosen = parser.parse_args(args)
    rows = asyncio.run(measure(quick=chosen.quick, say=_say))
    print(as_json(rows) if chosen.json else as_table(rows))  # noqa: T201 - the command line's answer
    return 0


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)  # noqa: T201


async def measure(*, quick: bool, say: Say) -> list[Row]:
    """Measure each number of workers on a fresh installation."""
    rates, rows, seconds = dict[int, Rate](), list[Row](), QUICK if quick else SECONDS
    for count in WORKERS[:2] if quick else WORKERS:
        say(f"{count} workers")
        async with premises(None) as here:
            rates[count], note = await _rate(here, count, seconds)
        rate, ends = rates[count]
        name = f"jobs a second, {count} {'worker' if count == 1 else 'workers'}"
        rows.append(Row(name, rate, None, "", note, ends, max(2, count)))
        if count > 1:
            rows.append(efficiency(rates, count))
    return rows


def efficiency(rates: Mapping[int, Rate], count: int) -> Row:
    """Return what each of `count` workers does, relative to one alone; the goal is for eight."""
    (alone, few), (together, many) = rates[1], rates[count]
    share = together / (count * alone) if alone else None
    ideal = 1000 / (STEPS * JOB_ROWS * ROW_MS)
    note = f"a job is {1 / ideal:.1f} s of simulated device time: the machine's own {os.cpu_count()} cores hardly count"
    return Row(
        f"efficiency of {count} workers", share, GOAL if count == max(WORKERS) else None, "", note, min(few, many), 2
    )


async def _rate(here: Premises, count: int, seconds: float) -> tuple[Rate, str]:
    """Return jobs a second in a window, the number of these jobs, and a note on the CPU time of each process."""
    names = [f"worker-{number}" for number in range(count)]
    for name in names:
        await here.workers.start(name, row_ms=ROW_MS, rows=ROWS)
    jobs = [await here.imagine(PROMPT, member(n % (USERS * count))) for n in range(_enough(count, seconds))]
    await _busy(here, count)
    began, spent = time.time(), _spent(here)
    await asyncio.sleep(seconds)
    ends, after = await _ends(here, jobs, began), _spent(here)
    used = {who: after[who] - spent.get(who, 0.0) for who in after}
    told = ", ".join(f"{who} {value:.1f}" for who, value in used.items())
    return (pace(ends), len(ends)), f"{len(ends)} jobs in {time.time() - began:.0f} s; seconds of a core: {told}"


def _enough(count: int, seconds: float) -> int:
    """Return a number of jobs that so many workers cannot finish in the window."""
    return int(1.3 * count * (seconds + 2 * WARMING) * 1000 / (STEPS * JOB_ROWS * ROW_MS)) + count * ROWS


async def _busy(here: Premises, count: int) -> None:
    """Wait until every worker has a job, and then for their batches to fill."""
    async with asyncio.timeout(PATIENCE):
        while len({record.worker for record in await here.house.store.ask(reads.active) if record.worker}) < count:
            await asyncio.sleep(0.1)
    await asyncio.sleep(WARMING)


async def _ends(here: Premises, jobs: Sequence[str], since: float) -> list[float]:
    """Return the end times of the jobs that ended since then."""
    found = (await here.house.store.ask(reads.some, jobs)).values()
    return [record.ended for record in found if record.ended is not None and record.ended >= since]


def _spent(here: Premises) -> dict[str, float]:
    """Return CPU seconds. The bot and the measurement are both this process."""
    workers = cpu_seconds(here.workers.pids())
    told = cpu_seconds({"the bot": os.getpid(), "the broker": here.broker.pid})
    return told | {"all workers": sum(workers.values())}
