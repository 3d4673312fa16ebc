"""`darkroom bench discord`: result rows of a busy evening on the loopback Discord and of a killed bot."""

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
from loopback.bench_kills import FEW, POINTS, Outcome, Point, kills
from loopback.bench_load import RATE, Evening, Size, evening
from loopback.faults import EDITS, Troubles
from loopback.known_deviations import unexplained
from loopback.openapi import Judge

SOON = 2.0  # seconds
STALLED = Size(jobs=10, channels=10, guilds=2, short=12.0, long=14.0, finals=5.0)
HANG = 25.0  # seconds that a stalled upload hangs before its line breaks: longer than the job
SLACK = 0.25  # seconds that a request already sent at a job's end may still take to arrive


def load_rows(result: Evening) -> list[FigureRow]:
    """The result rows of one evening."""
    answer_times = sorted(1000 * (act.answered - act.sent) for act in result.acts if act.answered)
    finals, size = result.final_of(), result.size
    store_delays = sorted(result.stored[job] - at for job, at in result.ended.items() if job in result.stored)
    where = f"{size.jobs} jobs, {size.channels} channels, {size.guilds} guilds, ≤ {size.finals:g} finals a second"
    previews = [len(each) for each in result.previews_of().values()]
    judge = Judge()
    for one in result.loopback.asked:
        judge.hear(one.method, one.path, one.query, one.body, len(one.files))
    wrong = unexplained(judge.findings)
    of_answers, of_finals = ({"samples": len(each), "planned": size.jobs} for each in (answer_times, finals))
    of_requests = {"samples": len(result.loopback.asked), "planned": size.jobs}  # each job has one, at least
    return [
        FigureRow("first answer, p50", _quantile(answer_times, 0.5), "≤ 300", "ms", where, **of_answers),
        FigureRow(
            "first answer, p99", _quantile(answer_times, 0.99), "≤ 300", "ms",
            f"of {len(answer_times)}, worst {_quantile(answer_times, 1):.0f} ms", **of_answers,
        ),
        FigureRow(
            "429 caused by us", result.loopback.rates.refused, "= 0", "", _list_limited_routes(result), **of_requests
        ),
        FigureRow(
            "finals shown", len(finals), f"= {size.jobs}", "", f"{sum(map(_is_post, finals.values()))} as notices"
        ),
        FigureRow("finals shown twice", sum(len(each) > 1 for each in finals.values()), "= 0", "", "", **of_finals),
        soon_row(result, f"of it until it was stored: p50 {_quantile(store_delays, 0.5):.2f} s"),
        FigureRow("finals behind a preview", behind(result), "= 0", "", "", **of_finals),
        FigureRow("previews per job", sum(previews) / size.jobs, "≥ 1", "", f"{sum(previews)} in all", **of_finals),
        FigureRow("memory of the bot, most", result.memory / 1e6, "≤ 400", "MB", "", **of_finals),
        FigureRow("the bot's share of one core", _cpu_share(result), "≤ 1", "", _describe_shares(result), **of_finals),
        FigureRow(
            "findings against Discord's description", len(wrong), "= 0", "", "; ".join(map(str, wrong)), **of_requests
        ),
    ]  # fmt: skip


def soon_row(result: Evening, note: str) -> FigureRow:
    """The share of finals that arrived in time. A missing final counts as late."""
    finals = result.final_of()
    delays = sorted(finals[job][0].done - at for job, at in result.ended.items() if job in finals)
    summary = (
        f"p50 {_quantile(delays, 0.5):.2f} s, p99 {_quantile(delays, 0.99):.2f} s, "
        f"worst {_quantile(delays, 1):.2f} s; {note}"
    )
    share = 100 * sum(each <= SOON for each in delays) / result.size.jobs
    return FigureRow(
        "finals within 2 s of the job's end", share, "≥ 99", "%", summary, samples=len(delays), planned=result.size.jobs
    )


def stalling(jobs: int, hang: float, troubles: Troubles) -> None:
    """Makes the first edit of each job, a progress edit, hang until well after the job's end."""
    troubles.break_lines(path=EDITS, method="PATCH", times=jobs, delay=hang)


