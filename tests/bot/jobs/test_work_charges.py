"""Work that is no job is charged like a job: refused above a limit, and settled to what it took."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bot.domain.dto import Destination, Member
from bot.domain.errors import UserError
from bot.jobs.costs import WorkCharges
from bot.policy.limits import DAY_SECONDS, Limits
from bot.services.data_deletion import DataDeletion
from bot.store.fairness.ledger import run_with_ledger

pytestmark = pytest.mark.asyncio

ANN = Member("discord:1", "Ann", "g", channel="c")
OTHER_GUILD = Member("discord:1", "Ann", "h", channel="d")
NOW = 1_800_000_000.0


async def used(app: Any, member: Member, scope: Any) -> float:
    spending = await app.store.query(
        run_with_ledger, member, NOW, lambda ledger: ledger.get_spending(scope, DAY_SECONDS)
    )
    return spending.total_cost


async def test_work_counts_in_the_ledger_and_is_settled_to_what_it_took(harness: Any) -> None:
    app = await harness.open_app(clock=lambda: NOW)
    charges = WorkCharges(app.store, limits=Limits(cost_day=100.0), clock=lambda: NOW)
    async with charges.charge(ANN, 60.0) as meter:
        assert await used(app, ANN, "member everywhere") == 60.0, "reserved: two cannot share it"
        with pytest.raises(UserError, match="Your day's limit is reached: 1 min of 1 min 40 s") as error:
            async with charges.charge(OTHER_GUILD, 60.0):
                pytest.fail("it must not run")
        assert error.value.status == 429
        assert error.value.retry_at == NOW + DAY_SECONDS
        meter.seconds = 12.0
    for member, scope, seconds in (
        (ANN, "member here", 12.0),
        (ANN, "guild", 12.0),
        (ANN, "channel", 12.0),
        (OTHER_GUILD, "member here", 0.0),
        (OTHER_GUILD, "member everywhere", 12.0),
        (OTHER_GUILD, "guild", 0.0),
    ):
        assert await used(app, member, scope) == seconds, (member, scope)
    async with charges.charge(ANN, 60.0) as meter:
        meter.seconds = 75.0
    assert await used(app, ANN, "member here") == 72.0, "never more than was reserved"
    with pytest.raises(UserError, match="A smaller model may cost less"):
        async with charges.charge(ANN, 101.0):
            pytest.fail("it must not run")


async def test_cancelled_work_is_charged_what_it_ran(harness: Any) -> None:
    app = await harness.open_app(clock=lambda: NOW)
    charges = WorkCharges(app.store, limits=Limits(), clock=lambda: NOW)
    started = asyncio.Event()

    async def work() -> None:
        async with charges.charge(ANN, 60.0) as meter:
            meter.seconds = 5.0
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await used(app, ANN, "member here") == 5.0


async def test_deleting_relaxed_jobs_restores_no_quota(harness: Any) -> None:
    app = await harness.open_app()
    await app.services.jobs.imagine("a lamp --relax --evaluations all", ANN, Destination("web", {"room": "1"}))
    (view,) = await app.services.job_views.load_queue("g")
    await app.store.end_job("fail", view.id, view.created, None, blame="member")

    async def relaxed() -> float:
        spending = await app.store.query(
            run_with_ledger, ANN, view.created, lambda ledger: ledger.get_relaxed_spending("member here", DAY_SECONDS)
        )
        return spending.total_cost

    before = await relaxed()
    assert before > 5
    await app.services.get(DataDeletion).request_deletion(ANN.id)
    while await app.services.get(DataDeletion).run_round():
        pass
    assert await app.store.get_job(view.id) is None
    assert await relaxed() == pytest.approx(before)
    spending = await app.store.query(
        run_with_ledger, ANN, view.created, lambda ledger: ledger.get_spending("guild", DAY_SECONDS)
    )
    assert spending.total_cost == 0.0
