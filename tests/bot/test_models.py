"""What is known of workers by what they say of themselves: how fast a pool's super-resolvers are, and who has one."""

from __future__ import annotations

from typing import cast

from bot.models import Models
from bot.store import Store
from engine.job import Presence


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
