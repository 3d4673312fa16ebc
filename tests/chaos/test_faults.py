"""The plan of a campaign: its seed determines it, and it contains only faults that this machine can inject."""

from __future__ import annotations

from collections import Counter

import pytest

from tools.chaos.__main__ import main
from tools.chaos.faults import KILL_KINDS, LEASE, SERVER_ONLY_KINDS, SQLITE_ONLY_KINDS, draw_faults, list_possible_kinds

WORKERS = ("w1", "w2")


def test_a_seed_repeats_its_faults() -> None:
    kinds = list_possible_kinds("sqlite", mounts=True)
    assert list(draw_faults(7, 50, kinds, WORKERS, 2.0)) == list(draw_faults(7, 50, kinds, WORKERS, 2.0))
    assert list(draw_faults(7, 50, kinds, WORKERS, 2.0)) != list(draw_faults(8, 50, kinds, WORKERS, 2.0))


def test_only_possible_kinds_are_offered() -> None:
    assert not set(list_possible_kinds("sqlite", mounts=True)) & set(SERVER_ONLY_KINDS)
    assert not set(list_possible_kinds("postgres", mounts=True)) & set(SQLITE_ONLY_KINDS)
    assert not [
        kind
        for kind in list_possible_kinds("sqlite", mounts=False, excluded=("lie",))
        if kind.startswith(("fill", "lie"))
    ]


def test_every_kind_is_drawn_and_kills_are_frequent() -> None:
    kinds = list_possible_kinds("postgres", mounts=True)
    faults = list(draw_faults(1, 1000, kinds, WORKERS, 2.0))
    count = Counter(fault.kind for fault in faults)
    assert set(count) == set(kinds)
    assert sum(count[kind] for kind in KILL_KINDS) > 400
    assert {fault.target for fault in faults} == {"w1", "w2", "bot", "broker", "database"}
    assert 1.8 < sum(fault.delay for fault in faults) / len(faults) < 2.2
    assert all(fault.duration > LEASE for fault in faults if fault.kind.startswith("stop"))


@pytest.mark.parametrize("arguments", [["--only", "earthquake"], ["--kills", "0"], ["--workers", "0"]])
def test_a_wrong_argument_prints_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("chaos: ")
