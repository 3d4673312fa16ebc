"""Requests whose clients wait: previews, then pictures; a client that leaves cancels what it asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from bot.domain.errors import UserError
from bot.jobs.attended_requests import AttendedRequest, AttendedRequests, PictureRequest, PicturesMissing, Preview
from engine.contract import JobFailed

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def worker(harness):
    worker, _ = await harness.start_worker()
    return worker


@pytest_asyncio.fixture
async def services(harness, worker, wait_until):
    app = await harness.open_app()
    await wait_until(lambda: app.services.live_workers())
    return app.services


async def test_previews_come_first_and_then_the_pictures_of_all_jobs(services, worker, ann, destination):
    request = PictureRequest("a lamp", {"count": 2, "repeat": 2, "steps": 40})
    previews = list[Preview]()
    async with services.get(AttendedRequests).admit(request, ann, destination) as attended_request:
        async for preview in attended_request.follow_previews():
            previews.append(preview)
        pictures = await attended_request.read_pictures()
    assert previews
    assert previews[0].total_steps == 40
    assert {preview.picture for preview in previews} <= {0, 1, 2, 3}
    assert [picture.picture for picture in pictures] == [0, 1, 2, 3]
    assert [picture.job for picture in pictures] == [job.job for job in attended_request.jobs for _ in range(2)]
    assert all(picture.png.startswith(b"\x89PNG") for picture in pictures)
    assert [view.state for view in attended_request.views] == ["finished", "finished"]


@pytest.mark.parametrize(("key", "state"), [(None, "cancelled"), ("a-key", "finished")])
async def test_a_client_that_leaves_cancels_its_job_unless_it_may_come_back(
    services, worker, ann, destination, wait_until, key, state
):
    worker.run_gate.clear()
    request = PictureRequest("a lamp", {"count": 1}, key=key)
    async with services.get(AttendedRequests).admit(request, ann, destination, with_previews=False) as attended_request:
        await wait_until(lambda: worker.started_jobs)
    worker.run_gate.set()
    job = attended_request.jobs[0].job

    async def is_over():
        return (await services.job_views.load_view(job)).state == state

    await wait_until(is_over)
    if key:
        async with services.get(AttendedRequests).admit(request, ann, destination) as found:
            assert [picture.job for picture in await found.read_pictures()] == [job]


async def test_a_failed_job_says_why_and_a_refused_request_makes_none(services, worker, ann, destination):
    worker.make_result = lambda job, epoch: JobFailed(
        job=job.id, epoch=epoch, reason="The model has no such layer.", blame="worker"
    )
    async with services.get(AttendedRequests).admit(PictureRequest("a lamp"), ann, destination) as attended_request:
        with pytest.raises(PicturesMissing, match="The model has no such layer") as failure:
            await attended_request.read_pictures()
    assert failure.value.state == "failed"
    with pytest.raises(UserError, match="steps"):
        async with services.get(AttendedRequests).admit(PictureRequest("a lamp", {"steps": 0}), ann, destination):
            pytest.fail("it was admitted")


async def test_a_picture_that_a_split_adds_has_a_number_of_its_own() -> None:
    jobs: Any = [SimpleNamespace(job=name, count=2) for name in ("one", "two")]
    request = AttendedRequest(jobs, (), None, None)  # pyright: ignore[reportArgumentType]  (nothing is read)
    numbers = [request._number_picture(job, index) for job in ("one", "two") for index in range(4)]
    assert numbers == [0, 1, 6, 7, 2, 3, 10, 11]
