"""The cleanup deletes files that no job names after a day. It keeps files of jobs and of other databases."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import pytest_asyncio

from bot.jobs.retention import DAY_SECONDS, MIN_SUSPICIOUS, OrphanFiles
from bot.pictures.picture_store import PictureStore
from bot.store import Store
from shared.stored_jobs import finish_job, list_contents, make_content, make_new_job

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def pictures(tmp_path: Any) -> PictureStore:
    return await asyncio.to_thread(PictureStore, tmp_path / "pictures")


def orphan_sweeper(store: Store, pictures: PictureStore, days: float = 2.0) -> OrphanFiles:
    return OrphanFiles(store, pictures, clock=lambda: time.time() + days * DAY_SECONDS)


async def test_a_file_that_no_job_names_is_deleted_after_a_day(sqlite_store, pictures, tmp_path):
    await finish_job(sqlite_store, pictures, make_new_job(), "named")
    await pictures.put(make_content("lost"))
    assert await orphan_sweeper(sqlite_store, pictures, days=0.5).sweep() == 0
    assert await orphan_sweeper(sqlite_store, pictures).sweep() == 1
    assert await asyncio.to_thread(list_contents, tmp_path / "pictures") == {"named"}
    assert await orphan_sweeper(sqlite_store, pictures).sweep() == 0


async def test_a_file_that_a_job_names_during_the_sweep_stays(sqlite_store, pictures):
    await finish_job(sqlite_store, pictures, make_new_job(), "named")
    name = await pictures.put(make_content("late"))
    sweeper = orphan_sweeper(sqlite_store, pictures)
    async with pictures.lock(name):
        task = asyncio.create_task(sweeper.sweep())
        await asyncio.sleep(0.2)
        await finish_job(sqlite_store, pictures, make_new_job(), "late")
    assert await task == 0
    assert await pictures.has(name)


@pytest.mark.parametrize(("own_count", "foreign_count"), [(0, 2), (MIN_SUSPICIOUS + 2, MIN_SUSPICIOUS + 1)])
async def test_the_picture_store_of_another_database_is_not_touched(
    sqlite_store, pictures, caplog, own_count, foreign_count
):
    for number in range(own_count):
        await finish_job(sqlite_store, pictures, make_new_job(), f"own {number}")
    names = [await pictures.put(make_content(str(number))) for number in range(foreign_count)]
    assert await orphan_sweeper(sqlite_store, pictures).sweep() == 0
    assert "is it this database's?" in caplog.text
    assert all([await pictures.has(name) for name in names])
