"""Deletion of a member's data: all of it and nothing of others, whatever fails midway."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select, update

from bot.domain.dto import Delivery, Destination, Member
from bot.domain.errors import UserError
from bot.domain.events import Feed
from bot.jobs.retention import FileCleanup
from bot.jobs.views import missing_job_error
from bot.pictures.picture_store import PictureStore
from bot.services.data_deletion import DataDeletion
from bot.services.front_end_actions import FrontEndActions
from bot.store import Store
from bot.store.deletion import erasure
from bot.store.fairness.ledger import Ledger
from bot.store.jobs import destinations, queries
from bot.store.members import preferences
from bot.store.moderation import incidents
from bot.store.schema.deletion_tables import archived_charges
from bot.store.schema.tables import accounts, metadata
from bot.store.schema.tables import jobs as job_rows
from bot.store.transitions.job_admin import fail_unreadable_jobs
from shared.stored_jobs import admit_job, finish_job, list_contents, make_new_job
from shared.two_members import ANN, BOB, NOW, create_jobs

pytestmark = pytest.mark.asyncio
SHOWN = Destination("discord", {"channel": "5", "message": "60"})


@pytest_asyncio.fixture
async def pictures(tmp_path: Any) -> PictureStore:
    return await asyncio.to_thread(PictureStore, tmp_path / "pictures")


def make_deletion(
    store: Store, pictures: PictureStore, *, waits_for_commit: bool = False, now: float = NOW
) -> DataDeletion:
    async def cancel(job: str) -> object:
        return await store.request_cancel(job, now)

    return DataDeletion(
        store,
        cancel,
        FileCleanup(store, pictures),
        Feed(),
        FrontEndActions(),
        waits_for_discord=waits_for_commit,
        clock=lambda: now,
    )


async def all_rows(store: Store) -> str:
    """All rows of all tables, as text."""

    def read(connection: Any) -> str:
        return "\n".join(str(row) for table in metadata.sorted_tables for row in connection.execute(table.select()))

    return await store.query(read)


async def sum_charges(store: Store, user: str) -> float:
    member = Member(user, user, "local", channel="room")
    return await store.query(lambda c: Ledger(c, member, NOW).get_spending("member everywhere", 86400.0).total_cost)


async def test_all_data_of_a_member_is_deleted_and_none_of_others(store, pictures, tmp_path):
    jobs = await create_jobs(store, pictures)
    before = await sum_charges(store, ANN)
    deletion = make_deletion(store, pictures)
    assert await deletion.count_jobs(ANN) == 3
    assert await deletion.request_deletion(ANN) == 3
    assert await deletion.is_under_way(ANN)
    await deletion.run_round()
    assert await deletion.run_round() is False
    assert not await deletion.is_under_way(ANN)
    text = await all_rows(store)
    assert "70010000000000001" not in text
    assert "70020000000000002" in text
    assert await asyncio.to_thread(list_contents, tmp_path / "pictures") == {"bob's", "both's"}
    assert set(await store.query(queries.get_jobs, list(jobs.values()))) == {jobs["bob's"], jobs["enlarged"]}
    assert (await missing_job_error(store, jobs["done"])).status == 410
    assert (before, await sum_charges(store, ANN)) == (8.0, 4.0), "spent cost stays; the job that never ran is refunded"
    (report,) = await store.query(incidents.list_incidents, "local", 9, open_only=True)
    assert (report.actor_name, report.text, report.job) == (erasure.DELETED_MEMBER, "rude", jobs["bob's"])
    assert await store.query(preferences.list_favourites, BOB) == []


async def test_data_of_other_servers_and_later_jobs_stay(store, pictures):
    jobs = await create_jobs(store, pictures)
    deletion = make_deletion(store, pictures)
    await deletion.request_deletion(ANN, "discord:9")
    later_job = await admit_job(store, make_new_job(ANN, created_at=NOW + 1, guild="discord:9"))
    await deletion.run_round()
    assert await store.get_job(jobs["elsewhere"]) is None
    assert all([await store.get_job(job) for job in (jobs["done"], jobs["waits"], later_job)])
    assert await store.query(preferences.load_preferences, ANN) != {}
    await deletion.request_deletion(ANN)
    await deletion.run_round()
    await deletion.run_round()
    assert await store.get_job(jobs["done"]) is None
    assert await store.get_job(later_job), "it came after the deletion request"
    remaining_rows = await store.query(lambda c: c.execute(accounts.select().where(accounts.c.queued > 0)).all())
    assert any("70010000000000001" in row.path for row in remaining_rows), "it keeps its place in the queue"


async def test_messages_are_deleted_if_discord_permits_and_wait_while_it_is_unreachable(store, pictures):
    job = await finish_job(store, pictures, make_new_job(ANN, created_at=10, destination=SHOWN), "ann's")
    await store.write(destinations.update_destination, job, SHOWN.address)
    await store.write(destinations.mark_delivered, job, 11.0)
    await store.write(destinations.add_film, job, Destination("discord", {"channel": "5", "message": "61"}), 11.0)
    deletion = make_deletion(store, pictures, waits_for_commit=True)
    deleted_messages = []
    answers = [True, ConnectionError("away"), False]

    async def take_away(_job: str, one: Delivery) -> bool:
        deleted_messages.append(one.message)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    await deletion.request_deletion(ANN)
    await deletion.run_round()
    assert await deletion.is_under_way(ANN), "nothing can delete its messages yet"
    assert await store.query(queries.list_pictures, [job]) == [], "its pictures go at once"
    deletion.front_end.connect(delete_message=take_away)
    await deletion.run_round()
    assert await deletion.is_under_way(ANN)
    await deletion.run_round()
    assert sorted(deleted_messages[:2]) == ["60", "61"]
    assert deleted_messages[2] == deleted_messages[1], "a deleted message is not deleted again"
    assert not await deletion.is_under_way(ANN)
    assert await store.get_job(job) is None


class PowerCut(BaseException):
    """The process dies here."""


async def test_a_deletion_that_is_killed_at_any_write_continues(sqlite_store, pictures, tmp_path, monkeypatch):
    store = sqlite_store
    for steps in range(0, 100, 3):
        await store.write(lambda c: [c.execute(table.delete()) for table in reversed(metadata.sorted_tables)])
        jobs = await create_jobs(store, pictures)
        deletion = make_deletion(store, pictures)
        writes_left = [steps]
        await deletion.request_deletion(ANN)
        real = store.write

        async def write_or_fail(
            *args: Any, writes_left: list[int] = writes_left, real: Any = real, **options: Any
        ) -> Any:
            writes_left[0] -= 1
            if writes_left[0] < 0:
                raise PowerCut
            return await real(*args, **options)

        with monkeypatch.context() as patches:
            patches.setattr(store, "write", write_or_fail)
            with contextlib.suppress(PowerCut):
                while await deletion.is_under_way(ANN):
                    await deletion.run_round()
        second_deletion = make_deletion(store, pictures)
        while await second_deletion.is_under_way(ANN):
            await second_deletion.run_round()
        text = await all_rows(store)
        assert "70010000000000001" not in text, steps
        assert await sum_charges(store, ANN) == 4.0, steps
        assert await asyncio.to_thread(list_contents, tmp_path / "pictures") == {"bob's", "both's"}
        assert await store.get_job(jobs["bob's"])
        if writes_left[0] >= 0:
            assert steps > 5
            return
    raise AssertionError("the deletion never finished")


@pytest.mark.slow
async def test_running_jobs_are_cancelled_before_they_are_deleted(harness, wait_until, destination):
    app = await harness.open_app()
    worker, _ = await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    worker.run_gate.clear()
    ann = Member(ANN, "Ann", "local")
    jobs = [(await app.services.jobs.imagine("a lamp --count 1", ann, destination))[0].job for _ in range(4)]
    await wait_until(lambda: worker.started_jobs)
    assert await app.services.get(DataDeletion).request_deletion(ANN) == 4

    async def is_forgotten() -> bool:
        return not await app.services.get(DataDeletion).is_under_way(ANN)

    await wait_until(is_forgotten, 20)
    assert await app.store.query(queries.get_jobs, jobs) == {}
    assert not worker.running_jobs
    with pytest.raises(UserError, match="its author had everything removed"):
        await app.services.job_views.load_view(jobs[0])
    charge_rows = await app.store.query(lambda c: c.execute(archived_charges.select()).all())
    assert len(charge_rows) == len(worker.started_jobs), "jobs that ran are charged and counted without a name"


async def test_a_job_with_an_unreadable_row_is_deleted_once_it_is_over(store, pictures, caplog):
    job = await finish_job(store, pictures, make_new_job(ANN, created_at=10), "ann's")
    waiting_job = await admit_job(store, make_new_job(ANN, created_at=12))
    await store.write(lambda c: c.execute(update(job_rows).values(task=b"\0")) and None)
    deletion = make_deletion(store, pictures)
    await deletion.request_deletion(ANN)
    assert await deletion.run_round() is True, "the waiting job cannot be cancelled and blocks no other"
    remaining_rows = await store.query(lambda c: c.execute(select(job_rows.c.id, job_rows.c.state)).all())
    assert [tuple(row) for row in remaining_rows] == [(waiting_job, "queued")]
    assert f"job {waiting_job}: " in caplog.text
    assert f"job {job}: " not in caplog.text
    assert await store.write(fail_unreadable_jobs, NOW) == [waiting_job]
    caplog.clear()
    assert await deletion.run_round() is False
    assert not await deletion.is_under_way(ANN)
    assert "70010000000000001" not in await all_rows(store)
    assert caplog.text == ""
