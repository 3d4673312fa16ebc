"""`darkroom bench discord`: result rows of a heavy load on the loopback Discord and of a killed bot."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.report.figure_row import FigureRow, format_json, format_table
from tools.loopback.bench_kills import POINTS, QUICK_POINTS, KillPoint, Outcome, run_kills
from tools.loopback.bench_load import RATE, LoadResult, LoadSize, run_load
from tools.loopback.faults import EDITS, Faults
from tools.loopback.known_deviations import find_unexplained
from tools.loopback.openapi import RequestValidator

SOON = 2.0  # seconds
STALLED = LoadSize(jobs=10, channels=10, guilds=2, short_seconds=12.0, long_seconds=14.0, finals_per_second=5.0)
HANG = 25.0  # seconds that a stalled upload hangs before its line breaks: longer than the job
SLACK = 0.25  # seconds that a request already sent at a job's end may still take to arrive


def load_rows(result: LoadResult) -> list[FigureRow]:
    """Computes the result rows of one load."""
    answer_times = sorted(1000 * (act.answered_at - act.sent_at) for act in result.acts if act.answered_at)
    finals_by_job = result.group_finals_by_job()
    size = result.size
    store_delays = sorted(
        result.stored_at[job] - ended_at for job, ended_at in result.ended_at.items() if job in result.stored_at
    )
    setting = (
        f"{size.jobs} jobs, {size.channels} channels, {size.guilds} guilds, "
        f"≤ {size.finals_per_second:g} finals a second"
    )
    previews = [len(each) for each in result.group_previews_by_job().values()]
    judge = RequestValidator()
    for one in result.loopback.requests:
        judge.check_request(one.method, one.path, one.query, one.body, len(one.files))
    unexplained_findings = find_unexplained(judge.findings)
    of_answers, of_finals = ({"samples": len(each), "planned": size.jobs} for each in (answer_times, finals_by_job))
    of_requests = {"samples": len(result.loopback.requests), "planned": size.jobs}  # each job has one, at least
    return [
        FigureRow("first answer, p50", _quantile(answer_times, 0.5), "≤ 300", "ms", setting, **of_answers),
        FigureRow(
            "first answer, p99",
            _quantile(answer_times, 0.99),
            "≤ 300",
            "ms",
            f"of {len(answer_times)}, worst {_quantile(answer_times, 1):.0f} ms",
            **of_answers,
        ),
        FigureRow(
            "429 caused by us",
            result.loopback.rates.refused_count,
            "= 0",
            "",
            _list_limited_routes(result),
            **of_requests,
        ),
        FigureRow(
            "finals shown",
            len(finals_by_job),
            f"= {size.jobs}",
            "",
            f"{sum(map(_is_post, finals_by_job.values()))} as notices",
        ),
        FigureRow(
            "finals shown twice", sum(len(each) > 1 for each in finals_by_job.values()), "= 0", "", "", **of_finals
        ),
        soon_row(result, f"of it until it was stored: p50 {_quantile(store_delays, 0.5):.2f} s"),
        FigureRow("finals behind a preview", count_finals_behind_previews(result), "= 0", "", "", **of_finals),
        FigureRow("previews per job", sum(previews) / size.jobs, "≥ 1", "", f"{sum(previews)} in all", **of_finals),
        FigureRow("memory of the bot, most", result.memory / 1e6, "≤ 400", "MB", "", **of_finals),
        FigureRow("the bot's share of one core", _cpu_share(result), "≤ 1", "", _describe_shares(result), **of_finals),
        FigureRow(
            "findings against Discord's description",
            len(unexplained_findings),
            "= 0",
            "",
            "; ".join(map(str, unexplained_findings)),
            **of_requests,
        ),
    ]


def soon_row(result: LoadResult, note: str) -> FigureRow:
    """The share of finals that arrived in time. A missing final counts as late."""
    finals_by_job = result.group_finals_by_job()
    delays = sorted(
        finals_by_job[job][0].answered_at - ended_at
        for job, ended_at in result.ended_at.items()
        if job in finals_by_job
    )
    summary = (
        f"p50 {_quantile(delays, 0.5):.2f} s, p99 {_quantile(delays, 0.99):.2f} s, "
        f"worst {_quantile(delays, 1):.2f} s; {note}"
    )
    share = 100 * sum(each <= SOON for each in delays) / result.size.jobs
    return FigureRow(
        "finals within 2 s of the job's end", share, "≥ 99", "%", summary, samples=len(delays), planned=result.size.jobs
    )


def hang_first_edits(jobs: int, hang: float, faults: Faults) -> None:
    """Makes the first edit of each job, a progress edit, hang until well after the job's end."""
    faults.break_lines(path=EDITS, method="PATCH", times=jobs, delay=hang)


