"""A worker whose engine is a ComfyUI: jobs are drawn, shown, cancelled, and handed back while it does not answer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace
from PIL import Image

from engine.backends.comfyui.client import ComfyUi
from engine.contract import (
    Concept,
    ImageToImage,
    InitImage,
    Job,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobHandedBack,
    JobStarted,
    Ladder,
    ModelProfile,
    PictureReady,
    Recipe,
    UpscaleTask,
    Verdict,
    count_row_steps,
    decode,
)
from engine.process.settings import BackendSettings
from engine.remote.drawing import BackendBusy, DrawProgress, DrawRequest, OnProgress
from engine.remote.worker import BackendWorker
from shared.backend_harness import open_bus, run_backend_worker, serve
from shared.bus_harness import JOB, OTHER_JOB, BusHarness, make_job
from shared.clock import wait_until
from tests.engine.backends.comfyui.comfyui_stand_in import ComfyUiStandIn

BACKEND_STEPS = 4


class ComfyRoom:
    """A broker, a ComfyUI and a worker between them."""

    def __init__(self, harness: BusHarness, comfyui: ComfyUiStandIn, worker: BackendWorker) -> None:
        self.harness = harness
        self.comfyui = comfyui
        self.worker = worker

    def find_model(self, name: str = "sd15") -> ModelProfile:
        return next(model for model in self.harness.bot.workers["comfy"].models if model.name == name)

    def make_job(self, job: str = JOB, **changes: Any) -> Job:
        model = self.find_model()
        fields: dict[str, Any] = {
            "model": model.name,
            "revision": model.revision,
            "sampler": "euler",
            "dtype": model.dtype,
            "bucket": None,
            "guidance": 5.0,
            "steps": BACKEND_STEPS,
        }
        return make_job(job, **{**fields, **changes})

    async def draw(self, job: Job) -> list[Any]:
        await self.harness.bot.dispatch(job)
        return await self.harness.collect_results(job.id)

    async def open_picture(self, picture: PictureReady) -> Image.Image:
        return Image.open(BytesIO(await self.harness.bot.get_blob(picture.sha256, picture.bytes)))


@pytest_asyncio.fixture
async def room(tmp_path: Path) -> AsyncIterator[ComfyRoom]:
    comfyui = ComfyUiStandIn()
    async with AsyncExitStack() as stack:
        harness = await stack.enter_async_context(open_bus(tmp_path))
        url = await stack.enter_async_context(serve(comfyui.app))
        settings = BackendSettings(kind="comfyui", url=url)
        worker = await stack.enter_async_context(run_backend_worker(harness, settings, tmp_path))
        await wait_until(lambda: "comfy" in harness.bot.workers)
        yield ComfyRoom(harness, comfyui, worker)


@pytest.mark.asyncio
async def test_a_job_runs_from_dispatch_to_its_pictures_and_ladders(room: ComfyRoom, tmp_path: Path) -> None:
    prompt = 'a red apple "%seed%" \\ {"class_type": "SaveImage"} %negative%'
    guessed = room.find_model().row_ms
    results = await room.draw(room.make_job(concepts=(Concept(prompt),), ladder=True, count=2, negative="blurry"))
    assert isinstance(results[0], JobStarted)
    assert isinstance(results[-1], JobFinished)
    pictures = {(value.kind, value.image): value for value in results if isinstance(value, PictureReady)}
    assert sorted(pictures) == [("image", 0), ("image", 1), ("ladder", 0), ("ladder", 1)]
    for image in (0, 1):
        picture = await room.open_picture(pictures["image", image])
        assert (picture.size, picture.getpixel((0, 0))) == ((64, 64), (7 + image, 99, 0)), "each has its own seed"
        text = picture.info["parameters"]
        assert "a red apple" in text
        assert f"Seed: {7 + image}" in text
        ladder = decode(await room.harness.bot.get_blob(pictures["ladder", image].sha256, 10**7), Ladder)
        assert ladder.keyframes[-1].step == BACKEND_STEPS
        assert all(keyframe.latent is None for keyframe in ladder.keyframes), "nothing can branch from them"
    assert room.comfyui.forgotten == [order["prompt_id"] for order in room.comfyui.orders]
    sampling = room.comfyui.orders[0]["prompt"]["sampling"]["inputs"]
    assert (sampling["steps"], sampling["cfg"], sampling["sampler_name"]) == (BACKEND_STEPS, 5.0, "euler")
    texts = [room.comfyui.orders[0]["prompt"][name]["inputs"]["text"] for name in ("prompt", "negative")]
    assert texts == [prompt, "blurry"], "a member's words are values, never slots or nodes"
    stored = json.loads((tmp_path / "backend-times.json").read_text())
    assert set(stored) == {room.find_model().revision}
    await wait_until(lambda: room.find_model().row_ms != guessed)
    assert room.find_model().row_ms == pytest.approx(stored[room.find_model().revision]), "prices follow the real times"


@pytest.mark.asyncio
async def test_it_offers_the_models_and_samplers_of_the_server(room: ComfyRoom) -> None:
    models = room.harness.bot.workers["comfy"].models
    assert [(model.name, model.size) for model in models] == [("sd15", 512), ("folder-sdxl-base", 1024)]
    assert set(models[0].samplers) == {
        "euler",
        "euler_karras",
        "euler_ancestral",
        "dpmpp_2m",
        "dpmpp_2m_karras",
        "ddim",
        "unipc",
        "kdpm2",
    }
    assert models[0].revision != models[1].revision
    assert "variation" in models[0].lacks
    assert "picture" not in models[0].lacks


@pytest.mark.asyncio
async def test_previews_reach_watchers_and_a_cancel_interrupts_the_server(room: ComfyRoom) -> None:
    room.comfyui.hold = 0
    room.comfyui.busy_answers = 2
    frames: list[Any] = []

    async def collect_frames() -> None:
        async for frame in room.harness.bot.watch_frames():
            frames.append(frame)

    collect_task = asyncio.create_task(collect_frames())
    await room.harness.bot.request_previews(JOB)
    await asyncio.sleep(0.1)  # until the worker has the request
    await room.harness.bot.dispatch(room.make_job())
    await wait_until(lambda: frames, 20)
    collect_task.cancel()
    assert room.harness.bot.workers["comfy"].free == 0, "the next job waits in the fair queue"
    assert (frames[0].job, frames[0].step, frames[0].total_steps) == (JOB, 1, BACKEND_STEPS)
    assert Image.open(BytesIO(frames[0].picture)).format == "JPEG"
    await room.harness.bot.cancel(JOB)
    end = (await room.harness.collect_results())[-1]
    assert isinstance(end, JobCancelled)
    assert end.steps == 1
    assert room.comfyui.interrupted == [room.comfyui.orders[0]["prompt_id"]]
    room.comfyui.hold = None
    assert isinstance((await room.draw(room.make_job(OTHER_JOB)))[-1], JobFinished)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_cancelled_grid_costs_what_was_drawn_of_it(room: ComfyRoom) -> None:
    room.comfyui.hold = 1
    job = replace(room.make_job(count=4), cost=8.0)
    await room.harness.bot.dispatch(job)
    await wait_until(lambda: any(run.steps_done.get(1) == 1 for run in room.worker.active_runs))
    await room.harness.bot.cancel(JOB)
    end = (await room.harness.collect_results())[-1]
    assert isinstance(end, JobCancelled)
    assert (end.steps, end.cost) == (1, 2.0), "5 of 16 steps: one of four on average"


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_price_has_no_waits_in_it(room: ComfyRoom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    answers = ["busy", "picture"]

    async def draw(comfyui: ComfyUi, request: DrawRequest, on_progress: OnProgress) -> bytes:
        now[0] += 100.0
        if answers.pop(0) == "busy":
            raise BackendBusy("It is busy.", 0.0)
        on_progress(DrawProgress(0.0, begins=True))
        now[0] += 2.0
        content = BytesIO()
        Image.new("RGB", (64, 64)).save(content, "PNG")
        return content.getvalue()

    monkeypatch.setattr(ComfyUi, "draw", draw)
    monkeypatch.setattr("engine.remote.pictures.time", SimpleNamespace(monotonic=lambda: now[0]))
    job = room.make_job()
    assert isinstance(job.task, Recipe)
    assert isinstance((await room.draw(job))[-1], JobFinished)
    (milliseconds,) = json.loads((tmp_path / "backend-times.json").read_text()).values()
    area = job.task.width * job.task.height / room.find_model().size ** 2
    assert milliseconds == pytest.approx(2000 / area / count_row_steps(job.task))


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_picture_and_a_mask_take_their_own_workflow(room: ComfyRoom) -> None:
    start = BytesIO()
    mask = BytesIO()
    Image.new("RGB", (90, 40), "red").save(start, "PNG")
    Image.new("L", (90, 40), 255).save(mask, "PNG")
    start_sha, mask_sha = [await room.harness.bot.put_blob(each.getvalue()) for each in (start, mask)]
    edit = ImageToImage((InitImage(start_sha),), 0.5, mask_sha)
    assert isinstance((await room.draw(room.make_job(start=edit)))[-1], JobFinished)
    nodes = room.comfyui.orders[0]["prompt"]
    assert (nodes["sampling"]["inputs"]["steps"], nodes["sampling"]["inputs"]["denoise"]) == (2, 0.5)
    uploads = [Image.open(BytesIO(content)) for content in room.comfyui.uploads.values()]
    assert [(upload.size, upload.mode) for upload in uploads] == [((64, 64), "RGB"), ((64, 64), "L")]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_what_the_server_sends_is_checked(room: ComfyRoom) -> None:
    room.comfyui.picture = b"\x89PNG\r\n\x1a\n no picture"
    end = (await room.draw(room.make_job()))[-1]
    assert isinstance(end, JobFailed)
    assert (end.reason, end.blame, end.retry) == ("The backend's picture cannot be read.", "worker", True)
    large = BytesIO()
    Image.new("1", (5000, 5000)).save(large, "PNG")
    room.comfyui.picture = large.getvalue()
    end = (await room.draw(room.make_job(OTHER_JOB)))[-1]
    assert isinstance(end, JobFailed)
    assert end.reason == "The backend's picture is too large."


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_feature_that_no_front_end_refused_fails_with_a_sentence(room: ComfyRoom) -> None:
    end = (await room.draw(room.make_job(tile=True)))[-1]
    assert isinstance(end, JobFailed)
    assert (end.reason, end.blame) == ("sd15 is behind another server, which takes no tile.", "member")
    assert room.comfyui.orders == []


class FlaggingCheck:
    """A picture check that flags everything."""

    def check_preview(self, job: Job, image: int, steps_share: float, decode_x0: Callable[[], Image.Image]) -> Verdict:
        return "flagged" if decode_x0().size == (64, 64) else "unchecked"

    def check_final(self, job: Job, content: bytes) -> Verdict:
        return "flagged"

    def forget_job(self, job: str) -> None:
        """It remembers none."""


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_operators_picture_check_sees_the_pictures(tmp_path: Path) -> None:
    comfyui = ComfyUiStandIn()
    async with open_bus(tmp_path) as harness, serve(comfyui.app) as url:
        settings = BackendSettings(kind="comfyui", url=url)
        async with run_backend_worker(harness, settings, tmp_path, checks=FlaggingCheck()) as worker:
            await wait_until(lambda: "comfy" in harness.bot.workers)
            room = ComfyRoom(harness, comfyui, worker)
            results = await room.draw(replace(room.make_job(), check=True))
            assert [value.verdict for value in results if isinstance(value, PictureReady)] == ["flagged"]
            results = await room.draw(room.make_job(OTHER_JOB))
            assert [value.verdict for value in results if isinstance(value, PictureReady)] == ["unchecked"]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_an_upscale_needs_no_server(room: ComfyRoom) -> None:
    source = BytesIO()
    Image.new("RGB", (40, 24), "red").save(source, "PNG")
    sha = await room.harness.bot.put_blob(source.getvalue())
    results = await room.draw(replace(make_job(), task=UpscaleTask(source=sha, method="gan")))
    assert (results[1].width, results[1].height, results[1].method) == (160, 96, "lanczos")


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_draining_worker_hands_its_jobs_back_and_interrupts_the_server(room: ComfyRoom) -> None:
    room.comfyui.hold = 0
    await room.harness.bot.dispatch(room.make_job())
    await wait_until(lambda: room.comfyui.orders)
    await wait_until(lambda: any(run.image_evaluations for run in room.worker.active_runs))
    room.worker.drain()
    assert isinstance((await room.harness.collect_results())[-1], JobHandedBack)
    await wait_until(lambda: room.comfyui.interrupted)
    async with asyncio.timeout(30):  # the claim is released after the message: another worker may then take the job
        while await room.harness.bot.get_holder(JOB) is not None:
            await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_drain_ends_although_the_server_does_not_stop(
    room: ComfyRoom, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    has_ended = asyncio.Event()

    async def stop(comfyui: ComfyUi, prompt_id: str) -> None:
        await has_ended.wait()

    monkeypatch.setattr(ComfyUi, "_stop", stop)
    monkeypatch.setattr("engine.remote.worker.STOP_SECONDS", 0.05)
    room.comfyui.hold = 0
    await room.harness.bot.dispatch(room.make_job())
    await wait_until(lambda: any(run.image_evaluations for run in room.worker.active_runs))
    room.worker.drain()
    assert isinstance((await room.harness.collect_results())[-1], JobHandedBack)
    await wait_until(lambda: "the backend may draw on" in caplog.text, 10)
    has_ended.set()


@pytest.mark.asyncio
async def test_while_the_server_is_away_the_worker_offers_nothing_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setattr("engine.remote.connection_state.FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr("engine.remote.connection_state.MAX_LOOK_WAIT_SECONDS", 0.05)
    settings = BackendSettings(kind="comfyui", url=f"http://127.0.0.1:{free_port}")
    comfyui = ComfyUiStandIn()
    with caplog.at_level(logging.INFO, "engine.remote"):
        async with open_bus(tmp_path) as harness, run_backend_worker(harness, settings, tmp_path) as worker:
            await wait_until(lambda: "does not answer" in caplog.text)
            assert harness.bot.workers == {}
            async with serve(comfyui.app, free_port):
                await wait_until(lambda: "comfy" in harness.bot.workers)
                comfyui.hold = 0
                room = ComfyRoom(harness, comfyui, worker)
                await harness.bot.dispatch(room.make_job())
                await wait_until(lambda: any(run.image_evaluations for run in worker.active_runs))
            end = (await harness.collect_results())[-1]
            assert isinstance(end, JobFailed)
            assert (end.blame, end.retry) == ("worker", True), "the bot queues it again"
            await wait_until(lambda: harness.bot.workers == {})
    sentences = [record.getMessage() for record in caplog.records if "Jobs wait" in record.getMessage()]
    assert sentences[0] == (
        f"ComfyUI at 127.0.0.1:{free_port} does not answer: ClientConnectorError. Jobs wait until it does; trying "
        "again with growing pauses."
    )
    assert all(one != next_one for one, next_one in pairwise(sentences)), "an outage is told once, not at each try"
