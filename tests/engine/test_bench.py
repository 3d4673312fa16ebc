"""The benchmarks measure what they say: equal loads, both sides on equal weights, rows that cannot be measured.

Their figures are not tested: a slow machine misses a goal, and breaks no build.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from engine.bench import card, moving, network, overhead, previews, throughput, users
from engine.bench.crowd import MIXTURE, Load, serve_in_turn, serve_together
from engine.bench.users import Measured
from engine.families.embedded import assemble
from engine.families.stable_diffusion import StableDiffusion
from engine.job import Recipe, row_steps

BRIEF = Load(4, "float32", users=2)
SMALL = {
    "sample_size": 8, "block_out_channels": (32, 64), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own


@pytest.fixture(scope="module")
def rival() -> Any:
    return assemble()


def recipes(load: Load, family: Any) -> list[Recipe]:
    return [job.task for job in load.jobs(family) if isinstance(job.task, Recipe)]


def test_a_mixed_load_has_as_many_row_steps_as_one_of_one_kind(embedded: StableDiffusion) -> None:
    load, other = Load(50, "float32"), Load(50, "float32", mixed=True)
    assert sum(map(row_steps, recipes(load, embedded))) == sum(map(row_steps, recipes(other, embedded)))
    kinds = recipes(other, embedded)
    assert len({each.sampler for each in kinds}) == 5
    assert len({each.steps for each in kinds}) >= 5
    assert {each.guidance == 1.0 for each in kinds} == {True, False}
    assert len(MIXTURE) == 8


def test_what_begins_with_a_picture_runs_as_many_steps(embedded: StableDiffusion) -> None:
    load, other = Load(50, "float32"), Load(50, "float32", begun=True)
    assert sum(map(row_steps, recipes(load, embedded))) == sum(map(row_steps, recipes(other, embedded)))


def test_both_sides_are_measured(embedded: StableDiffusion, rival: Any) -> None:
    assert serve_together(embedded, BRIEF) > 0
    assert serve_in_turn(rival, embedded, BRIEF) > 0
    assert throughput.faster(rival, embedded, BRIEF, rounds=1) > 0
    assert network.gain(embedded, "float32", rounds=1) > 0
    assert network.clock(network.ours(embedded, 2, "float32")) > 0
    for row in (figure(embedded, BRIEF) for figure in (throughput.interval, throughput.mixed, throughput.begun)):
        assert row.figure is not None
        assert row.figure > 0


def test_everybody_s_preview_is_waited_for(embedded: StableDiffusion, rival: Any) -> None:
    load = Load(10, "float32", users=3)
    ours, theirs = previews.together(embedded, load), previews.in_turn(rival, embedded, load)
    assert len(ours) == len(theirs) == 3
    assert theirs[-1] > theirs[0] > 0  # whoever comes later waits for whole jobs
    assert not rival._interrupt or rival("cat", num_inference_steps=1, output_type="latent")


def test_overheads_and_cancelling(embedded: StableDiffusion) -> None:
    for row in (overhead.outside_the_network(embedded, Load(12, "float32")), overhead.watched(embedded, BRIEF)):
        assert row.figure is not None
    assert overhead.cancelled(embedded, BRIEF).figure == 0
    beside = overhead.beside_a_flood(embedded, Load(2, "float32", users=2), {1: 1.0, 2: 1.5, 4: 2.5})
    assert beside.figure is not None
    assert beside.figure > 0.5


def test_a_killed_picture_is_the_same(embedded: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "KILLS", 2)
    exact, worst = moving.moving_rows(embedded, BRIEF)
    assert (exact.figure, exact.passed) == (2, True)
    assert worst.figure is not None
    assert worst.figure > 60
    one, other = torch.zeros(16, 8, 8), torch.ones(16, 8, 8)
    assert moving.psnr(embedded, one, one) == moving.FAR > moving.psnr(embedded, one, other)


def test_without_a_card_its_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = card.card_rows(lambda sentence: None)
    assert [row.name for row in rows] == [name for name, _ in card.GOALS]
    assert all(row.figure is None and not row.passed and row.note == card.NO_CARD for row in rows)


def test_what_a_card_would_run_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The very code, with small networks on the processor; and without a compiler, which takes a minute."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = card.measured(
        lambda: card.made("cpu", SMALL, {"block_out_channels": (32, 32)}),
        lambda: card.made("cpu", SMALL, {"block_out_channels": (32, 32)}), Load(2, "float32", users=2),
    )  # fmt: skip
    assert [row.goal for row in rows] == [goal for _, goal in card.GOALS]
    assert rows[0].figure is not None
    assert rows[2].figure is not None
    assert (rows[1].figure, "compiler" in rows[1].note) == (None, True)


def test_the_plot_shows_both(tmp_path: Path) -> None:
    found = [Measured(each, (1.0 + each, 0.1), (2.0, 0.1 * each)) for each in users.CROWDS]
    users.plot(found, tmp_path / "plot.png", "told")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (2 * users.PANEL[0] + users.GAP, users.PANEL[1] + 44)
        colours = {colour for _, colour in image.convert("RGB").getcolors(10_000) or []}
    assert len(colours) > 4


@pytest.mark.parametrize(("top", "marks"), [(1.0, 6), (7.3, 4), (0.042, 5), (230.0, 5)])
def test_axes_have_a_few_round_numbers(top: float, marks: int) -> None:
    found = users._marks(top)
    assert (found[0], len(found)) == (0, marks)
    assert found[-1] <= top
