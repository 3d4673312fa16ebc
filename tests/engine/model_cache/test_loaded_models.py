"""Eviction of models from memory, and parsing and formatting of sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.device.memory import model_budget
from engine.model_cache.loaded_models import LoadedModels
from engine.process.load_progress import format_size
from engine.process.setting_sources import SettingError
from engine.process.settings import load_settings, parse_size


def make_loaded_models(budget: int, *names: str, size: int = 4) -> LoadedModels:
    loaded_models = LoadedModels(budget)
    for name in names:
        assert loaded_models.reserve(name, size)
        loaded_models.add(name, _family(name))
    return loaded_models


def _family(name: str) -> Any:
    return name


def test_the_least_recently_used_model_is_evicted_first_and_no_more_than_needed() -> None:
    loaded_models = make_loaded_models(12, "a", "b", "c")
    loaded_models.acquire("a")
    loaded_models.release("a")
    assert loaded_models.reserve("d", 4)
    assert sorted(loaded_models.families) == ["a", "c"]


def test_a_model_in_use_stays_and_no_other_is_evicted_in_vain() -> None:
    loaded_models = make_loaded_models(8, "a", "b")
    loaded_models.acquire("a")
    assert not loaded_models.reserve("d", 8)
    assert sorted(loaded_models.families) == ["a", "b"]
    loaded_models.release("a")
    assert loaded_models.reserve("d", 8)
    assert dict(loaded_models.families) == {}


def test_spared_models_stay_and_a_cancelled_reservation_frees_its_memory() -> None:
    loaded_models = make_loaded_models(8, "a", "b")
    assert not loaded_models.reserve("d", 8, frozenset({"b"}))
    assert loaded_models.reserve("d", 4, frozenset({"a"}))
    assert loaded_models.used_bytes == 8
    loaded_models.cancel_reservation("d")
    assert (loaded_models.used_bytes, sorted(loaded_models.families)) == (4, ["a"])


def test_a_shared_network_counts_once_until_its_last_model_goes() -> None:
    loaded_models = make_loaded_models(14, "a", "b")
    assert loaded_models.reserve("a", 4 + 5, shared={"depth": 5})
    assert loaded_models.reserve("b", 4 + 5, shared={"depth": 5})
    assert loaded_models.used_bytes == 4 + 4 + 5
    loaded_models.acquire("b")
    assert not loaded_models.reserve("d", 6)
    assert loaded_models.reserve("d", 5)
    assert (loaded_models.used_bytes, sorted(loaded_models.families)) == (4 + 5 + 5, ["b"])


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["take", "use", "leave"])), max_size=60))
def test_the_budget_holds_and_no_model_in_use_is_evicted(actions: list[tuple[str, str]]) -> None:
    sizes = dict(zip("abcdef", (1, 2, 3, 4, 5, 6), strict=True))
    loaded_models = LoadedModels(9)
    users = list[str]()
    for name, action in actions:
        if action == "take" and name not in loaded_models.families and loaded_models.reserve(name, sizes[name]):
            loaded_models.add(name, _family(name))
        elif action == "use" and name in loaded_models.families:
            loaded_models.acquire(name)
            users.append(name)
        elif action == "leave" and name in users:
            loaded_models.release(name)
            users.remove(name)
        assert sum(sizes[each] for each in loaded_models.families) == loaded_models.used_bytes <= 9
        assert set(users) <= set(loaded_models.families)


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GB", 12 * 10**9), ("1.5 GiB", 3 * 2**29), ("800m", 8 * 10**8), ("4096", 4096), ("2 tb", 2 * 10**12)],
)
def test_sizes_are_parsed_with_their_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "nan", "1e400GB", "12 GB of it", "9" * 400])
def test_an_invalid_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a size such as 12GB is needed"):
        parse_size(text)
    monkeypatch.setenv("DARKROOM_MEMORY", text or "?")
    with pytest.raises(SettingError, match=r"^DARKROOM_MEMORY is not valid: a size such as 12GB is needed\.$"):
        load_settings(nats="nats://127.0.0.1:1")


def test_the_memory_budget_comes_from_an_option_or_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert load_settings(nats="nats://127.0.0.1:1", data=tmp_path).memory is None
    monkeypatch.setenv("DARKROOM_MEMORY", "2GB")
    assert load_settings(nats="nats://127.0.0.1:1", memory="").memory == 2 * 10**9
    assert load_settings(nats="nats://127.0.0.1:1", memory="3GB").memory == 3 * 10**9


def test_sizes_are_formatted_with_units() -> None:
    assert [format_size(each) for each in (12 * 10**9, 1_440_000_000, 350_400_000, 5)] == [
        "12 GB",
        "1.4 GB",
        "350.4 MB",
        "1 kB",
    ]


def test_the_default_budget_is_a_share_of_the_machines_memory() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < model_budget(torch.device("cpu")) <= 0.71 * total
