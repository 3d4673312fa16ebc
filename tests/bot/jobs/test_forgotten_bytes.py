"""After a member was forgotten, no file of the data folder has their pictures, their words or their id any more."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from sqlalchemy import select

from bot.app.settings import load_settings
from bot.domain.dto import Destination, Member
from bot.services.data_deletion import DataDeletion
from bot.store.schema.tables import metadata
from engine.bus import BlobMissing
from engine.bus.embedded_broker import Broker
from engine.contract import PictureReady
from shared.app_harness import AppHarness

pytestmark = pytest.mark.asyncio

ANN = Member("discord:70010000000000001", "Annabella", "discord:2", channel="30")
BOB = Member("discord:70020000000000002", "Bob", "discord:2", channel="30")
PROMPT = "a lamp of unmistakable words"


@pytest_asyncio.fixture
async def harness(tmp_path: Path, database: str) -> Any:
    settings = load_settings(data=tmp_path / "data")  # SQLite: its file is in the data folder
    if not database.startswith("sqlite"):
        settings = settings.model_copy(update={"database_url": SecretStr(database)})
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(settings.data / "nats"))
        yield AppHarness(stack, broker, settings)


def find_files(folder: Path, *needles: bytes) -> list[str]:
    """The files that contain one of these, each with the first few bytes of what it contains."""
    return [
        f"{path.relative_to(folder)}: {needle[:24]!r}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for content in [path.read_bytes()]
        for needle in needles
        if needle in content
    ]


async def all_rows(app: Any) -> str:
    def read(connection: Any) -> str:
        return "\n".join(str(row) for table in metadata.sorted_tables for row in connection.execute(select(table)))

    return await app.store.query(read)


async def finish_job(app: Any, member: Member, prompt: str) -> str:
    (accepted,) = await app.services.jobs.imagine(f"{prompt} --count 1", member, Destination("web"))
    async with asyncio.timeout(20):
        while (await app.services.job_views.load_view(accepted.job)).state != "finished":
            await asyncio.sleep(0.02)
    return accepted.job


async def test_a_blob_is_gone_from_the_broker_once_the_bot_has_it(harness: AppHarness, wait_until: Any) -> None:
    app = await harness.open_app()
    await harness.start_worker()
    job = await finish_job(app, ANN, PROMPT)
    (picture,) = (await app.services.job_views.load_view(job)).pictures
    content = await app.services.gallery.read_picture(job, 0)

    async def is_dropped() -> bool:
        try:
            await app.bus.get_blob(picture.sha256, len(content))
        except BlobMissing:
            return not find_files(harness.settings.data / "nats", content)
        return False

    await wait_until(is_dropped)


async def test_no_file_of_the_data_folder_has_anything_of_a_forgotten_member(
    harness: AppHarness, wait_until: Any
) -> None:
    app = await harness.open_app()
    data = harness.settings.data
    worker, _ = await harness.start_worker()
    bobs_job = await finish_job(app, BOB, "a tree of other words")
    worker.scale = 2  # her picture is another one
    job = await finish_job(app, ANN, PROMPT)
    await app.services.preferences.set_preference(ANN.id, "results", "private")
    content = await app.services.gallery.read_picture(job, 0)
    await app.bus.put_blob(content)  # as after a crash between storing it and dropping it
    needles = [content, content[-64:], PROMPT.encode(), ANN.id.encode(), ANN.id.removeprefix("discord:").encode()]
    assert find_files(data, content), "the picture is kept"
    is_sqlite = harness.settings.database.startswith("sqlite")
    assert not is_sqlite or find_files(data, PROMPT.encode()), "so are the words"

    await app.services.get(DataDeletion).request_deletion(ANN.id)

    async def is_forgotten() -> bool:
        return not await app.services.get(DataDeletion).is_under_way(ANN.id) and not find_files(data, *needles)

    try:
        await wait_until(is_forgotten)
    except TimeoutError:
        pytest.fail(f"still there: {find_files(data, *needles)}")
    rows = await all_rows(app)
    assert PROMPT not in rows
    assert ANN.id not in rows
    assert await app.services.gallery.read_picture(bobs_job, 0), "another member's picture stays"


async def test_an_upscale_finds_its_source_though_the_same_bytes_were_just_dropped(harness: AppHarness) -> None:
    app = await harness.open_app()
    worker, _ = await harness.start_worker()
    job = await finish_job(app, ANN, PROMPT)
    (picture,) = (await app.services.job_views.load_view(job)).pictures
    worker.run_gate.clear()
    upscale = await app.services.variations.upscale(job, 0, ANN, Destination("web"))
    async with asyncio.timeout(10):
        while upscale.job not in worker.started_jobs:
            await asyncio.sleep(0.02)
    await app.queue.blobs.drop([picture.sha256])
    assert await worker.bus.get_blob(picture.sha256, 1 << 24), "a running job needs it"
    worker.run_gate.set()
    async with asyncio.timeout(10):
        while (await app.services.job_views.load_view(upscale.job)).state != "finished":
            await asyncio.sleep(0.02)

    async def is_dropped() -> bool:
        try:
            return not await worker.bus.get_blob(picture.sha256, 1 << 24)
        except BlobMissing:
            return True

    async with asyncio.timeout(10):
        while not await is_dropped():  # soon after the end is stored
            await asyncio.sleep(0.02)


async def test_a_result_that_comes_twice_needs_no_blob_the_second_time(harness: AppHarness) -> None:
    app = await harness.open_app()
    worker, _ = await harness.start_worker()
    worker.run_gate.clear()
    (accepted,) = await app.services.jobs.imagine(f"{PROMPT} --count 1", ANN, Destination("web"))
    async with asyncio.timeout(10):
        while accepted.job not in worker.started_jobs:
            await asyncio.sleep(0.02)
    record = await app.store.get_job(accepted.job)
    async with asyncio.timeout(10):
        while record is None or record.epoch == 0:
            record = await app.store.get_job(accepted.job)
            await asyncio.sleep(0.02)
    await worker.publish_picture(record.to_job(), record.epoch, 0)
    async with asyncio.timeout(10):
        while not (pictures := (await app.services.job_views.load_view(accepted.job)).pictures):
            await asyncio.sleep(0.02)
    content = await app.services.gallery.read_picture(accepted.job, 0)
    await app.queue.blobs.drop([pictures[0].sha256])
    again = PictureReady(
        job=accepted.job,
        image=0,
        epoch=record.epoch,
        kind="image",
        sha256=pictures[0].sha256,
        bytes=len(content),
        width=pictures[0].width,
        height=pictures[0].height,
    )
    await app.queue.result_consumer.apply_result(again)
    worker.run_gate.set()