def stalled_row(result: LoadResult, hang: float = HANG) -> FigureRow:
    """The row that counts finals delayed by a preview; none may be."""
    finals_by_job = result.group_finals_by_job()
    hung_count = sum(fault.met_count for fault in result.loopback.faults.orders)
    delays = [
        finals_by_job[job][0].answered_at - ended_at if job in finals_by_job else math.inf
        for job, ended_at in result.ended_at.items()
    ]
    missed_count = sum(each > SOON for each in delays) + result.size.jobs - len(delays)
    summary = f"the first {hung_count} edits hang for {hang:.0f} s; worst final {max(delays, default=math.inf):.2f} s"
    note = f"of {result.size.jobs} jobs; {summary}"
    return FigureRow(
        "finals held by an edit that hangs", missed_count, "= 0", "", note, samples=hung_count, planned=result.size.jobs
    )


def _cpu_share(result: LoadResult) -> float:
    return result.cpu.get("bot", math.nan) / result.seconds if result.seconds else math.nan


def _describe_shares(result: LoadResult) -> str:
    """The CPU use of the other processes, which share the machine with the bot."""
    other_shares = ", ".join(
        f"{role} {cpu_seconds / max(result.seconds, 1e-9):.2f}"
        for role, cpu_seconds in sorted(result.cpu.items())
        if role != "bot"
    )
    return f"over {result.seconds:.0f} s; beside it {other_shares}; {os.cpu_count()} cores"


def _list_limited_routes(result: LoadResult) -> str:
    """The routes that answered 429."""
    routes = {f"{one.method} {one.path.split('/')[1]}" for one in result.loopback.requests if one.status == 429}
    return ", ".join(sorted(routes))


def count_finals_behind_previews(result: LoadResult) -> int:
    """Counts jobs with a preview sent after their end was stored. `stalled_row` counts the delayed finals."""
    previews = result.group_previews_by_job()
    finals_by_job = result.group_finals_by_job()
    return sum(
        any(result.stored_at.get(job, math.inf) + SLACK < one.received_at for one in previews.get(job, ()))
        for job in finals_by_job
    )


def kill_rows(outcomes: list[Outcome], points: int) -> list[FigureRow]:
    """The result rows of a bot killed at these points."""
    lost_points = [str(one.point) for one in outcomes if one.is_lost]
    duplicated_points = [str(one.point) for one in outcomes if one.is_duplicated]
    description = f"killed at {len(outcomes)} points of a job's life"
    return [
        FigureRow(
            "pictures lost by kill -9",
            len(lost_points),
            "= 0",
            "",
            "; ".join([description, *lost_points]),
            len(outcomes),
            points,
        ),
        FigureRow(
            "pictures posted twice by kill -9",
            len(duplicated_points),
            "= 0",
            "",
            "; ".join([description, *duplicated_points]),
            len(outcomes),
            points,
        ),
    ]


def _is_post(requests: list) -> int:
    return int(requests[0].method == "POST")


def _quantile(values: list[float], fraction: float) -> float:
    return values[min(len(values) - 1, int(fraction * len(values)))] if values else float("nan")


def measure_load(size: LoadSize) -> list[FigureRow]:
    """Measures a load in a new installation."""
    with tempfile.TemporaryDirectory() as folder:
        return load_rows(asyncio.run(run_load(Path(folder), size, _log)))


def measure_stalled(size: LoadSize, hang: float = HANG) -> list[FigureRow]:
    """Measures a load whose first edits hang."""
    with tempfile.TemporaryDirectory() as folder:
        return [
            stalled_row(
                asyncio.run(run_load(Path(folder), size, _log, partial(hang_first_edits, size.jobs, hang))), hang
            )
        ]


def measure_kills(points: tuple[KillPoint, ...]) -> list[FigureRow]:
    """Measures a bot that is killed at each point."""
    with tempfile.TemporaryDirectory() as folder:
        return kill_rows(asyncio.run(run_kills(Path(folder), points, _log)), len(points))


def main(args: list[str]) -> int:
    """Returns 0 even if a row misses its goal, like `darkroom bench`: the rows report misses."""
    parser = argparse.ArgumentParser(
        prog="darkroom bench discord",
        description=f"{__doc__} Rows that miss their goal say MISS (JSON: pass false); the exit code stays 0.",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    parser.add_argument("--finals", type=float, default=RATE, help="jobs that end in a second, at most")
    options = parser.parse_args(args)
    size, points = (LoadSize(100, 20, 5, 12.0, 14.0), QUICK_POINTS) if options.quick else (LoadSize(), POINTS)
    finals_per_second = min(options.finals, size.channels / 2)  # a channel sees one in two seconds at most
    load = replace(size, finals_per_second=finals_per_second)
    rows = [*measure_load(load), *measure_stalled(STALLED), *measure_kills(points)]
    print(format_json(rows) if options.json else format_table(rows))
    return 0


def _log(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
