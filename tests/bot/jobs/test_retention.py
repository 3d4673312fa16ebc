"""Retention: what is deleted by age or for space, what stays, and that no crash loses or leaves a picture."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from bot.app.settings import load_settings
from bot.domain.dto import Destination, Member
from bot.domain.errors import UserError
from bot.jobs.retention import DAY_SECONDS, GRACE_SECONDS, REASON_SECONDS, FileCleanup, Retention, RetentionLimits
from bot.jobs.views import REMOVAL_SENTENCES, missing_job_error
from bot.pictures.picture_store import PictureStore
from bot.store import Store
from bot.store.deletion import retention
from bot.store.fairness.ledger import Ledger
from bot.store.jobs import queries
from bot.store.members import preferences
from bot.store.moderation import incidents
from bot.store.schema.deletion_tables import archived_charges, charge_keys, deleted_jobs
from bot.store.schema.tables import jobs
from shared.stored_jobs import PICTURE_BYTES, admit_job, finish_job, list_contents, make_content, make_new_job

pytestmark = pytest.mark.asyncio
NOW = 100 * DAY_SECONDS
OLD = NOW - 31 * DAY_SECONDS
NEW = NOW - 5 * DAY_SECONDS


@pytest_asyncio.fixture
async def pictures(tmp_path: Any) -> PictureStore:
    return await asyncio.to_thread(PictureStore, tmp_path / "pictures")


def build_retention(
    store: Store, pictures: PictureStore, *, days: float | None = None, room: int | None = None, now=NOW
):
    limits = RetentionLimits(None if days is None else days * DAY_SECONDS, room)
    return Retention(store, FileCleanup(store, pictures), limits, clock=lambda: now)


async def job_ids(store: Store) -> set[str]:
    return set(await store.query(lambda c: c.execute(jobs.select()).scalars().all()))


async def read_usage(store: Store, user: str, subject: Any = "member everywhere", guild: str = "local") -> list[float]:
    """Returns the seconds used, and when three of them are free again."""
    member = Member(user, user, guild, channel="room")

    def read_ledger(connection: Any) -> list[float]:
        usage = Ledger(connection, member, NOW).get_spending(subject, 30 * DAY_SECONDS)
        return [usage.total_cost, usage.frees_at(3.0)]

    return await store.query(read_ledger)


async def test_old_jobs_are_deleted_with_everything_they_own(store, pictures, tmp_path):
    old = await finish_job(store, pictures, make_new_job(created_at=OLD), "old", "shared")
    new = await finish_job(store, pictures, make_new_job(created_at=NEW), "new", "shared")
    await build_retention(store, pictures).sweep()
    assert await job_ids(store) == {old, new}, "without a setting everything is kept for ever"
    await build_retention(store, pictures, days=30).sweep()
    assert await job_ids(store) == {new}
    assert await asyncio.to_thread(list_contents, tmp_path / "pictures") == {"new", "shared"}
    assert await store.query(queries.list_audit, [old]) == []
    assert await store.query(queries.list_pictures, [old]) == []
    error = await missing_job_error(store, old)
    assert (error.sentence, error.status) == (REMOVAL_SENTENCES["age"], 410)
    assert (await missing_job_error(store, "0" * 26)).status == 404


async def test_jobs_that_someone_may_still_need_stay(store, pictures):
    favourite_job, shown_job, reported_job, parent_job, unreferenced_job = [
        await finish_job(store, pictures, make_new_job(created_at=OLD, destination=Destination(kind, {})))
        for kind in ("web", "discord", "web", "web", "web")
    ]
    await store.write(preferences.toggle_favourite, "local:bob", favourite_job, 0, OLD)
    await store.write(incidents.write_report, "local", "local:bob", "Bob", "rude", OLD, reported_job)
    waiting_job = await admit_job(store, make_new_job(created_at=OLD, action="upscale", parent=(parent_job, 0)))
    await build_retention(store, pictures, days=30, room=1).sweep()
    assert await job_ids(store) == {favourite_job, shown_job, reported_job, parent_job, waiting_job}, (
        "only the unneeded job is deleted"
    )
    assert unreferenced_job not in await job_ids(store)
    for number in [one.number for one in await store.query(incidents.list_incidents, "local", 9, open_only=True)]:
        await store.write(incidents.close_incident, "local", number, ("local:mod", "Mo"), NOW)
    await build_retention(store, pictures, days=30).sweep()
    assert await job_ids(store) == {favourite_job, shown_job, parent_job, waiting_job}


async def test_charges_outlive_their_jobs_without_the_members_name(store, pictures):
    for created_at in (NOW - 3 * DAY_SECONDS, NOW - 2 * DAY_SECONDS):
        await finish_job(store, pictures, make_new_job(created_at=created_at))
    before = [await read_usage(store, "local:ann", subject) for subject in SUBJECTS]
    await build_retention(store, pictures, days=1).sweep()
    assert await job_ids(store) == set()
    after = [await read_usage(store, "local:ann", subject) for subject in SUBJECTS]
    assert after == before == [[4.0, NOW + 28 * DAY_SECONDS]] * 4
    assert [(await read_usage(store, "local:bob", subject))[0] for subject in SUBJECTS] == [0, 0, 4, 4]
    assert (await read_usage(store, "local:ann", "member here", "elsewhere"))[0] == 0
    charges = await store.query(lambda c: c.execute(archived_charges.select()).all())
    assert len(charges) == 2
    assert "ann" not in str(charges)
    await build_retention(store, pictures, now=NOW + 29 * DAY_SECONDS).sweep()
    for table in (archived_charges, charge_keys):
        assert await store.query(lambda c, table=table: c.execute(table.select()).all()) == []


SUBJECTS = ("member everywhere", "member here", "guild", "channel")


async def test_the_oldest_jobs_make_room_and_shared_content_counts_once(store, pictures, tmp_path):
    old_jobs = [
        await finish_job(store, pictures, make_new_job(created_at=NEW + n), "shared", f"own {n}") for n in range(5)
    ]
    new_job = await finish_job(store, pictures, make_new_job(created_at=NOW - GRACE_SECONDS / 2))
    await store.write(preferences.toggle_favourite, "local:ann", old_jobs[1], 0, NOW)
    assert await store.query(retention.sum_bytes) == 7 * PICTURE_BYTES
    await build_retention(store, pictures, room=5 * PICTURE_BYTES).sweep()
    assert await job_ids(store) == {old_jobs[1], old_jobs[3], old_jobs[4], new_job}
    assert await asyncio.to_thread(list_contents, tmp_path / "pictures") == {
        "shared",
        "own 1",
        "own 3",
        "own 4",
        new_job,
    }
    assert (await missing_job_error(store, old_jobs[0])).sentence == REMOVAL_SENTENCES["room"]
    await build_retention(store, pictures, room=1).sweep()
    assert await job_ids(store) == {old_jobs[1], new_job}, (
        "favourites and the newest jobs stay, however little room there is"
    )


async def test_retention_stops_while_the_picture_store_is_unreachable(store, pictures, tmp_path, monkeypatch):
    old_jobs = [await finish_job(store, pictures, make_new_job(created_at=NEW + n), f"own {n}") for n in range(4)]

    async def fail(_sha256: str) -> None:
        raise OSError("away")

    with monkeypatch.context() as patches:
        patches.setattr(pictures, "delete", fail)
        await build_retention(store, pictures, room=3 * PICTURE_BYTES).sweep()
    assert await job_ids(store) == set(old_jobs), "the row says that its file is still there"
    error = await missing_job_error(store, old_jobs[0], is_deleted=True)
    assert (error.sentence, error.status) == (REMOVAL_SENTENCES["room"], 410)
    await build_retention(store, pictures).sweep()
    assert await job_ids(store) == set(old_jobs[1:])
    assert await asyncio.to_thread(list_contents, tmp_path / "pictures") == {"own 1", "own 2", "own 3"}


class PowerCut(BaseException):
    """A power cut in the middle of a sweep."""


def cut_after(steps: int, store: Store, pictures: PictureStore, patches: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Lets `steps` changes succeed and then fails every one. The result tells whether any failed."""
    left = [steps]
    real = {"write": store.write, "drop": pictures.delete}

    def make_failing(name: str) -> Callable[..., Any]:
        async def run_or_fail(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise PowerCut
            return await real[name](*args, **options)

        return run_or_fail

    patches.setattr(store, "write", make_failing("write"))
    patches.setattr(pictures, "delete", make_failing("drop"))
    return lambda: left[0] < 0


async def test_a_crash_anywhere_loses_nothing_and_leaves_nothing(sqlite_store, pictures, tmp_path, monkeypatch):
    store = sqlite_store
    for steps in range(100):
        old = await finish_job(
            store, pictures, make_new_job(created_at=NOW - 20 * DAY_SECONDS), f"old {steps}", f"shared {steps}"
        )
        new = await finish_job(store, pictures, make_new_job(created_at=NEW), f"new {steps}", f"shared {steps}")
        with monkeypatch.context() as patches:
            was_cut = cut_after(steps, store, pictures, patches)
            with contextlib.suppress(PowerCut):
                await build_retention(store, pictures, days=10).sweep()
            has_crashed = was_cut()
        for one in await store.query(queries.list_pictures, [new]):
            assert await pictures.get(one.sha256), "every picture that a row names exists"
        assert (await read_usage(store, "local:ann"))[0] == 4.0
        await build_retention(store, pictures, days=10).sweep()
        assert await job_ids(store) == {new}
        assert await asyncio.to_thread(list_contents, tmp_path / "pictures") == {f"new {steps}", f"shared {steps}"}
        assert (await read_usage(store, "local:ann"))[0] == 4.0
        for job in (old, new):
            await store.write(lambda c, job=job: c.execute(jobs.delete().where(jobs.c.id == job)))
        await store.write(lambda c: c.execute(archived_charges.delete()))
        for text in (f"new {steps}", f"shared {steps}"):
            await pictures.delete(await pictures.put(make_content(text)))
        if not has_crashed:
            assert steps > 5, "a sweep has more than five changes to interrupt"
            return
    raise AssertionError("the sweep never ended")


async def test_the_record_of_a_deleted_job_is_forgotten_after_a_year(store, pictures):
    await finish_job(store, pictures, make_new_job(created_at=OLD))
    await build_retention(store, pictures, days=30).sweep()
    assert len(await store.query(lambda c: c.execute(deleted_jobs.select()).all())) == 1
    await build_retention(store, pictures, now=NOW + REASON_SECONDS + 1).sweep()
    assert await store.query(lambda c: c.execute(deleted_jobs.select()).all()) == []


async def test_the_retention_settings_are_read_and_checked(monkeypatch):
    settings = load_settings(keep_days=30, keep_gb=0.5)
    assert (settings.keep_seconds, settings.keep_bytes) == (30 * DAY_SECONDS, 500_000_000)
    assert (load_settings().keep_seconds, load_settings().keep_bytes) == (None, None)
    for name, invalid_value in (("DARKROOM_KEEP_DAYS", "0"), ("DARKROOM_KEEP_GB", "-1")):
        monkeypatch.setenv(name, invalid_value)
        with pytest.raises(UserError, match=f"{name} is not valid"):
            load_settings()
        monkeypatch.delenv(name)


async def test_a_running_bot_deletes_old_jobs(harness, wait_until, ann, destination):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    (accepted,) = await app.services.jobs.imagine("a lamp --count 1", ann, destination)

    async def is_over() -> bool:
        record = await app.store.get_job(accepted.job)
        return record is None or record.ended is not None

    await wait_until(is_over)
    app.retention.limits = replace(app.retention.limits, max_seconds=0.0)
    await app.retention.sweep()
    with pytest.raises(UserError, match="limited time"):
        await app.services.job_views.load_view(accepted.job)
