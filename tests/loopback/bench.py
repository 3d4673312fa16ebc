"""`darkroom bench discord`: a busy evening over the loopback Discord, and a bot that is killed, as rows."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from engine.bench.row import Row, as_json, as_table
from loopback.bench_kills import FEW, POINTS, Outcome, kills
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
    finals = seen.final_of()
    late = {job: finals[job][0].done - at for job, at in seen.ended.items() if job in finals}
    waited = sorted(seen.stored[job] - at for job, at in seen.ended.items() if job in seen.stored)
    size = seen.size
    where = f"{size.jobs} jobs, {size.channels} channels, {size.guilds} guilds, ≤ {size.finals:g} finals a second"
    previews = [len(each) for each in seen.previews_of().values()]
    judge = Judge()
    for one in seen.loopback.asked:
        judge.hear(one.method, one.path, one.query, one.body, len(one.files))
    wrong = unexplained(judge.findings)
    return [
        Row("first answer, p50", _at(first, 0.5), "≤ 300", "ms", where),
        Row("first answer, p99", _at(first, 0.99), "≤ 300", "ms", f"of {len(first)}, worst {_at(first, 1):.0f} ms"),
        Row("429 caused by us", seen.loopback.rates.refused, "= 0", "", _refused(seen)),
        Row("finals shown", len(finals), f"= {seen.size.jobs}", "", f"{sum(map(_posted, finals.values()))} as notices"),
        Row("finals shown twice", sum(len(each) > 1 for each in finals.values()), "= 0", ""),
        Row(
            "finals later than 2 s", sum(each > SOON for each in late.values()), "= 0", "",
            f"p50 {_at(sorted(late.values()), 0.5):.2f} s, p99 {_at(sorted(late.values()), 0.99):.2f} s, "
            f"worst {max(late.values(), default=0.0):.2f} s; of it until it was stored: p50 {_at(waited, 0.5):.2f} s",
        ),
        Row("finals behind a preview", behind(seen), "= 0", ""),
        Row("previews per job", statistics.mean(previews or [0]), "≥ 1", "", f"{sum(previews)} in all"),
        Row("memory of the bot, most", seen.memory / 1e6, "≤ 400", "MB"),
        Row("the bot's share of one core", seen.cpu["bot"] / seen.seconds, "≤ 1", "", _shares(seen)),
        Row("findings against Discord's description", len(wrong), "= 0", "", "; ".join(map(str, wrong))),
    ]  # fmt: skip


def stalling(troubles: Troubles) -> None:
    """The first edit of each job, which is one of its progress, hangs until the job is long over."""
    troubles.break_lines(path=EDITS, method="PATCH", times=STALLED.jobs, delay=HANG)


def stalled_row(seen: Evening) -> Row:
    """Nothing that is only a preview may hold a final."""
    finals, met = seen.final_of(), sum(trouble.met for trouble in seen.loopback.troubles.orders)
    late = [finals[job][0].done - at if job in finals else math.inf for job, at in seen.ended.items()]
    held = sum(each > SOON for each in late) + seen.size.jobs - len(late)
    worst = f"the first {met} edits hang for {HANG:.0f} s; worst final {max(late, default=math.inf):.2f} s"
    return Row("finals held by an edit that hangs", held, "= 0", "", f"of {seen.size.jobs} jobs; {worst}")


def _shares(seen: Evening) -> str:
    """Who else had the machine: they all share it."""
    others = ", ".join(f"{who} {used / seen.seconds:.2f}" for who, used in sorted(seen.cpu.items()) if who != "bot")
    return f"over {seen.seconds:.0f} s; beside it {others}; {os.cpu_count()} cores"


def _refused(seen: Evening) -> str:
    """Which addresses were asked too often."""
    asked = {f"{one.method} {one.path.split('/')[1]}" for one in seen.loopback.asked if one.status == 429}
    return ", ".join(sorted(asked))


def behind(seen: Evening) -> int:
    """Finals that a preview of the same job came after, once the job's end was stored: `stalled_row` has the others."""
    previews, finals = seen.previews_of(), seen.final_of()
    return sum(any(seen.stored.get(job, math.inf) + SLACK < one.at for one in previews.get(job, ())) for job in finals)


def kill_rows(outcomes: list[Outcome]) -> list[Row]:
    """The claims about a bot that dies."""
    lost = [str(one.point) for one in outcomes if one.lost]
    twice = [str(one.point) for one in outcomes if one.twice]
    at = f"killed at {len(outcomes)} points of a job's life"
    return [
        Row("pictures lost by kill -9", len(lost), "= 0", "", "; ".join([at, *lost])),
        Row("pictures posted twice by kill -9", len(twice), "= 0", "", "; ".join([at, *twice])),
    ]


def _posted(requests: list) -> int:
    return int(requests[0].method == "POST")


def _at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


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
    size = Size(jobs=100, channels=20, guilds=5, short=12.0, long=14.0) if chosen.quick else Size()
    finals = min(chosen.finals, size.channels / 2)  # a channel sees one in two seconds at most
    size = replace(size, finals=finals)
    with tempfile.TemporaryDirectory() as fresh:
        rows = load_rows(asyncio.run(evening(Path(fresh), size, _say)))
    with tempfile.TemporaryDirectory() as fresh:
        rows.append(stalled_row(asyncio.run(evening(Path(fresh), STALLED, _say, stalling))))
    with tempfile.TemporaryDirectory() as fresh:
        rows += kill_rows(asyncio.run(kills(Path(fresh), FEW if chosen.quick else POINTS, _say)))
    print(as_json(rows) if chosen.json else as_table(rows))
    return 0


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
