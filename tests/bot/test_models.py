"""What presences say of a pool: how fast its super-resolvers are, and which models it has."""

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


def test_a_pool_with_a_worker_too_old_for_upscales_has_no_super_resolver() -> None:
    workers: dict[str, Presence] = {}
    models = Models(cast("Store", None), lambda: workers, lambda: 0.0)
    assert models.resolving("default") is None
    workers["a"], workers["b"] = presence("a", 100.0), presence("b", 300.0)
    assert models.resolving("default") == 300.0
    workers["old"] = presence("old", 0.0, version=2)
    assert models.resolving("default") == 0.0
    workers["old"] = presence("old", 0.0, version=2, pool="elsewhere")
    assert models.resolving("default") == 300.0


def presence_with(worker: str, *models: Warm) -> Presence:
    return msgspec.structs.replace(presence(worker, 0.0), models=models)


@pytest.mark.asyncio
async def test_a_model_on_disk_is_offered_and_counts_as_loaded_once_any_worker_has_it_in_memory(store: Store) -> None:
    cold = msgspec.structs.replace(SHIPPED, name="large", loaded=False, samplers=("ddim", "heun"))
    workers = {"a": presence_with("a", SHIPPED, cold)}
    models = Models(store, lambda: workers, lambda: 0.0)
    await models.refresh()
    assert [(one.warm.name, one.warm.loaded, one.live) for one in models.profiles()] == [
        ("embedded", True, True), ("large", False, True),
    ]  # fmt: skip
    version = store.version
    workers["b"] = presence_with("b", msgspec.structs.replace(cold, loaded=True, steps=7))
    assert models.profile("large").warm == msgspec.structs.replace(cold, loaded=True), (
        "the first worker's description counts"
    )
    await models.refresh()
    assert store.version == version, "loading a model into memory writes nothing"
    workers.clear()
    again = Models(store, lambda: workers, lambda: 0.0)
    await again.load()
    assert {one.warm.name: one.live for one in again.profiles()} == {"embedded": False, "large": False}
    assert again.profile("large").warm.samplers == ("ddim", "heun")


def test_a_pool_is_full_for_a_model_when_every_worker_that_has_it_is_full() -> None:
    large = msgspec.structs.replace(SHIPPED, name="large")
    busy, idle = msgspec.structs.replace(presence_with("a", SHIPPED), free=0), presence_with("b", large)
    crew = crews({"a": busy, "b": idle})["default"]
    assert crew.free == 8
    assert [crew.full(model) for model in ("embedded", "large", "", "unknown")] == [True, False, False, False]
    crew = crews({"a": busy, "b": idle, "c": presence_with("c", SHIPPED)})["default"]
    assert not crew.full("embedded")
    crew = crews({"a": busy})["default"]
    assert [crew.full(model) for model in ("embedded", "", "unknown")] == [True, True, True]
