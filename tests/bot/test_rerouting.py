"""Two pools: a job goes where its model is offered and costs least, and moves on when that pool dies."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bot.models import Models, crews
from bot.queue.board import Board
from bot.queue.rerouting import Rerouting
from bot.store import Store, reads
from bot.store.rerouting import MOST
from engine.job import Enlarge, Presence, Warm
from kept import RECIPE, draft

WARM = Warm(
    name="embedded", revision="1", dtype="float32", size=64, multiple=8, max_pixels=128 * 128, tokens=24, steps=40,
    sampler="ddim", guidance=3.0, row_ms=1.0, encode_ms=1.0, decode_ms=1.0,
)  # fmt: skip


def there(
    worker: str, pool: str, row_ms: float, free: int = 8, revision: str = "1", model: str = "embedded"
) -> Presence:  # fmt: skip
    offered = msgspec.structs.replace(WARM, name=model, revision=revision, row_ms=row_ms)
    return Presence(worker=worker, pools=(pool,), models=(offered,), device="none", rows=8, free=free, build="test")


def choice(*workers: Presence, revision: str = "", model: str = "embedded") -> str | None:
    models = Models(None, lambda: {one.worker: one for one in workers}, lambda: 0.0)  # pyright: ignore[reportArgumentType]
    return models.pool_of(model, revision)


def test_the_cheapest_pool_and_of_equal_ones_the_least_busy():
    assert choice() is None
    assert choice(there("a", "cpu", 400.0), there("b", "gpu", 4.0, free=0)) == "gpu"
    assert choice(there("a", "one", 4.0, free=2), there("b", "two", 4.5, free=6)) == "two"
    assert choice(there("a", "cpu", 400.0), there("b", "gpu", 4.0, model="other")) == "cpu"


def test_other_weights_are_another_model():
    both = there("a", "cpu", 400.0, revision="1"), there("b", "gpu", 4.0, revision="2")
    assert choice(*both) == "gpu"
    assert choice(*both, revision="1") == "cpu"
    assert choice(*both, revision="3") is None


def test_what_is_in_memory_counts_where_rows_are_free():
    idle, full = there("a", "p", 4.0), there("b", "p", 4.0, free=0, model="other")
    assert crews({"a": idle, "b": full})["p"].loaded == {"embedded"}
    assert crews({"b": full})["p"].loaded == {"other"}


async def _moved(house: Any, jobs: list[str]) -> bool:
    await house.rerouting.round()
    found = await house.store.ask(reads.some, jobs)
    return all(found[job].pool == "other" for job in jobs)


@pytest.mark.asyncio
async def test_jobs_of_a_pool_that_died_are_run_in_another(workplace, until, ann, here):
    house = await workplace.house()
    first = await workplace.hand("first")
    await first.announce()
    await until(lambda: house.studio.workers())
    tickets = [(await house.studio.imagine("a lamp --count 4", ann, here))[0].job for _ in range(5)]
    await house.dispatcher.round()
    found = await house.store.ask(reads.some, tickets)
    assert {record.pool for record in found.values()} == {"default"}
    assert {record.state for record in found.values()} == {"sent", "queued"}
    second = await workplace.hand("second")
    second.pools = ("other",)
    keeping = asyncio.create_task(_keep(second))
    await until(lambda: set(house.studio.workers()) == {"second"})
    await until(lambda: _moved(house, tickets))
    kept = await house.store.ask(reads.history, tickets)
    assert sum(entry.why.startswith("from pool default") for entry in kept) == len(tickets)
    for _ in range(5):
        await house.dispatcher.round()
    found = await house.store.ask(reads.some, tickets)
    assert sum(record.state == "sent" for record in found.values()) == 3, "as many as may run at once"
    delivered = await second.bus.pull(["other"], timeout=5)
    assert delivered is not None
    assert delivered.value.id in tickets
    keeping.cancel()
    await asyncio.wait([keeping])


async def _keep(worker: Any) -> None:
    while True:
        await worker.announce()
        await asyncio.sleep(0.2)


# More that wait in a dead pool than are looked at in one round


def rounds(store: Store, *workers: Presence) -> tuple[Rerouting, dict[str, Presence]]:
    """Over a store alone: nothing was sent. And who is there, for more to come."""
    crew = {one.worker: one for one in workers}
    models, closing = Models(store, lambda: crew, lambda: 0.0), SimpleNamespace(freed=lambda: None)
    return Rerouting(store, None, Board(), closing, models, lambda: crew), crew  # pyright: ignore[reportArgumentType]


async def wait_in(store: Store, pool: str, count: int, *, model: str = "embedded", revision: str = "") -> list[str]:
    """So many jobs, each younger than all before it."""
    first = len(await store.ask(reads.queued, None, 10_000))
    one = replace(draft(), pool=pool, model=model, task=msgspec.structs.replace(RECIPE, model=model, revision=revision))
    drafts = [replace(one, id=f"{first + number:026}") for number in range(count)]
    await store.admit(drafts, None, lambda taken, _ledger: taken, 1.0)
    return [each.id for each in drafts]


async def waiting(store: Store, pool: str) -> list[str]:
    """The oldest first."""
    return [one.id for one in await store.ask(reads.queued, None, 10_000) if one.pool == pool]


@pytest.mark.asyncio
async def test_jobs_that_nobody_can_run_are_in_nobodys_way(store):
    stay = await wait_in(store, "gpu", MOST + 50, model="sdxl")
    go = await wait_in(store, "gpu", 5)
    rerouting, _ = rounds(store, there("a", "cpu", 400.0))
    await rerouting.round()
    assert await waiting(store, "cpu") == go
    assert await waiting(store, "gpu") == stay


@pytest.mark.asyncio
async def test_jobs_that_cannot_move_are_passed_and_looked_at_again(store):
    stay = await wait_in(store, "gpu", MOST + 50, revision="7")
    go = await wait_in(store, "gpu", 5)
    await wait_in(store, "cpu", 1)
    rerouting, crew = rounds(store, there("a", "cpu", 400.0))
    for _ in range(2):
        await rerouting.round()
    assert (await waiting(store, "cpu"))[:-1] == go
    crew["b"] = there("b", "new", 4.0, revision="7")
    for _ in range(2):
        await rerouting.round()
    assert await waiting(store, "new") == stay
    assert await waiting(store, "gpu") == []


@pytest.mark.asyncio
async def test_the_oldest_move_first(store):
    jobs = await wait_in(store, "gpu", MOST + 50)
    rerouting, _ = rounds(store, there("a", "cpu", 400.0))
    await rerouting.round()
    assert await waiting(store, "cpu") == jobs[:MOST]
    await rerouting.round()
    assert await waiting(store, "cpu") == jobs


@pytest.mark.asyncio
async def test_a_job_for_any_worker_leaves_a_dead_pool_and_no_other(store):
    one = replace(draft(), model="", task=Enlarge(source="a" * 64))
    await wait_in(store, "gpu", 1, model="sdxl")
    drafts = [replace(one, id=pool.upper().rjust(26, "0"), pool=pool) for pool in ("cpu", "gpu")]
    await store.admit(drafts, None, lambda taken, _ledger: taken, 1.0)
    rerouting, _ = rounds(store, there("a", "cpu", 400.0), there("b", "new", 4.0, model="other"))
    await rerouting.round()
    assert await waiting(store, "cpu") == [each.id for each in drafts]
    assert len(await waiting(store, "gpu")) == 1
