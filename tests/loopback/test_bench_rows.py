"""The result rows of a load count delayed finals and missing finals."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from tools.loopback import bench
from tools.loopback.bench import (
    HANG,
    STALLED,
    count_finals_behind_previews,
    hang_first_edits,
    kill_rows,
    load_rows,
    main,
    measure_load,
    measure_stalled,
    stalled_row,
)
from tools.loopback.bench_kills import POINTS, QUICK_POINTS
from tools.loopback.bench_load import LoadResult, LoadSize
from tools.loopback.bench_steer import SHOWN_TIMEOUT, SteeredMessage, build_row
from tools.loopback.recorded_request import File, RecordedRequest
from tools.loopback.server import Loopback

if TYPE_CHECKING:
    from tools.loopback.members import Act

JOBS = [f"01ARZ3NDEKTSV4RRFFQ69G5F{number:02}" for number in range(STALLED.jobs)]
EDIT = "/webhooks/1/token/messages/@original"


def record_edit(name: str, body: str, received_at: float, answered_at: float) -> RecordedRequest:
    return RecordedRequest("PATCH", EDIT, {}, received_at, body, [File(name, b"")], 200, answered_at)


def make_result(duration: float) -> LoadResult:
    """Every job ends at 100; its final arrives `duration` seconds later."""
    result = LoadResult(STALLED, Loopback(clock=time.monotonic, validates=False))
    result.ended_at = result.stored_at = dict.fromkeys(JOBS, 100.0)
    hang_first_edits(STALLED.jobs, HANG, result.loopback.faults)
    for job in JOBS:
        assert result.loopback.faults.find_fault("PATCH", EDIT), "each job's first edit hangs"
        result.loopback.requests.append(record_edit(f"darkroom-{job}.png", "", 100.0, 100.0 + duration))
    assert not result.loopback.faults.find_fault("PATCH", EDIT), "no other edit hangs"
    return result


def test_a_delayed_final_and_a_missing_final_both_miss_the_goal() -> None:
    good_row = stalled_row(make_result(0.5))
    assert good_row.meets_goal
    assert "the first 10 edits hang for 25 s; worst final 0.50 s" in good_row.note
    late_row = stalled_row(make_result(11.0))
    assert (late_row.meets_goal, late_row.figure) == (False, STALLED.jobs)
    result_without_final = make_result(0.5)
    result_without_final.loopback.requests.pop()
    assert (stalled_row(result_without_final).meets_goal, stalled_row(result_without_final).figure) == (False, 1)
    without_end = make_result(0.5)
    without_end.ended_at = dict(list(without_end.ended_at.items())[1:])
    assert stalled_row(without_end).figure == 1


def test_a_preview_after_the_end_is_counted() -> None:
    result = make_result(0.5)
    assert count_finals_behind_previews(result) == 0
    result.loopback.requests.append(record_edit("developing.jpg", JOBS[3], 101.0, 101.1))
    assert count_finals_behind_previews(result) == 1


def test_an_evening_without_events_passes_no_row() -> None:
    rows = load_rows(LoadResult(STALLED, Loopback(clock=time.monotonic, validates=False)))
    assert [row.name for row in rows if row.meets_goal] == []
    shown_row = next(row for row in rows if row.name == "finals shown")
    assert [row.name for row in rows if row.figure is not None] == [shown_row.name]
    assert not any(row.meets_goal for row in kill_rows([], len(QUICK_POINTS)))
    assert not stalled_row(LoadResult(STALLED, Loopback(clock=time.monotonic, validates=False))).meets_goal


def test_with_nine_finals_of_ten_every_row_about_finals_misses() -> None:
    result = make_result(0.5)
    assert {row.name: row for row in load_rows(result)}["finals within 2 s of the job's end"].meets_goal
    result.loopback.requests.pop()
    rows = [row for row in load_rows(result) if row.name.startswith("finals") and row.name != "finals shown"]
    assert len(rows) == 3
    assert not any(row.meets_goal for row in rows)
    assert all("only 9 of 10 were measured" in row.remark for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.may_block("it opens folders and starts processes, as a command does")
def test_a_short_evening_measures_every_row() -> None:
    rows = measure_load(
        LoadSize(
            jobs=6, channels=3, guilds=2, short_seconds=2.0, long_seconds=3.0, finals_per_second=5.0, duplicate_wait=0.5
        )
    )
    rows += measure_stalled(
        LoadSize(
            jobs=2, channels=2, guilds=1, short_seconds=2.0, long_seconds=3.0, finals_per_second=5.0, duplicate_wait=0.0
        ),
        hang=5.0,
    )
    assert [row.name for row in rows if row.figure is None or row.samples < row.planned] == []


def test_one_kill_point_keeps_the_bot_down_for_long() -> None:
    assert [str(one) for one in POINTS if one.is_busy] == ["notice took effect, then a long time in a busy channel"]
    assert not any(one.is_busy for one in QUICK_POINTS)


def test_the_command_measures_what_its_options_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[object] = []
    for name in ("measure_load", "measure_stalled", "measure_kills"):
        monkeypatch.setattr(bench, name, lambda argument: measured.append(argument) or [])
    assert main(["--quick", "--json", "--finals", "3"]) == 0
    assert measured == [LoadSize(100, 20, 5, 12.0, 14.0, finals_per_second=3.0), STALLED, QUICK_POINTS]
    measured.clear()
    assert main(["--finals", "1000"]) == 0
    assert measured[0] == LoadSize(finals_per_second=LoadSize().channels / 2)
    assert capsys.readouterr().out.startswith("[]")


def test_the_help_says_what_the_exit_code_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "the exit code stays 0" in " ".join(capsys.readouterr().out.split())


def test_a_change_counts_as_shown_by_the_first_edit_with_a_picture_of_a_later_step() -> None:
    steered = SteeredMessage(Loopback(clock=time.monotonic, validates=False))
    steered.acts = [cast("Act", SimpleNamespace(sent_at=sent_at)) for sent_at in (10.0, 20.0)]
    steered.steps = [40, 80]
    for step, answered_at, has_file in ((40, 10.5, True), (41, 11.0, False), (43, 12.0, True), (70, 21.0, True)):
        edit = record_edit("developing.jpg", cast("str", {"content": f"30 % · step {step} of 100"}), 0.0, answered_at)
        steered.loopback.requests.append(edit if has_file else replace(edit, files=[]))
    assert steered.measure_delays() == [2.0, SHOWN_TIMEOUT]
    assert not build_row(steered, 2).meets_goal
    steered.acts, steered.steps = steered.acts[:1], steered.steps[:1]
    assert build_row(steered, 1).meets_goal
    assert not build_row(steered, 2).meets_goal, "a press that changed nothing"
