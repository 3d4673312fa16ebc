"""Two pools: a job goes to the pool where its model costs least, and moves when that pool dies."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from bot.jobs.active_jobs import ActiveJobs
from bot.jobs.dispatch import JobRerouter
from bot.jobs.model_catalog import ModelCatalog, group_by_pool
from bot.store import Store
from bot.store.jobs import queries
from bot.store.transitions.job_admin import PAGE_SIZE
from engine.contract import ModelProfile, Presence, UpscaleTask
from shared.stored_jobs import RECIPE, make_new_job

PROFILE = ModelProfile(
    name="embedded",
    revision="1",
    dtype="float32",
    size=64,
    multiple=8,
    max_pixels=128 * 128,
    tokens=24,
    steps=40,
    sampler="ddim",
    samplers=("ddpm", "ddim", "euler", "dpmpp_2m"),
    guidance=3.0,
    row_ms=1.0,
    encode_ms=1.0,
    decode_ms=1.0,
)


def presence(
    worker: str, pool: str, row_ms: float, free_rows: int = 8, revision: str = "1", model: str = "embedded"
) -> Presence:
    profile = msgspec.structs.replace(PROFILE, name=model, revision=revision, row_ms=row_ms)
    return Presence(
        worker=worker, pools=(pool,), models=(profile,), device="none", rows=8, free=free_rows, software_build="test"
    )


def choose_pool(*workers: Presence, revision: str = "", model: str = "embedded") -> str | None:
    models = ModelCatalog(None, lambda: {one.worker: one for one in workers}, lambda: 0.0)  # pyright: ignore[reportArgumentType]
    return models.choose_pool(model, revision)


def test_a_job_goes_to_the_cheapest_pool_and_among_equals_to_the_least_busy():
    assert choose_pool() is None
    assert choose_pool(presence("a", "cpu", 400.0), presence("b", "gpu", 4.0, free_rows=0)) == "gpu"
    assert choose_pool(presence("a", "one", 4.0, free_rows=2), presence("b", "two", 4.5, free_rows=6)) == "two"
    assert choose_pool(presence("a", "cpu", 400.0), presence("b", "gpu", 4.0, model="other")) == "cpu"


def test_another_revision_is_another_model():
    presences = presence("a", "cpu", 400.0, revision="1"), presence("b", "gpu", 4.0, revision="2")
    assert choose_pool(*presences) == "gpu"
    assert choose_pool(*presences, revision="1") == "cpu"
    assert choose_pool(*presences, revision="3") is None


def test_loaded_models_count_where_rows_are_free():
    idle_worker = presence("a", "p", 4.0)
    full_worker = presence("b", "p", 4.0, free_rows=0, model="other")
    assert group_by_pool({"a": idle_worker, "b": full_worker})["p"].loaded_models == {"embedded"}
    assert group_by_pool({"b": full_worker})["p"].loaded_models == {"other"}


async def _have_moved(app: Any, jobs: list[str]) -> bool:
    await app.queue.rerouter.run_round()
    records = await app.store.query(queries.get_jobs, jobs)
    return all(records[job].pool == "other" for job in jobs)


@pytest.mark.asyncio
async def test_jobs_of_a_dead_pool_run_in_another(harness, wait_until, ann, destination):
    app = await harness.open_app()
    first = await harness.make_worker("first")
    await first.announce()
    await wait_until(lambda: app.services.live_workers())
    jobs = [(await app.services.jobs.imagine("a lamp --count 4", ann, destination))[0].job for _ in range(5)]
    await app.queue.dispatcher.run_round()
    records = await app.store.query(queries.get_jobs, jobs)
    assert {record.pool for record in records.values()} == {"default"}
    assert {record.state for record in records.values()} == {"sent", "queued"}
    second = await harness.make_worker("second")
    second.pools = ("other",)
    announce_task = asyncio.create_task(_keep_announcing(second))
    await wait_until(lambda: set(app.services.live_workers()) == {"second"})
    await wait_until(lambda: _have_moved(app, jobs))
    history = await app.store.query(queries.list_audit, jobs)
    assert sum(entry.reason.startswith("from pool default") for entry in history) == len(jobs)
    for _ in range(5):
        await app.queue.dispatcher.run_round()
    records = await app.store.query(queries.get_jobs, jobs)
    assert sum(record.state == "sent" for record in records.values()) == 3, "only as many as may run at once"
    delivered = await second.bus.pull_job(["other"], timeout=5)
    assert delivered is not None
    assert delivered.value.id in jobs
    announce_task.cancel()
    await asyncio.wait([announce_task])


async def _keep_announcing(worker: Any) -> None:
    while True:
        await worker.announce()
        await asyncio.sleep(0.2)


# More jobs wait in a dead pool than one round moves


def make_rerouter(store: Store, *workers: Presence) -> tuple[JobRerouter, dict[str, Presence]]:
    """Makes a rerouter over the store alone; returns it and its workers, to which a test may add."""
    workers_by_name = {one.worker: one for one in workers}
    models = ModelCatalog(store, lambda: workers_by_name, lambda: 0.0)
    return JobRerouter(store, None, ActiveJobs(), None, models, lambda: workers_by_name), workers_by_name  # pyright: ignore[reportArgumentType]


async def queue_jobs(store: Store, pool: str, count: int, *, model: str = "embedded", revision: str = "") -> list[str]:
    """Queues `count` jobs, each younger than all before it."""
    first = len(await store.query(queries.list_queued, None, 10_000))
    one = replace(
        make_new_job(), pool=pool, model=model, task=msgspec.structs.replace(RECIPE, model=model, revision=revision)
    )
    drafts = [replace(one, id=f"{first + number:026}") for number in range(count)]
    await store.admit_jobs(drafts, None, lambda batch, _ledger: batch, 1.0)
    return [each.id for each in drafts]


async def queued_jobs(store: Store, pool: str) -> list[str]:
    """The queued jobs of a pool, oldest first."""
    return [one.id for one in await store.query(queries.list_queued, None, 10_000) if one.pool == pool]


@pytest.mark.asyncio
async def test_jobs_that_no_pool_can_run_do_not_block_others(store):
    stay = await queue_jobs(store, "gpu", PAGE_SIZE + 50, model="sdxl")
    queued_ids = await queue_jobs(store, "gpu", 5)
    rerouter, _ = make_rerouter(store, presence("a", "cpu", 400.0))
    await rerouter.run_round()
    assert await queued_jobs(store, "cpu") == queued_ids
    assert await queued_jobs(store, "gpu") == stay


@pytest.mark.asyncio
async def test_jobs_that_cannot_move_are_skipped_and_checked_again(store):
    stay = await queue_jobs(store, "gpu", PAGE_SIZE + 50, revision="7")
    queued_ids = await queue_jobs(store, "gpu", 5)
    await queue_jobs(store, "cpu", 1)
    rerouter, workers_by_name = make_rerouter(store, presence("a", "cpu", 400.0))
    for _ in range(2):
        await rerouter.run_round()
    assert (await queued_jobs(store, "cpu"))[:-1] == queued_ids
    workers_by_name["b"] = presence("b", "new", 4.0, revision="7")
    for _ in range(2):
        await rerouter.run_round()
    assert await queued_jobs(store, "new") == stay
    assert await queued_jobs(store, "gpu") == []


@pytest.mark.asyncio
async def test_the_oldest_jobs_move_first(store):
    jobs = await queue_jobs(store, "gpu", PAGE_SIZE + 50)
    rerouter, _ = make_rerouter(store, presence("a", "cpu", 400.0))
    await rerouter.run_round()
    assert await queued_jobs(store, "cpu") == jobs[:PAGE_SIZE]
    await rerouter.run_round()
    assert await queued_jobs(store, "cpu") == jobs


@pytest.mark.asyncio
async def test_a_job_for_any_worker_leaves_only_a_dead_pool(store):
    one = replace(make_new_job(), model="", task=UpscaleTask(source="a" * 64))
    await queue_jobs(store, "gpu", 1, model="sdxl")
    drafts = [replace(one, id=pool.upper().rjust(26, "0"), pool=pool) for pool in ("cpu", "gpu")]
    await store.admit_jobs(drafts, None, lambda batch, _ledger: batch, 1.0)
    rerouter, _ = make_rerouter(store, presence("a", "cpu", 400.0), presence("b", "new", 4.0, model="other"))
    await rerouter.run_round()
    assert await queued_jobs(store, "cpu") == [each.id for each in drafts]
    assert len(await queued_jobs(store, "gpu")) == 1
