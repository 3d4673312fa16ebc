"""What is known of workers by what they say of themselves: how fast a pool's super-resolvers are, and who has one."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest

from bot.models import SHIPPED, Models, crews
from bot.store import Store
from engine.job import Presence, Warm


def presence(worker: str, ms: float, version: int = 3, pool: str = "default") -> Presence:
    return Presence(
        v=version, worker=worker, pools=(pool,), models=(), device="", rows=8, free=8, build="", enlarge_ms=ms
    )  # fmt: skip


def test_nobody_is_asked_for_the_super_resolver_while_a_worker_too_old_for_it_is_in_the_pool() -> None:
    there: dict[str, Presence] = {}
    models = Models(cast("Store", None), lambda: there, lambda: 0.0)
    assert models.resolving("default") is None
    there["a"], there["b"] = presence("a", 100.0), presence("b", 300.0)
    assert models.resolving("default") == 300.0
    there["old"] = presence("old", 0.0, version=2)
    assert models.resolving("default") == 0.0
    there["old"] = presence("old", 0.0, version=2, pool="elsewhere")
    assert models.resolving("default") == 300.0


def having(worker: str, *models: Warm) -> Presence:
    return msgspec.structs.replace(presence(worker, 0.0), models=models)


@pytest.mark.asyncio
async def test_a_model_on_a_disk_can_be_asked_for_and_is_loaded_where_any_worker_has_it_in_memory(store: Store) -> None:
    cold = msgspec.structs.replace(SHIPPED, name="large", loaded=False, samplers=("ddim", "heun"))
    there = {"a": having("a", SHIPPED, cold)}
    models = Models(store, lambda: there, lambda: 0.0)
    await models.refresh()
    assert [(one.warm.name, one.warm.loaded, one.live) for one in models.profiles()] == [
        ("embedded", True, True), ("large", False, True),
    ]  # fmt: skip
    remembered = store.version
    there["b"] = having("b", msgspec.structs.replace(cold, loaded=True, steps=7))
    assert models.profile("large").warm == msgspec.structs.replace(cold, loaded=True), "the first one speaks for both"
    await models.refresh()
    assert store.version == remembered, "that it comes into memory is nothing to remember"
    there.clear()
    again = Models(store, lambda: there, lambda: 0.0)
    await again.load()
    assert {one.warm.name: one.live for one in again.profiles()} == {"embedded": False, "large": False}
    assert again.profile("large").warm.samplers == ("ddim", "heun")


def test_a_pool_is_full_for_a_model_once_all_who_have_it_are_whoever_else_is_idle() -> None:
    large = msgspec.structs.replace(SHIPPED, name="large")
    busy, idle = msgspec.structs.replace(having("a", SHIPPED), free=0), having("b", large)
    crew = crews({"a": busy, "b": idle})["default"]
    assert crew.free == 8
    assert [crew.full(model) for model in ("embedded", "large", "", "unknown")] == [True, False, False, False]
    crew = crews({"a": busy, "b": idle, "c": having("c", SHIPPED)})["default"]
    assert not crew.full("embedded")
    crew = crews({"a": busy})["default"]
    assert [crew.full(model) for model in ("embedded", "", "unknown")] == [True, True, True]
