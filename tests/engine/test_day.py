"""The simulated day: equal for equal seeds, complete in both orders, and at its goals."""

from __future__ import annotations

import math
import sys

import pytest

from engine.bench.arrivals import DAY, Arrival, day
from engine.bench.day import compared, day_rows, fairness, filled, jain, percentile
from engine.bench.simulated import LIMIT, InTurn, Together, alone, forward_ms

ARRIVALS = day(3)[:400]


def test_a_day_is_in_order_and_the_same_for_its_seed() -> None:
    arrivals = day(3)
    assert arrivals == day(3)
    assert arrivals != day(4)
    assert [each.at for each in arrivals] == sorted(each.at for each in arrivals)
    assert len({each.job for each in arrivals}) == len(arrivals) > 1000
    assert 0 < arrivals[0].at < DAY
    assert {each.size for each in arrivals} == {512, 768, 1024}
    assert any(math.isfinite(each.patience) for each in arrivals)
    evening = sum(18 <= each.at / 3600 < 24 for each in arrivals)
    assert evening > 2 * sum(6 <= each.at / 3600 < 12 for each in arrivals)


@pytest.mark.parametrize("order", [Together, InTurn])
def test_both_orders_end_every_job_once(order: type[Together] | type[InTurn]) -> None:
    result = order(ARRIVALS).run()
    patient = {each.job for each in ARRIVALS if math.isinf(each.patience)}
    assert patient <= result.finished.keys() <= {each.job for each in ARRIVALS}
    assert result.finished.keys() <= result.preview.keys()
    assert all(result.preview[job] <= result.finished[job] for job in result.finished)
    assert all(
        result.finished[each.job] >= alone(each) * (1 - 1e-9) for each in ARRIVALS if each.job in result.finished
    )
    assert all(result.finished[each.job] <= each.patience for each in ARRIVALS if each.job in result.finished)
    assert 0 < filled(result) <= 100


@pytest.mark.parametrize("order", [Together, InTurn])
def test_the_same_arrivals_give_the_same_figures(order: type[Together] | type[InTurn]) -> None:
    assert order(ARRIVALS).run() == order(ARRIVALS).run()


@pytest.mark.parametrize("order", [Together, InTurn])
@pytest.mark.parametrize("images", [1, 2, 4])
def test_a_single_job_takes_its_time_alone(order: type[Together] | type[InTurn], images: int) -> None:
    job = Arrival("j", 5.0, "u", "g", 768, 20, images, first=4, end=16)
    result = order([job]).run()
    assert result.finished["j"] == pytest.approx(alone(job))
    assert result.preview["j"] == pytest.approx(forward_ms(768, images) / 1000)


@pytest.mark.parametrize("order", [Together, InTurn])
def test_a_user_who_gives_up_frees_the_device(order: type[Together] | type[InTurn]) -> None:
    impatient, other = Arrival("gone", 0.0, "u", "g", patience=1.0), Arrival("other", 0.5, "v", "g")
    result = order([impatient, other]).run()
    assert "gone" not in result.finished
    assert result.finished["other"] <= alone(other) + 2.0


def test_rows_are_padded_to_the_next_bucket() -> None:
    assert forward_ms(512, 3) == forward_ms(512, 4) > forward_ms(512, 2)
    assert forward_ms(512, LIMIT + 1) == forward_ms(512, LIMIT) + forward_ms(512, 1)


def test_the_statistics_match_textbook_values() -> None:
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert percentile(range(1, 101), 95) == 95
    assert percentile([4.0], 50) == percentile([4.0], 95) == 4.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0


def test_fairness_is_at_its_goals() -> None:
    rows = fairness()
    assert len(rows) == len([row for row in rows if row.goal]) == 4
    assert [row.name for row in rows if not row.passed] == []


def test_the_first_preview_comes_sooner_in_the_evening() -> None:
    rows = {row.name: row for row in compared([each for each in day(5) if 19 <= each.at / 3600 < 22])}
    assert all(row.passed for row in rows.values())
    ours, rival = (rows[f"first preview p95, {name}"].figure for name in ("ours", "one after another"))
    assert ours is not None
    assert rival is not None
    assert 5 * ours < rival


def test_a_missing_simpy_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simpy", None)
    (row,) = day_rows()
    assert not row.passed
    assert row.note == "simpy is missing: pip install 'darkroom-bot[bench]'"
