"""The plan of a campaign: its seed determines it, and it contains only plugs that this machine can pull."""

from __future__ import annotations

from collections import Counter

import pytest

from chaos.__main__ import main
from chaos.faults import KILLS, LEASE, ONLY_SERVER, ONLY_SQLITE, draw, possible

WORKERS = ("w1", "w2")


def test_a_seed_repeats_its_plugs() -> None:
    kinds = possible("sqlite", mounts=True)
    assert list(draw(7, 50, kinds, WORKERS, 2.0)) == list(draw(7, 50, kinds, WORKERS, 2.0))
    assert list(draw(7, 50, kinds, WORKERS, 2.0)) != list(draw(8, 50, kinds, WORKERS, 2.0))


def test_only_possible_kinds_are_offered() -> None:
    assert not set(possible("sqlite", mounts=True)) & set(ONLY_SERVER)
    assert not set(possible("postgres", mounts=True)) & set(ONLY_SQLITE)
    assert not [kind for kind in possible("sqlite", mounts=False, without=("lie",)) if kind.startswith(("fill", "lie"))]


def test_every_kind_is_drawn_and_kills_are_frequent() -> None:
    kinds = possible("postgres", mounts=True)
    plugs = list(draw(1, 1000, kinds, WORKERS, 2.0))
    count = Counter(plug.kind for plug in plugs)
    assert set(count) == set(kinds)
    assert sum(count[kind] for kind in KILLS) > 400
    assert {plug.target for plug in plugs} == {"w1", "w2", "bot", "broker", "database"}
    assert 1.8 < sum(plug.after for plug in plugs) / len(plugs) < 2.2
    assert all(plug.lasts > LEASE for plug in plugs if plug.kind.startswith("stop"))


@pytest.mark.parametrize("arguments", [["--only", "earthquake"], ["--kills", "0"], ["--workers", "0"]])
def test_a_wrong_argument_prints_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("chaos: ")
