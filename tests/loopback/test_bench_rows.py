"""The result rows of a busy evening count finals that an edit delayed and finals that never came."""

from __future__ import annotations

import time

import pytest

from loopback.bench import (
    HANG,
    STALLED,
    behind,
    kill_rows,
    load_rows,
    main,
    measure_load,
    measure_stalled,
    stalled_row,
    stalling,
)
from loopback.bench_kills import FEW, POINTS
from loopback.bench_load import Evening, Size
from loopback.recorded_request import Asked, File
from loopback.server import Loopback

JOBS = [f"01ARZ3NDEKTSV4RRFFQ69G5F{number:02}" for number in range(STALLED.jobs)]
EDIT = "/webhooks/1/token/messages/@original"


def record_edit(name: str, body: str, at: float, done: float) -> Asked:
    return Asked("PATCH", EDIT, {}, at, body, [File(name, b"")], 200, done)


def make_evening(took: float) -> Evening:
    """Every job ends at 100; its final arrives `took` seconds later."""
    result = Evening(STALLED, Loopback(clock=time.monotonic, judged=False))
    result.ended = result.stored = dict.fromkeys(JOBS, 100.0)
    stalling(STALLED.jobs, HANG, result.loopback.troubles)
    for job in JOBS:
        assert result.loopback.troubles.meet("PATCH", EDIT), "each job's first edit hangs"
        result.loopback.asked.append(record_edit(f"darkroom-{job}.png", "", 100.0, 100.0 + took))
    assert not result.loopback.troubles.meet("PATCH", EDIT), "no other edit hangs"
    return result


def test_a_delayed_final_and_a_missing_final_both_miss_the_goal() -> None:
    good = stalled_row(make_evening(0.5))
    assert good.meets_goal
    assert "the first 10 edits hang for 25 s; worst final 0.50 s" in good.note
    late = stalled_row(make_evening(11.0))
    assert (late.meets_goal, late.figure) == (False, STALLED.jobs)
    missing = make_evening(0.5)
    missing.loopback.asked.pop()
    assert (stalled_row(missing).meets_goal, stalled_row(missing).figure) == (False, 1)
    without_end = make_evening(0.5)
    without_end.ended = dict(list(without_end.ended.items())[1:])
    assert stalled_row(without_end).figure == 1


def test_a_preview_after_the_end_is_counted() -> None:
    result = make_evening(0.5)
    assert behind(result) == 0
    result.loopback.asked.append(record_edit("developing.jpg", JOBS[3], 101.0, 101.1))
    assert behind(result) == 1


def test_an_evening_without_events_passes_no_row() -> None:
    rows = load_rows(Evening(STALLED, Loopback(clock=time.monotonic, judged=False)))
    assert [row.name for row in rows if row.meets_goal] == []
    shown_row = next(row for row in rows if row.name == "finals shown")
    assert [row.name for row in rows if row.figure is not None] == [shown_row.name]
    assert not any(row.meets_goal for row in kill_rows([], len(FEW)))
    assert not stalled_row(Evening(STALLED, Loopback(clock=time.monotonic, judged=False))).meets_goal


def test_with_nine_finals_of_ten_every_row_about_finals_misses() -> None:
    result = make_evening(0.5)
    assert {row.name: row for row in load_rows(result)}["finals within 2 s of the job's end"].meets_goal
    result.loopback.asked.pop()
    rows = [row for row in load_rows(result) if row.name.startswith("finals") and row.name != "finals shown"]
    assert len(rows) == 3
    assert not any(row.meets_goal for row in rows)
    assert all("only 9 of 10 were measured" in row.remark for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.may_block("it opens folders and starts processes, as a command does")
def test_a_short_evening_measures_every_row() -> None:
    rows = measure_load(Size(jobs=6, channels=3, guilds=2, short=2.0, long=3.0, finals=5.0, after=0.5))
    rows += measure_stalled(Size(jobs=2, channels=2, guilds=1, short=2.0, long=3.0, finals=5.0, after=0.0), hang=5.0)
    assert [row.name for row in rows if row.figure is None or row.samples < row.planned] == []


def test_one_kill_point_keeps_the_bot_down_for_long() -> None:
    assert [str(one) for one in POINTS if one.busy] == ["notice took effect, then a long time in a busy channel"]
    assert not any(one.busy for one in FEW)


def test_the_help_says_what_the_exit_code_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "the exit code stays 0" in " ".join(capsys.readouterr().out.split())
