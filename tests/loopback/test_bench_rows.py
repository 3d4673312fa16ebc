"""What the figures of a busy evening are taken from: a final that an edit held, or that never came, is counted."""

from __future__ import annotations

import time

import pytest

from loopback.asked import Asked, File
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
from loopback.server import Loopback

JOBS = [f"01ARZ3NDEKTSV4RRFFQ69G5F{number:02}" for number in range(STALLED.jobs)]
EDIT = "/webhooks/1/token/messages/@original"


def shown(name: str, body: str, at: float, done: float) -> Asked:
    return Asked("PATCH", EDIT, {}, at, body, [File(name, b"")], 200, done)


def an_evening(took: float) -> Evening:
    """Every job ends at 100; its final is there `took` seconds later."""
    seen = Evening(STALLED, Loopback(clock=time.monotonic, judged=False))
    seen.ended = seen.stored = dict.fromkeys(JOBS, 100.0)
    stalling(STALLED.jobs, HANG, seen.loopback.troubles)
    for job in JOBS:
        assert seen.loopback.troubles.meet("PATCH", EDIT), "each job's first edit hangs"
        seen.loopback.asked.append(shown(f"darkroom-{job}.png", "", 100.0, 100.0 + took))
    assert not seen.loopback.troubles.meet("PATCH", EDIT), "and no other"
    return seen


def test_a_final_that_an_edit_held_is_a_miss_and_so_is_one_that_never_came() -> None:
    good = stalled_row(an_evening(0.5))
    assert good.passed
    assert "the first 10 edits hang for 25 s; worst final 0.50 s" in good.note
    held = stalled_row(an_evening(11.0))
    assert (held.passed, held.figure) == (False, STALLED.jobs)
    lost = an_evening(0.5)
    lost.loopback.asked.pop()
    assert (stalled_row(lost).passed, stalled_row(lost).figure) == (False, 1)
    untold = an_evening(0.5)
    untold.ended = dict(list(untold.ended.items())[1:])
    assert stalled_row(untold).figure == 1


def test_a_preview_that_comes_after_the_end_is_counted() -> None:
    seen = an_evening(0.5)
    assert behind(seen) == 0
    seen.loopback.asked.append(shown("developing.jpg", JOBS[3], 101.0, 101.1))
    assert behind(seen) == 1


def test_an_evening_at_which_nothing_happened_passes_nothing() -> None:
    rows = load_rows(Evening(STALLED, Loopback(clock=time.monotonic, judged=False)))
    assert [row.name for row in rows if row.passed] == []
    shown = next(row for row in rows if row.name == "finals shown")
    assert [row.name for row in rows if row.figure is not None] == [shown.name]
    assert not any(row.passed for row in kill_rows([], len(FEW)))
    assert not stalled_row(Evening(STALLED, Loopback(clock=time.monotonic, judged=False))).passed


def test_nine_finals_of_ten_are_a_miss_of_all_that_is_said_of_finals() -> None:
    seen = an_evening(0.5)
    assert {row.name: row for row in load_rows(seen)}["finals within 2 s of the job's end"].passed
    seen.loopback.asked.pop()
    rows = [row for row in load_rows(seen) if row.name.startswith("finals") and row.name != "finals shown"]
    assert len(rows) == 3
    assert not any(row.passed for row in rows)
    assert all("only 9 of 10 were measured" in row.remark for row in rows)


@pytest.mark.timeout(300)
@pytest.mark.may_block("it opens folders and starts processes, as a command does")
def test_a_short_evening_measures_every_row() -> None:
    rows = measure_load(Size(jobs=6, channels=3, guilds=2, short=2.0, long=3.0, finals=5.0, after=0.5))
    rows += measure_stalled(Size(jobs=2, channels=2, guilds=1, short=2.0, long=3.0, finals=5.0, after=0.0), hang=5.0)
    assert [row.name for row in rows if row.figure is None or row.samples < row.of] == []


def test_one_point_of_the_killings_is_away_for_long() -> None:
    assert [str(one) for one in POINTS if one.busy] == ["notice took effect, then a long time in a busy channel"]
    assert not any(one.busy for one in FEW)


def test_the_help_says_what_the_exit_code_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "the exit code stays 0" in " ".join(capsys.readouterr().out.split())
