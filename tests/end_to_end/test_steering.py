"""A picture is steered over HTTP and in a terminal while a real worker draws it; its recipe draws it again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from bot.app.settings import load_settings
from bot.app.wiring import App, open_app
from bot.cli import steer
from bot.domain.dto import Destination, Member
from bot.pictures.image_codec import decode_image
from bot.web.app import build_app, run_server
from bot.web.auth import terminal_key
from engine import models
from engine.batching.engine import Engine
from engine.bus import Bus, BusLimits
from engine.bus.embedded_broker import Broker
from engine.contract import ModelProfile, Recipe
from engine.output.decode_worker import DecodeWorker
from engine.worker.worker import Worker
from engine.worker.worker_life import Watchdog, WorkerProfile
from shared.migrated_database import put_migrated_database
from shared.worker_harness import LEASE, SlowFamily, hash_content, run_locally, wait_until, wait_until_midway

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio,
    pytest.mark.may_block("it also acts as a command does, and waits for the decoder at its end"),
]
STEPS = 20


class SteeredBot:
    """A page, the app behind it, and the worker's models."""

    def __init__(self, app: App, url: str, key: str, families: dict[str, Any], worker: Worker) -> None:
        self.app = app
        self.url = url
        self.key = key
        self.families = families
        self.worker = worker

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.key}"}
        async with (
            aiohttp.ClientSession(self.url, headers=headers) as session,
            session.request(method, path, json=body) as answer,
        ):
            return answer.status, await answer.json()

    def is_running(self, job: str) -> bool:
        active_job = self.app.queue.active_jobs.by_id.get(job)
        return active_job is not None and active_job.is_claimed


@pytest_asyncio.fixture
async def bot(tmp_path: Path) -> AsyncIterator[SteeredBot]:
    families: dict[str, Any] = {"embedded": await asyncio.to_thread(models.load_model, "embedded", tmp_path / "models")}
    slow = {"embedded": SlowFamily(families["embedded"], 0.1)}
    profile = ModelProfile(
        name="embedded",
        revision=families["embedded"].revision,
        dtype="float32",
        size=64,
        multiple=16,
        max_pixels=128 * 128,
        tokens=24,
        steps=STEPS,
        sampler="ddim",
        samplers=("ddpm", "ddim", "euler", "dpmpp_2m"),
        guidance=3.0,
        row_ms=4.0,
        encode_ms=10.0,
        decode_ms=60.0,
    )
    await asyncio.to_thread(put_migrated_database, tmp_path / "data")
    settings = await asyncio.to_thread(load_settings, data=tmp_path / "data", host="127.0.0.1", discord_token=None)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(tmp_path / "nats"))

        async def connect() -> Bus:
            bus = await Bus.connect(broker.url, broker.token, limits=BusLimits(lease=LEASE))
            stack.push_async_callback(bus.close)
            await bus.declare()
            return bus

        app = await stack.enter_async_context(open_app(settings, await connect()))
        page = await asyncio.to_thread(build_app, settings, app.services)
        port = await stack.enter_async_context(run_server(page, "127.0.0.1", 0))
        decode_worker = DecodeWorker(families)
        stack.callback(decode_worker.close)
        worker_profile = WorkerProfile("one", "cpu", rows=8, models=(profile,))
        engine = Engine(slow, rows=8)  # pyright: ignore[reportArgumentType]  (a stand-in for a slower device)
        worker = Worker(await connect(), engine, decode_worker, worker_profile, Watchdog(), None)
        task = asyncio.create_task(worker.run())
        await wait_until(lambda: app.services.live_workers())
        yield SteeredBot(
            app, f"http://127.0.0.1:{port}", await asyncio.to_thread(terminal_key, settings.data), families, worker
        )
        worker.drain()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_picture_is_steered_while_it_develops_and_its_recipe_draws_it_again(bot: SteeredBot) -> None:
    body = {"prompt": "a red apple", "count": 2, "steps": STEPS, "seed": 7, "exact": True}
    job = (await bot.ask("POST", "/api/jobs", body))[1]["id"]
    await wait_until_midway(bot.worker, 5)  # a keyframe comes before, which a branch with undo begins from
    status, answer = await bot.ask("POST", f"/api/jobs/{job}/amend", {"say": "blue", "drop": [1], "guidance": 6})
    assert (status, [each["state"] for each in answer["amendments"]]) == (202, ["waiting"] * 3)
    said = await steer.send_changes(bot.url, bot.key, job[:20], {"split": {"image": 2, "into": 2}, "say": "a dog::2"})
    assert [change["state"] for change in said["changes"]] == ["made", "made"], said
    assert steer.format_change(said["changes"][0]).startswith("splits image 2 into 2: from step ")
    assert (await bot.ask("POST", f"/api/jobs/{job}/amend", {"keep": [4]}))[1]["error"] == "Image 4 is not developing."
    await wait_until(lambda: not bot.is_running(job))
    view = (await bot.ask("GET", f"/api/jobs/{job}"))[1]
    listed = (await bot.ask("GET", f"/api/jobs/{job}/amendments"))[1]["amendments"]
    assert [each["state"] for each in listed] == ["made"] * 5
    assert view["state"] == "finished"
    assert [concept["text"] for concept in view["steering"]["concepts"]] == ["a red apple, blue", "a dog"]
    record = await bot.app.store.get_job(job)
    assert record is not None
    assert isinstance(record.task, Recipe)
    assert [(each.number, each.step) for each in record.task.amendments] == [
        (each["number"], each["step"]) for each in listed
    ]
    assert [picture["n"] for picture in view["pictures"]] == view["steering"]["images"] == [2, 3]
    drawn_anew = await asyncio.to_thread(run_locally, record.to_job(), bot.families)
    assert [picture["sha256"] for picture in view["pictures"]] == [hash_content(each) for each in drawn_anew.pictures]
    await check_what_goes_on_from_it(bot, job, record.task, view)


