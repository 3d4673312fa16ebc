"""`darkroom bench steer`: its page reader, its rows, and scripts that come out again on a small network."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import msgspec
import pytest
import torch

from benchmarks.steering import replays
from benchmarks.steering.replays import MODELS, draw_script, has_same_latents, measure_replays
from benchmarks.steering.steered_jobs import PageReader, Response, build_row, build_rows
from engine.contract import Amendment, DropImages, list_final_images


def event(name: str, **payload: Any) -> bytes:
    """Returns an event as the stream has it."""
    return f"event: {name}\r\ndata: {json.dumps(payload)}".encode()


def test_a_page_reader_finds_the_first_frame_that_shows_a_change() -> None:
    reader = PageReader()
    frames = {"1": "…"}
    reader.take_event(event("frame", id="a", step=4, frames=frames), 1.0)
    waiting = {"number": 1, "state": "waiting", "step": None, "reason": ""}
    reader.take_event(event("steered", id="a", amendment=waiting), 1.1)
    assert not reader.answers
    reader.take_event(event("steered", id="a", amendment=waiting | {"state": "made", "step": 5}), 1.2)
    assert reader.answers == {("a", 1): (1.2, 5)}
    reader.take_event(event("frame", id="a", step=5, frames=frames), 1.3)
    assert reader.find_frame_after("a", 5) is None, "step 5 is the sixth"
    reader.take_event(event("frame", id="a", step=7, frames={}), 1.4)
    assert reader.find_frame_after("a", 5) is None, "no picture"
    reader.take_event(event("frame", id="a", step=8, frames=frames), 1.5)
    assert reader.find_frame_after("a", 5) == 1.5
    reader.take_event(event("job", id="a", state="finished"), 1.6)
    assert reader.ended == {"a"}


def test_a_pace_is_steps_a_second_in_its_window() -> None:
    reader = PageReader()
    for second in range(10):
        reader.take_event(event("frame", id="a", step=4 * second, frames={"1": "…"}), float(second))
    pace = reader.measure_pace("a", 2.0, 8.0)
    assert pace is not None
    assert pace == pytest.approx(4.0)
    assert reader.measure_pace("a", 2.0, 3.0) is None, "two frames say too little"


def test_rows_pass_only_with_every_press_followed_in_time() -> None:
    step_row, frame_row = build_rows([Response(0.1, 0.3), Response(0.15, 0.4)], [0.1, 0.1], 2)
    assert step_row.figure == pytest.approx(0.15 / 0.15)
    assert step_row.meets_goal
    assert frame_row.meets_goal
    assert not any(row.meets_goal for row in build_rows([Response(0.1, 0.3)], [0.1], 2))
    assert not any(row.meets_goal for row in build_rows([Response(0.5, 0.9)], [0.1], 1))
    assert [row.figure for row in build_rows([], [], 2)] == [None, None]


def test_throughput_is_that_of_the_same_jobs_without_changes() -> None:
    row = build_row([4.8, 4.8], [5.0, 5.0], 16, 4)
    assert row.figure == pytest.approx(0.96)
    assert row.meets_goal
    assert not build_row([4.0, 4.0], [5.0, 5.0], 16, 4).meets_goal
    assert build_row([], [5.0], 0, 2).figure is None


def test_latents_that_differ_or_lack_do_not_count_as_equal() -> None:
    recipe = msgspec.structs.replace(draw_script(MODELS[0][0], Random(1)).recipe, count=2)
    recipe = msgspec.structs.replace(recipe, amendments=(Amendment(1, 3, DropImages((0,))),))
    assert list_final_images(recipe) == (1,)
    one = {1: torch.zeros(2)}
    assert has_same_latents(recipe, one, {1: torch.zeros(2)})
    assert not has_same_latents(recipe, one, {1: torch.tensor([0.0, 1e-7])})
    assert not has_same_latents(recipe, one, {})
    assert not has_same_latents(recipe, one | {0: torch.zeros(2)}, one | {0: torch.zeros(2)})


@pytest.mark.slow
def test_scripts_come_out_again_on_a_small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "MODELS", ((MODELS[0][0], 9, 4),))
    row = measure_replays(quick=True)
    assert (row.figure, row.samples) == (4, 4)
    assert row.meets_goal