def stalled_row(result: Evening, hang: float = HANG) -> FigureRow:
    """The row that counts finals delayed by a preview; none may be."""
    finals, hung = result.final_of(), sum(trouble.met for trouble in result.loopback.troubles.orders)
    delays = [finals[job][0].done - at if job in finals else math.inf for job, at in result.ended.items()]
    missed = sum(each > SOON for each in delays) + result.size.jobs - len(delays)
    worst = f"the first {hung} edits hang for {hang:.0f} s; worst final {max(delays, default=math.inf):.2f} s"
    note = f"of {result.size.jobs} jobs; {worst}"
    return FigureRow(
        "finals held by an edit that hangs", missed, "= 0", "", note, samples=hung, planned=result.size.jobs
    )


def _cpu_share(result: Evening) -> float:
    return result.cpu.get("bot", math.nan) / result.seconds if result.seconds else math.nan


def _describe_shares(result: Evening) -> str:
    """The CPU use of the other processes, which share the machine with the bot."""
    others = ", ".join(
        f"{who} {used / max(result.seconds, 1e-9):.2f}" for who, used in sorted(result.cpu.items()) if who != "bot"
    )
    return f"over {result.seconds:.0f} s; beside it {others}; {os.cpu_count()} cores"


def _list_limited_routes(result: Evening) -> str:
    """The routes that answered 429."""
    routes = {f"{one.method} {one.path.split('/')[1]}" for one in result.loopback.asked if one.status == 429}
    return ", ".join(sorted(routes))


def behind(got: Evening) -> int:
    """Counts jobs with a preview sent after their end was stored. `stalled_row` counts the delayed finals."""
    previews, finals = got.previews_of(), got.final_of()
    return sum(any(got.stored.get(job, math.inf) + SLACK < one.at for one in previews.get(job, ())) for job in finals)


def kill_rows(outcomes: list[Outcome], points: int) -> list[FigureRow]:
    """The result rows of a bot killed at these points."""
    lost = [str(one.point) for one in outcomes if one.lost]
    twice = [str(one.point) for one in outcomes if one.twice]
    at = f"killed at {len(outcomes)} points of a job's life"
    return [
        FigureRow("pictures lost by kill -9", len(lost), "= 0", "", "; ".join([at, *lost]), len(outcomes), points),
        FigureRow(
            "pictures posted twice by kill -9", len(twice), "= 0", "", "; ".join([at, *twice]), len(outcomes), points
        ),
    ]


def _is_post(requests: list) -> int:
    return int(requests[0].method == "POST")


def _quantile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def measure_load(size: Size) -> list[FigureRow]:
    """Measures an evening in a fresh installation."""
    with tempfile.TemporaryDirectory() as fresh:
        return load_rows(asyncio.run(evening(Path(fresh), size, _log)))


def measure_stalled(size: Size, hang: float = HANG) -> list[FigureRow]:
    """Measures an evening on which the first edits hang."""
    with tempfile.TemporaryDirectory() as fresh:
        return [stalled_row(asyncio.run(evening(Path(fresh), size, _log, partial(stalling, size.jobs, hang))), hang)]


def measure_kills(points: tuple[Point, ...]) -> list[FigureRow]:
    """Measures a bot that is killed at each point."""
    with tempfile.TemporaryDirectory() as fresh:
        return kill_rows(asyncio.run(kills(Path(fresh), points, _log)), len(points))


def main(args: list[str]) -> int:
    """Returns 0 even if a row misses its goal, like `darkroom bench`: the rows report misses."""
    parser = argparse.ArgumentParser(
        prog="darkroom bench discord",
        description=f"{__doc__} Rows that miss their goal say MISS (JSON: pass false); the exit code stays 0.",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    parser.add_argument("--finals", type=float, default=RATE, help="jobs that end in a second, at most")
    chosen = parser.parse_args(args)
    size, points = (Size(100, 20, 5, 12.0, 14.0), FEW) if chosen.quick else (Size(), POINTS)
    finals = min(chosen.finals, size.channels / 2)  # a channel sees one in two seconds at most
    rows = [*measure_load(replace(size, finals=finals)), *measure_stalled(STALLED), *measure_kills(points)]
    print(format_json(rows) if chosen.json else format_table(rows))
    return 0


def _log(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
