"""A worker decodes keyframes on request if it has that very model in memory. Running jobs go first."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image

from benchmarks.report.measures import psnr
from bot.images.films.ladder_film import render_film
from bot.images.keyframes.decoded_thumbnails import read_estimates, replace_thumbnails
from bot.services.ladder_decoder import LadderDecoder as DecodeClient
from engine.bus import NoWorkerAnswers
from engine.contract import DecodeReply, DecodeRequest, Ladder, PictureReady, decode, encode
from engine.core.engine import Engine
from engine.output.decode_worker import DecodeWorker
from engine.worker import decode_service as worker_decoding
from engine.worker.decode_service import BUSY_ERROR, SLOW_ERROR, WRONG_LATENTS_ERROR, DecodeService
from engine.worker.watchdog import Watchdog
from engine.worker.worker import Worker
from engine.worker.worker_profile import WorkerProfile
from shared.worker_harness import LONG, OTHER, Shop, a_job, midway, until
from tests.engine.worker.test_describe_service import shelf_of


def pixels(picture: bytes | Image.Image, side: int = 64) -> np.ndarray[Any, Any]:
    image = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BOX), dtype=np.float64)


def read_frames(content: bytes) -> list[Image.Image]:
    with Image.open(io.BytesIO(content)) as image:
        frames = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            frames.append(image.convert("RGB"))
        return frames


def to_tensor(half: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(half, np.float16).astype(np.float32))


async def start_worker(shop: Shop) -> Worker:
    """Starts a worker that has the embedded model in memory and answers requests."""
    bus, shelf = await shop.join(), shelf_of(shop.loaded["embedded"])
    worker = Worker(
        bus, Engine(shop.loaded, rows=8), shop.lane, WorkerProfile("one", "cpu", rows=8), Watchdog(), model_cache=shelf
    )
    shop.running.append((worker, asyncio.create_task(worker.run())))
    await shop.bot.watch_workers()
    await until(lambda: shop.bot.workers and bus._decode_subscriptions)
    await bus.client.flush()
    return worker


async def draw_ladder(shop: Shop, recipe: Any) -> bytes:
    """Runs a job and returns its ladder."""
    await shop.bot.dispatch(replace(a_job(ladder=True), task=recipe))
    (ladder,) = [one for one in await shop.results() if isinstance(one, PictureReady) and one.kind == "ladder"]
    return await shop.bot.get_blob(ladder.sha256, 1 << 24)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_film_shows_every_keyframe_as_the_decoder_decodes_it(shop: Shop) -> None:
    family: Any = shop.loaded["embedded"]
    await start_worker(shop)
    recipe = replace(a_job(steps=12).task, revision=family.revision)
    ladder = await draw_ladder(shop, recipe)
    record: Any = type("Record", (), {"task": recipe, "pool": "default"})
    thumbnails = await DecodeClient(shop.bot.decode, lambda: shop.bot.workers).decode(record, ladder)
    truths = [pixels(family.decode(to_tensor(one).view(family.latent_shape(64, 64)))) for one in read_estimates(ladder)]
    assert len(thumbnails) == len(truths) == 12
    assert min(psnr(pixels(one), truth) for one, truth in zip(thumbnails, truths, strict=True)) > 33, (
        "as close as a JPEG"
    )
    after, before = (
        read_frames(render_film([replace_thumbnails(ladder, thumbnails)])),
        read_frames(render_film([ladder])),
    )
    assert len(after) == len(before) == 12
    decoded_psnr = [psnr(pixels(one), truth) for one, truth in zip(after, truths, strict=True)]
    estimated_psnr = [psnr(pixels(one), truth) for one, truth in zip(before, truths, strict=True)]
    assert np.mean(decoded_psnr) > np.mean(estimated_psnr) + 5
    states = [(rung.latent, rung.history, rung.drawn) for rung in decode(ladder, Ladder).rungs]
    again = decode(replace_thumbnails(ladder, thumbnails), Ladder)
    assert [(rung.latent, rung.history, rung.drawn) for rung in again.rungs] == states

    client = DecodeClient(shop.bot.decode, lambda: shop.bot.workers)
    for changes in ({"revision": "other"}, {"revision": ""}, {"model": "other"}, {"width": 4096, "height": 4096}):
        record.task = replace(recipe, **changes)
        assert await client.decode(record, ladder) == (), changes
    record.task, record.pool = recipe, "another"
    assert await client.decode(record, ladder) == (), "only the pool that drew the latents may see them"
    record.pool = "default"
    assert await client.decode(record, b"no ladder") == ()
    assert await client.decode(record, ladder) == thumbnails, "the same bits"


@pytest.mark.slow
@pytest.mark.asyncio
async def test_keyframes_are_decoded_during_a_running_job_and_unfit_requests_are_refused(shop: Shop) -> None:
    family: Any = shop.loaded["embedded"]
    worker = await start_worker(shop)
    await shop.bot.dispatch(a_job(OTHER, steps=LONG))
    run = await midway(worker)
    before, shape = min(run.steps_done.values()), family.latent_shape(64, 64)
    latents = [torch.randn(shape, generator=torch.Generator().manual_seed(k)).half() for k in range(8)]
    contents = tuple(one.numpy().tobytes() for one in latents)
    request = DecodeRequest(model="embedded", revision=family.revision, width=64, height=64, latents=contents)
    thumbnails = await shop.bot.decode("default", request)
    assert len(thumbnails) == 8
    assert min(run.steps_done.values()) > before, "the running job continued meanwhile"
    tiled = await shop.bot.decode("default", replace(request, tile=True))
    assert tiled != thumbnails
    bad = torch.full(shape, float("inf")).half().numpy().tobytes()
    for changes, reason in (
        ({"revision": "other"}, "another version"),
        ({"width": 128}, WRONG_LATENTS_ERROR),
        ({"latents": (contents[0], contents[1][:-2])}, WRONG_LATENTS_ERROR),
        ({"latents": (contents[0], bad)}, WRONG_LATENTS_ERROR),
        ({"width": 4096, "height": 4096}, SLOW_ERROR),
    ):
        with pytest.raises(NoWorkerAnswers, match=reason):
            await shop.bot.decode("default", replace(request, **changes))
    for pool, model in (("default", "other"), ("another", "embedded")):
        with pytest.raises(NoWorkerAnswers, match="No worker can decode"):
            await shop.bot.decode(pool, replace(request, model=model))
    answer = await shop.bot.client.request("decode.default.embedded", b"garbage", timeout=5)
    assert b"malformed" in answer.data
    assert worker._model_cache._loaded_models.count_users("embedded") == 1, "only the job holds the model"
    assert await shop.bot.decode("default", request) == thumbnails


@pytest.mark.asyncio
async def test_one_request_runs_at_a_time_and_closing_answers_the_waiting_one(
    affine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = await asyncio.to_thread(DecodeWorker, {"affine": affine})
    shelf, go = shelf_of(affine), asyncio.Event()
    loop, draw = asyncio.get_running_loop(), affine.decode

    def slow(latents: torch.Tensor) -> Image.Image:
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(60)
        return draw(latents)

    monkeypatch.setattr(affine, "decode", slow)
    decoding = DecodeService(lane, shelf)
    latents = (torch.zeros(4, 4, 4).half().numpy().tobytes(),)
    request = DecodeRequest(model="affine", revision="r1", width=32, height=32, latents=latents)
    first = asyncio.create_task(decoding.answer_request(request))
    await until(lambda: not decoding._slot.is_free)
    assert (await decoding.answer_request(request)).error == BUSY_ERROR
    go.set()
    assert len((await first).thumbnails) == 1
    monkeypatch.setattr(affine, "decode", lambda latents: 1 / 0)
    assert (await decoding.answer_request(request)).error
    monkeypatch.setattr(affine, "decode", draw)
    assert len((await decoding.answer_request(request)).thumbnails) == 1, "the next one is answered"
    monkeypatch.setattr(worker_decoding, "MAX_DECODE_MS", 0.5)
    assert (await decoding.answer_request(request)).error == SLOW_ERROR
    monkeypatch.undo()
    go.clear()
    monkeypatch.setattr(affine, "decode", slow)
    last = asyncio.create_task(decoding.answer_request(request))
    await until(lambda: decoding._slot._timeout is not None)
    decoding.close()
    assert (await last).error == SLOW_ERROR
    assert (await decoding.answer_request(request)).error == BUSY_ERROR
    assert shelf._loaded_models.count_users("affine") == 0
    go.set()
    await asyncio.to_thread(lane.close)


@pytest.mark.asyncio
async def test_a_workers_answers_are_validated(shop: Shop) -> None:
    """A wrong count, bytes that are no picture, or no answer: the film then uses what the ladder has."""
    family: Any = shop.loaded["embedded"]
    worker = await start_worker(shop)
    recipe = replace(a_job(steps=4).task, revision=family.revision)
    ladder = await draw_ladder(shop, recipe)
    real = shop.bot.workers["one"]
    # It says that it decodes fast, however busy this machine is.
    presence = replace(real, models=tuple(replace(warm, decode_ms=1.0) for warm in real.models))
    worker.drain()
    await until(lambda: shop.running[0][1].done())
    await shop.buses[-1].client.flush()
    latents = read_estimates(ladder)
    request = DecodeRequest(model="embedded", revision=family.revision, width=64, height=64, latents=latents)
    with pytest.raises(NoWorkerAnswers, match="No worker can decode"):  # so the next worker gets every request
        await shop.bot.decode("default", request)
    record: Any = type("Record", (), {"task": recipe, "pool": "default"})
    now = [0.0]
    requests = list[DecodeRequest]()
    liar = await shop.join()
    answers = iter([DecodeReply(thumbnails=(b"x",)), DecodeReply(thumbnails=(b"no picture",) * 4), DecodeReply()])

    async def lie(request: DecodeRequest) -> DecodeReply:
        requests.append(request)
        return next(answers)

    await liar.serve_decode(["default"], ["embedded"], lie)
    await liar.client.flush()
    client = DecodeClient(shop.bot.decode, lambda: {"one": presence}, lambda: now[0])
    for number in range(3):
        assert await client.decode(record, ladder) == ()
        assert await client.decode(record, ladder) == (), "a worker with bad answers is not asked for a while"
        assert len(requests) == number + 1
        now[0] += 31.0
    await liar.serve_decode(["default"], [], lie)
    await liar.client.flush()
    assert await client.decode(record, ladder) == ()
    assert await DecodeClient(shop.bot.decode, dict).decode(record, ladder) == ()
    older = DecodeClient(shop.bot.decode, lambda: {"one": replace(presence, v=5)})
    assert await older.decode(record, ladder) == ()
    assert len(read_frames(render_film([ladder]))) == 4
    read = decode(ladder, Ladder)
    old = Ladder(
        job=read.job, image=read.image, of=read.of, shape=read.shape,
        rungs=tuple(replace(rung, estimate=None) for rung in read.rungs),
    )  # fmt: skip
    bare = encode(old)
    assert (read.v, old.v, b"estimate" in bare) == (6, 5, False), "bots of version 5 refuse unknown fields"
    assert read_estimates(bare) == ()
    assert len(read_frames(render_film([bare]))) == 4, "an older ladder is read"