async def check_what_goes_on_from_it(bot: SteeredBot, job: str, recipe: Recipe, view: Any) -> None:
    """A reproduction is the same picture; so is a branch after the last change, and one with undo is not."""
    last_step = recipe.amendments[-1].step
    steps = (await bot.ask("GET", f"/api/jobs/{job}/branch/3"))[1]["steps"]
    later = next(step for step in steps if step > last_step)
    accepted = await bot.app.services.variations.reproduce(job, Member("local:ann", "Ann", "local"), Destination("web"))
    jobs = [accepted.job]
    for body in ({"step": later, "exact": True}, {"step": last_step, "undo": True, "exact": True}):
        status, answer = await bot.ask("POST", f"/api/jobs/{job}/branch/3", body)
        assert status == 201, answer
        jobs.append(answer["id"])

    async def are_finished() -> bool:
        return all([(await bot.ask("GET", f"/api/jobs/{each}"))[1]["state"] == "finished" for each in jobs])

    while not await are_finished():
        await asyncio.sleep(0.1)
    reproduced = (await bot.ask("GET", f"/api/jobs/{jobs[0]}"))[1]["pictures"]
    assert [picture["sha256"] for picture in reproduced] == [picture["sha256"] for picture in view["pictures"]]
    places = ((job, 2), (jobs[1], 0), (jobs[2], 0))
    files = [await bot.app.services.gallery.read_picture(each, index) for each, index in places]
    original, continued, undone = [decode_image(file).tobytes() for file in files]  # their recipes differ
    assert continued == original
    assert undone != original
    captions = (await bot.ask("GET", f"/api/jobs/{job}/keyframes"))[1]["captions"]
    assert (len(captions), captions[0]["text"]) == (5, "drops image 1")
    assert {caption["speaker"] for caption in captions} == {view["author"]["name"]}
