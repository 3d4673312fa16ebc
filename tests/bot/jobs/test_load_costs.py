"""The price of loading a model: shared by those who ask for it while it is not in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bot.domain.dto import Destination, Member
from bot.jobs.costs import MAX_LOAD_SECONDS, LoadCosts
from bot.store import NewJob
from engine.contract import UpscaleTask

JOB = NewJob(
    id="1",
    action="upscale",
    prompt="",
    notes=(),
    task=UpscaleTask(source="a" * 64, factor=2),
    member=Member("a", "A", "g"),
    destination=Destination("web"),
    pool="default",
    model="large",
    cost=10.0,
    created=0.0,
    deadline=1.0,
)


def test_a_load_is_shared_until_the_model_is_in_memory() -> None:
    seconds = {("default", "large"): 30.0}
    prices = LoadCosts(lambda pool, model: seconds.get((pool, model), 0.0))
    small = replace(JOB, model="small")

    def ask(*new_jobs: NewJob) -> list[float]:
        priced = prices.add_shares(new_jobs)
        prices.count_payers(priced)
        return [new_job.cost for new_job in priced]

    assert ask(JOB) == [40.0]
    assert ask(small) == [10.0]
    assert ask(JOB, small, JOB) == [25.0, 10.0, 10.0], "one request has one share"
    assert prices.add_shares([JOB])[0].cost == 20.0
    assert prices.add_shares([JOB])[0].cost == 20.0, "a refused request is no payer"
    seconds.clear()
    assert ask(JOB) == [10.0]
    seconds[("default", "large")] = 1000.0
    assert ask(JOB) == [10.0 + MAX_LOAD_SECONDS], "bounded, and a new load begins with the first again"


@pytest.mark.asyncio
async def test_an_admitted_job_reserves_its_share(harness) -> None:
    app = await harness.open_app()
    (before,) = await app.services.jobs.imagine("a lamp", JOB.member, Destination("web", {"room": "1"}))
    app.services.jobs.admission.load_costs._estimate_load = lambda pool, model: 20.0
    (after,) = await app.services.jobs.imagine("a lamp", JOB.member, Destination("web", {"room": "1"}))
    assert after.cost == pytest.approx(before.cost + 20.0)
    record = await app.store.get_job(after.job)
    assert record.charged == record.cost == after.cost
