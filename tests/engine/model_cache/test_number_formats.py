"""Models with one number format at a time, and jobs that wait for another. It needs no model and no broker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from engine.contract import Dtype, JobRejected, ModelPart
from engine.model_cache import cache as model_cache
from engine.model_cache.cache import ModelCache, ModelEntry
from engine.model_cache.loaded_models import LoadedModels
from engine.models.picture_conditions import TakesPictures

pytestmark = [pytest.mark.asyncio, pytest.mark.may_block]


class SingleFormatFamily:
    """A stand-in for a family with a large network, as far as the model cache needs it."""

    def __init__(self) -> None:
        self.dtype: Dtype = "bfloat16"
        self.loads: list[Dtype] = []

    is_single_format = True

    def has_format(self, dtype: Dtype) -> bool:
        return dtype == self.dtype

    def get_network(self, dtype: Dtype) -> object:
        self.dtype = dtype
        self.loads.append(dtype)
        return self


def build_model(name: str, family: Any, wait: Callable[[], object] = lambda: None) -> ModelEntry:
    """A model of 4 bytes, or 8 in float32; it calls `wait` before its last part."""
    warm: Any = None

    def open_model(report: Any) -> Any:
        report(0.9)
        wait()
        return family

    return ModelEntry(name, 4, warm, open_model, lambda _: warm, size_by_format={"bfloat16": 4, "float32": 8})


def build_cache(budget: int, *models: ModelEntry) -> ModelCache:
    return ModelCache(list(models), LoadedModels(budget))


@pytest.mark.slow
async def test_a_long_wait_for_another_format_ends_and_leaves_no_waiter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_cache, "MAX_WAIT_SECONDS", 0.1)
    cache = build_cache(8, build_model("x", SingleFormatFamily()))
    await cache.acquire("x", "bfloat16")
    acquire_task = asyncio.create_task(cache.acquire("x", "float32"))
    await asyncio.sleep(0.3)
    cache.release("x")
    await asyncio.wait_for(acquire_task, 5)
    await asyncio.wait_for(cache.acquire("x", "float32"), 0.5)
    assert not cache.is_memory_contended()


@pytest.mark.slow
async def test_a_job_that_waits_for_another_format_is_not_overtaken_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_cache, "MAX_WAIT_SECONDS", 0.1)
    family = SingleFormatFamily()
    cache = build_cache(8, build_model("x", family))
    first, acquire_task = (asyncio.create_task(cache.acquire("x", dtype)) for dtype in ("bfloat16", "float32"))
    await asyncio.wait_for(first, 5)
    await asyncio.sleep(0.3)
    late_task = asyncio.create_task(cache.acquire("x", "bfloat16"))
    await asyncio.sleep(0.1)
    assert not late_task.done()
    cache.release("x")
    await asyncio.wait_for(acquire_task, 5)
    cache.release("x")
    await asyncio.wait_for(late_task, 5)
    assert family.loads == ["float32", "bfloat16"]


async def test_a_cancel_during_the_last_part_keeps_nothing_in_memory() -> None:
    gate = threading.Event()
    cache = build_cache(
        4, build_model("x", SingleFormatFamily(), lambda: gate.wait(10)), build_model("y", SingleFormatFamily())
    )
    take = asyncio.create_task(cache.acquire("x", "bfloat16"))
    async with asyncio.timeout(5):
        while cache.get_loaded_fraction("x") != 0.9:
            await asyncio.sleep(0.01)
    take.cancel()
    await asyncio.gather(take, return_exceptions=True)
    gate.set()
    assert await asyncio.wait_for(cache.acquire("y", "bfloat16"), 5)
    assert list(cache.families) == ["y"]


@pytest.mark.slow
async def test_a_larger_format_evicts_other_models_or_is_refused() -> None:
    cache = build_cache(8, build_model("x", SingleFormatFamily()), build_model("y", SingleFormatFamily()))
    for name in "xy":
        await cache.acquire(name, "bfloat16")
        cache.release(name)
    await cache.acquire("x", "float32")
    assert list(cache.families) == ["x"]
    small = build_cache(6, build_model("x", SingleFormatFamily()))
    with pytest.raises(JobRejected, match=r"The model x needs about .* of memory"):
        await small.acquire("x", "float32")
    assert await small.acquire("x", "bfloat16")


class FamilyWithAutoencoders(SingleFormatFamily):
    """A stand-in for a family that loads other autoencoders, of two bytes each."""

    def list_autoencoders(self) -> tuple[ModelPart, ...]:
        return ()

    kept: ModelPart | None = None

    def count_autoencoder_bytes(self, part: ModelPart | None, *, with_kept: bool = True) -> int:
        return 4 if with_kept and self.kept not in (None, part) else 2

    def release_other_autoencoders(self, part: ModelPart | None) -> None:
        self.kept = None if self.kept != part else self.kept

    def with_autoencoder(self, part: ModelPart) -> Any:
        self.kept = part
        return self


async def test_another_autoencoder_needs_room_and_holds_nothing_while_it_waits() -> None:
    recipe: Any = SimpleNamespace(autoencoder=ModelPart("fine"))
    cache = build_cache(8, build_model("x", FamilyWithAutoencoders()), build_model("y", SingleFormatFamily()))
    for name in "xy":
        await cache.acquire(name, "bfloat16")
    waiting_task = asyncio.create_task(cache.acquire("x", "bfloat16", recipe))
    await asyncio.sleep(0.05)
    assert not waiting_task.done()
    cache.release("x")
    cache.release("y")
    assert await asyncio.wait_for(waiting_task, 5)
    assert list(cache.families) == ["x"]
    small = build_cache(5, build_model("x", FamilyWithAutoencoders()))
    with pytest.raises(JobRejected, match=r"The model x with what this job adds to it needs about .* of memory"):
        await small.acquire("x", "bfloat16", recipe)
    assert await small.acquire("x", "bfloat16")


class FamilyWithPictures(SingleFormatFamily, TakesPictures):
    """A stand-in for a family whose control pictures come of a preprocessor of two bytes, which models share."""

    name = "pictured"

    def needs_pictures(self, recipe: Any) -> bool:
        return True

    def count_picture_bytes(self, recipe: Any, *, with_kept: bool = True) -> int:
        return 2

    def list_shared_bytes(self, recipe: Any, *, with_kept: bool = True) -> dict[str, int]:
        return {"depth": 2}


async def test_models_that_share_a_preprocessor_have_room_for_it_once() -> None:
    recipe: Any = SimpleNamespace(autoencoder=None, controls=(object(),), references=())
    loaded_models = LoadedModels(10)
    cache = ModelCache([build_model(name, FamilyWithPictures()) for name in "xy"], loaded_models)
    for name in "xy":
        assert await asyncio.wait_for(cache.acquire(name, "bfloat16", recipe), 5)
    assert (list(cache.families), loaded_models.used_bytes) == (["x", "y"], 4 + 4 + 2)


def build_recipe(autoencoder: str) -> Any:
    return SimpleNamespace(autoencoder=ModelPart(autoencoder))


async def test_what_other_jobs_left_in_memory_makes_way_once_no_job_uses_it() -> None:
    family = FamilyWithAutoencoders()
    cache = build_cache(6, build_model("x", family))
    await cache.acquire("x", "bfloat16", build_recipe("fine"))
    family.with_autoencoder(ModelPart("fine"))
    waiting_task = asyncio.create_task(cache.acquire("x", "bfloat16", build_recipe("sharp")))
    await asyncio.sleep(0.05)
    assert (waiting_task.done(), family.kept) == (False, ModelPart("fine")), "a job still uses it"
    cache.release("x")
    assert await asyncio.wait_for(waiting_task, 5)
    assert family.kept is None


async def test_two_jobs_that_wait_long_for_room_do_not_block_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_cache, "MAX_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(model_cache, "RECHECK_SECONDS", 0.05)
    family = FamilyWithAutoencoders()
    cache = build_cache(6, build_model("x", family))
    await cache.acquire("x", "bfloat16", build_recipe("fine"))
    family.with_autoencoder(ModelPart("fine"))
    tasks = [asyncio.create_task(cache.acquire("x", "bfloat16", build_recipe(name))) for name in ("sharp", "soft")]
    await asyncio.sleep(0.15)
    cache.release("x")
    for task in tasks:
        assert await asyncio.wait_for(task, 5)
    assert not cache.is_memory_contended()
