"""Workers with different models in one pool: a job is begun where its model is, and nobody else claims or fails it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace
from PIL import Image

from engine import simulated
from engine.admit import elsewhere
from engine.bus import Delivered
from engine.engine import Engine
from engine.job import Enlarge, Failed, Finished, Picture, Started
from engine.lane import Lane
from engine.shelf import Model, Shelf
from engine.shelf.stock import Stock
from engine.worker import Offer, Worker, intake
from engine.worker.pulse import Pulse
from tests.engine.shop import JOB, OTHER, Shop, a_job, until

FOUND = simulated.calibration(row_ms=0.1, rows=8)


class Named(simulated.Simulated):
    """A simulated model of this name and version."""

    def __init__(self, name: str, revision: str = "1") -> None:
        super().__init__(row_ms=0.1)
        self.name, self.revision = name, revision


class Farm:
    """A shop whose workers have one model each, all in the pool `default`."""

    def __init__(self, shop: Shop) -> None:
        self.shop, self.lanes = shop, list[Lane]()

    async def worker(self, name: str, model: str, revision: str = "1") -> Worker:
        family, stock = Named(model, revision), Stock(1)
        stock.reserve(model, 1)
        stock.put(model, family)
        shelf = Shelf([Model(model, 1, FOUND.warm(family), lambda told: family, FOUND.warm)], stock)
        self.lanes.append(await asyncio.to_thread(Lane, shelf.families))
        engine, bus = Engine(shelf.families, rows=8), await self.shop.join()
        worker = Worker(bus, engine, self.lanes[-1], Offer(name, "cpu", rows=8), Pulse(), None, shelf)
        self.shop.running.append((worker, asyncio.create_task(worker.run())))
        await until(lambda: name in self.shop.bot.workers)
        return worker


@pytest_asyncio.fixture
async def farm(shop: Shop) -> AsyncIterator[Farm]:
    farm = Farm(shop)
    yield farm
    for worker, task in shop.running:
        worker.drain()
        await asyncio.gather(task, return_exceptions=True)
    for lane in farm.lanes:
        await asyncio.to_thread(lane.close)


@pytest.fixture
def handed_back(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """The job and the delay of every message that is handed back."""
    seen: list[tuple[str, float]] = []
    nak = Delivered.nak

    async def noted(self: Delivered[Any], delay: float = 0.0) -> None:
        seen.append((getattr(self.value, "id", ""), delay))
        await nak(self, delay)

    monkeypatch.setattr(Delivered, "nak", noted)
    return seen


def who_began(said: list[Any]) -> list[str]:
    return [value.worker for value in said if isinstance(value, Started)]


@pytest.mark.asyncio
@pytest.mark.parametrize("recipe", [{"model": "sdxl"}, {"model": "embedded", "revision": "2"}])
async def test_a_job_is_passed_on_unclaimed_until_a_worker_has_its_model(
    farm: Farm, handed_back: list[tuple[str, float]], caplog: pytest.LogCaptureFixture, recipe: dict[str, Any]
) -> None:
    shop = farm.shop
    caplog.set_level(logging.INFO, "engine.worker.intake")
    wrong = [await farm.worker("shed", "embedded"), await farm.worker("attic", "embedded")]
    await shop.bot.dispatch(a_job(**recipe))
    await until(lambda: len(handed_back) >= 6)
    assert await shop.bot.holder(JOB) is None
    assert await shop.left("results") == 0, "neither begun nor failed"
    assert [len(worker.roster) for worker in wrong] == [0, 0]
    delays = [delay for job, delay in handed_back if job == JOB]
    assert delays == sorted(delays)
    assert 0 < delays[0] < delays[-1] <= 1.0
    told = [record for record in caplog.records if "is for another worker" in record.message]
    assert 1 <= len(told) <= len(wrong), "once a job and worker, however often it comes"
    await farm.worker("cellar", recipe["model"], recipe.get("revision", "1"))
    said = await shop.results()
    assert [type(value) for value in said] == [Started, Picture, Finished]
    assert who_began(said) == ["cellar"]


@pytest.mark.asyncio
async def test_two_idle_workers_get_each_its_own_jobs(farm: Farm) -> None:
    shop = farm.shop
    await farm.worker("shed", "embedded")
    await farm.worker("cellar", "sdxl")
    ids = [f"{JOB[:-1]}{end}" for end in "0123456789"]
    for number, job in enumerate(ids):
        await shop.bot.dispatch(a_job(job, model=("embedded", "sdxl")[number // 5]))
    said = await everything(shop, len(ids))
    assert not any(isinstance(value, Failed) for value in said)
    began = {value.job: value.worker for value in said if isinstance(value, Started)}
    assert [began[job] for job in ids] == ["shed"] * 5 + ["cellar"] * 5
    assert sum(isinstance(value, Started) for value in said) == len(ids), "none was begun twice"
    assert await shop.left("dead") == 0


async def everything(shop: Shop, ends: int) -> list[Any]:
    """What is said of all jobs, until so many have ended."""
    said: list[Any] = []
    source: Any = shop.bot.results()
    async with asyncio.timeout(60):
        async for delivered in source:
            await delivered.ack()
            said.append(delivered.value)
            if sum(isinstance(value, Finished | Failed) for value in said) == ends:
                break
    await source.aclose()
    return said


@pytest.mark.asyncio
async def test_any_worker_enlarges(farm: Farm) -> None:
    source = BytesIO()
    Image.new("RGB", (40, 24), "red").save(source, "PNG")
    await farm.worker("shed", "embedded")
    task = Enlarge(source=await farm.shop.bot.put_blob(source.getvalue()))
    await farm.shop.bot.dispatch(replace(a_job(), task=task))
    assert [type(value) for value in await farm.shop.results()] == [Started, Picture, Finished]


def test_what_a_worker_says_of_a_job_that_is_not_for_it() -> None:
    mine = (FOUND.warm(Named("embedded", "1")), FOUND.warm(Named("sdxl", "7")))
    assert elsewhere(a_job().task, mine) == ""
    assert elsewhere(a_job(model="sdxl", revision="7").task, mine) == ""
    assert elsewhere(a_job(model="flux").task, mine) == "This worker has no model called flux."
    said = "This worker has another version of sdxl than the recipe names."
    assert elsewhere(a_job(model="sdxl", revision="1").task, mine) == said
    assert elsewhere(a_job(model="flux").task, ()) == "", "nothing is known of its models"
    assert elsewhere(Enlarge(source="0" * 64), mine) == ""


@pytest.mark.asyncio
@pytest.mark.parametrize(("errors", "end"), [(2, Finished), (3, Failed)])
async def test_unforeseen_errors_are_counted_and_not_how_often_a_message_was_handed_back(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, errors: int, end: type
) -> None:
    shop, left = farm.shop, [errors]
    monkeypatch.setattr(intake, "ODD_PAUSE", 0.1)
    await shop.bot.dispatch(a_job(OTHER))
    for _ in range(4):
        delivered = await shop.bot.pull(["default"], timeout=5)
        assert delivered is not None
        await delivered.nak()
    await shop.bot.stop_pulling()
    admit = Worker._admit

    async def failing(*given: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise ZeroDivisionError
        await admit(*given)

    monkeypatch.setattr(Worker, "_admit", failing)
    await farm.worker("shed", "embedded")
    said = await shop.results(OTHER)
    assert isinstance(said[-1], end)
    assert left == [0]
    assert await shop.left("dead") == (end is Failed)
