"""`darkroom bench discord`: a busy evening over the loopback Discord, and a bot that is killed, as rows."""

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

from engine.bench.row import Row, as_json, as_table
from loopback.bench_kills import FEW, POINTS, Outcome, Point, kills
from loopback.bench_load import RATE, Evening, Size, evening
from loopback.habits import unexplained
from loopback.openapi import Judge
from loopback.troubles import EDITS, Troubles

SOON = 2.0  # seconds
STALLED = Size(jobs=10, channels=10, guilds=2, short=12.0, long=14.0, finals=5.0)
HANG = 25.0  # seconds that a stalled upload hangs before its line breaks: longer than the job
SLACK = 0.25  # seconds that a request which was under way at a job's end may still take to arrive


def load_rows(seen: Evening) -> list[Row]:
    """The claims of one evening."""
    first = sorted(1000 * (act.answered - act.sent) for act in seen.acts if act.answered)
    finals, size = seen.final_of(), seen.size
    waited = sorted(seen.stored[job] - at for job, at in seen.ended.items() if job in seen.stored)
    where = f"{size.jobs} jobs, {size.channels} channels, {size.guilds} guilds, ≤ {size.finals:g} finals a second"
    previews = [len(each) for each in seen.previews_of().values()]
    judge = Judge()
    for one in seen.loopback.asked:
        judge.hear(one.method, one.path, one.query, one.body, len(one.files))
    wrong = unexplained(judge.findings)
    of_answers, of_finals = ({"samples": len(each), "of": size.jobs} for each in (first, finals))
    of_requests = {"samples": len(seen.loopback.asked), "of": size.jobs}  # each job has one, at least
    return [
        Row("first answer, p50", _at(first, 0.5), "≤ 300", "ms", where, **of_answers),
        Row(
            "first answer, p99", _at(first, 0.99), "≤ 300", "ms", f"of {len(first)}, worst {_at(first, 1):.0f} ms",
            **of_answers,
        ),
        Row("429 caused by us", seen.loopback.rates.refused, "= 0", "", _refused(seen), **of_requests),
        Row("finals shown", len(finals), f"= {size.jobs}", "", f"{sum(map(_posted, finals.values()))} as notices"),
        Row("finals shown twice", sum(len(each) > 1 for each in finals.values()), "= 0", "", "", **of_finals),
        soon_row(seen, f"of it until it was stored: p50 {_at(waited, 0.5):.2f} s"),
        Row("finals behind a preview", behind(seen), "= 0", "", "", **of_finals),
        Row("previews per job", sum(previews) / size.jobs, "≥ 1", "", f"{sum(previews)} in all", **of_finals),
        Row("memory of the bot, most", seen.memory / 1e6, "≤ 400", "MB", "", **of_finals),
        Row("the bot's share of one core", _share(seen), "≤ 1", "", _shares(seen), **of_finals),
        Row("findings against Discord's description", len(wrong), "= 0", "", "; ".join(map(str, wrong)), **of_requests),
    ]  # fmt: skip


def soon_row(seen: Evening, note: str) -> Row:
    """The share of finals that were there in time; one that never came was not."""
    finals = seen.final_of()
    late = sorted(finals[job][0].done - at for job, at in seen.ended.items() if job in finals)
    told = f"p50 {_at(late, 0.5):.2f} s, p99 {_at(late, 0.99):.2f} s, worst {_at(late, 1):.2f} s; {note}"
    share = 100 * sum(each <= SOON for each in late) / seen.size.jobs
    return Row("finals within 2 s of the job's end", share, "≥ 99", "%", told, samples=len(late), of=seen.size.jobs)


def stalling(jobs: int, hang: float, troubles: Troubles) -> None:
    """The first edit of each job, which is one of its progress, hangs until the job is long over."""
    troubles.break_lines(path=EDITS, method="PATCH", times=jobs, delay=hang)


def stalled_row(seen: Evening, hang: float = HANG) -> Row:
    """Nothing that is only a preview may hold a final."""
    finals, met = seen.final_of(), sum(trouble.met for trouble in seen.loopback.troubles.orders)
    late = [finals[job][0].done - at if job in finals else math.inf for job, at in seen.ended.items()]
    held = sum(each > SOON for each in late) + seen.size.jobs - len(late)
    worst = f"the first {met} edits hang for {hang:.0f} s; worst final {max(late, default=math.inf):.2f} s"
    note = f"of {seen.size.jobs} jobs; {worst}"
    return Row("finals held by an edit that hangs", held, "= 0", "", note, samples=met, of=seen.size.jobs)


def _share(seen: Evening) -> float:
    return seen.cpu.get("bot", math.nan) / seen.seconds if seen.seconds else math.nan


def _shares(seen: Evening) -> str:
    """Who else had the machine: they all share it."""
    others = ", ".join(
        f"{who} {used / max(seen.seconds, 1e-9):.2f}" for who, used in sorted(seen.cpu.items()) if who != "bot"
    )
    return f"over {seen.seconds:.0f} s; beside it {others}; {os.cpu_count()} cores"


def _refused(seen: Evening) -> str:
    """Which addresses were asked too often."""
    asked = {f"{one.method} {one.path.split('/')[1]}" for one in seen.loopback.asked if one.status == 429}
    return ", ".join(sorted(asked))


def behind(seen: Evening) -> int:
    """Finals that a preview of the same job came after, once the job's end was stored: `stalled_row` has the others."""
    previews, finals = seen.previews_of(), seen.final_of()
    return sum(any(seen.stored.get(job, math.inf) + SLACK < one.at for one in previews.get(job, ())) for job in finals)


def kill_rows(outcomes: list[Outcome], points: int) -> list[Row]:
    """The claims about a bot that dies at so many points."""
    lost = [str(one.point) for one in outcomes if one.lost]
    twice = [str(one.point) for one in outcomes if one.twice]
    at = f"killed at {len(outcomes)} points of a job's life"
    return [
        Row("pictures lost by kill -9", len(lost), "= 0", "", "; ".join([at, *lost]), len(outcomes), points),
        Row("pictures posted twice by kill -9", len(twice), "= 0", "", "; ".join([at, *twice]), len(outcomes), points),
    ]


def _posted(requests: list) -> int:
    return int(requests[0].method == "POST")


def _at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def measure_load(size: Size) -> list[Row]:
    """An evening in an installation of its own."""
    with tempfile.TemporaryDirectory() as fresh:
        return load_rows(asyncio.run(evening(Path(fresh), size, _say)))


def measure_stalled(size: Size, hang: float = HANG) -> list[Row]:
    """One at which the first edits hang."""
    with tempfile.TemporaryDirectory() as fresh:
        return [stalled_row(asyncio.run(evening(Path(fresh), size, _say, partial(stalling, size.jobs, hang))), hang)]


def measure_kills(points: tuple[Point, ...]) -> list[Row]:
    """A bot that is killed."""
    with tempfile.TemporaryDirectory() as fresh:
        return kill_rows(asyncio.run(kills(Path(fresh), points, _say)), len(points))


def main(args: list[str]) -> int:
    """0 once it is measured, whatever was missed: as `darkroom bench`, whose rows say it themselves."""
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
    print(as_json(rows) if chosen.json else as_table(rows))
    return 0


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
