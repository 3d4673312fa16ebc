"""A worker decodes keyframes on request if it has that very model in memory. Running jobs go first."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from msgspec.structs import replace
from PIL import Image

from benchmarks.report.measures import psnr
from bot.pictures.ladder_film import render_film
from bot.pictures.thumbnail_decoder import read_estimates, replace_thumbnails
from bot.pictures.uploads.upload_decoder import UploadDecoder
from bot.services.ladder_decoder import LadderDecoder as DecodeClient
from engine.batching.engine import Engine
from engine.bus import NoWorkerAnswers
from engine.contract import DecodeReply, DecodeRequest, Ladder, PictureReady, decode, encode
from engine.output.decode_worker import DecodeWorker
from engine.worker import model_requests as worker_decoding
from engine.worker.model_requests import DECODE_BUSY_ERROR, DECODE_SLOW_ERROR, WRONG_LATENTS_ERROR, DecodeService
from engine.worker.worker import Worker
from engine.worker.worker_life import Watchdog, WorkerProfile
from shared.worker_harness import (
    LONG_STEPS,
    OTHER_JOB,
    WorkerHarness,
    make_cache,
    make_job,
    wait_until,
    wait_until_midway,
)


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


async def start_worker(harness: WorkerHarness) -> Worker:
    """Starts a worker that has the embedded model in memory and answers requests."""
    bus = await harness.connect()
    cache = make_cache(harness.families["embedded"])
    worker = Worker(
        bus,
        Engine(harness.families, rows=8),
        harness.decode_worker,
        WorkerProfile("one", "cpu", rows=8),
        Watchdog(),
        model_cache=cache,
    )
    harness.started_workers.append((worker, asyncio.create_task(worker.run())))
    await harness.bot.watch_workers()
    await wait_until(lambda: harness.bot.workers and bus._decode_subscriptions)
    await bus.client.flush()
    return worker


async def draw_ladder(harness: WorkerHarness, recipe: Any) -> bytes:
    """Runs a job and returns its ladder."""
    await harness.bot.dispatch(replace(make_job(ladder=True), task=recipe))
    (ladder,) = [
        one for one in await harness.collect_results() if isinstance(one, PictureReady) and one.kind == "ladder"
    ]
    return await harness.bot.get_blob(ladder.sha256, 1 << 24)


@pytest_asyncio.fixture
async def picture_decoder() -> AsyncIterator[UploadDecoder]:
    decoder = UploadDecoder()
    yield decoder
    await decoder.close()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_film_shows_every_keyframe_as_the_decoder_decodes_it(
    harness: WorkerHarness, picture_decoder: UploadDecoder
) -> None:
    family: Any = harness.families["embedded"]
    await start_worker(harness)
    recipe = replace(make_job(steps=12).task, revision=family.revision)
    ladder = await draw_ladder(harness, recipe)
    record: Any = type("Record", (), {"task": recipe, "pool": "default"})
    client = DecodeClient(harness.bot.decode, lambda: harness.bot.workers, picture_decoder)
    thumbnails = await client.decode(record, ladder)
    exact_pixels = [
        pixels(family.decode(to_tensor(one).view(family.latent_shape(64, 64)))) for one in read_estimates(ladder)
    ]
    assert len(thumbnails) == len(exact_pixels) == 12
    assert min(psnr(pixels(one), reference) for one, reference in zip(thumbnails, exact_pixels, strict=True)) > 33, (
        "as close as a JPEG"
    )
    after = read_frames(render_film([replace_thumbnails(ladder, thumbnails)]))
    before = read_frames(render_film([ladder]))
    assert len(after) == len(before) == 12
    decoded_psnr = [psnr(pixels(one), reference) for one, reference in zip(after, exact_pixels, strict=True)]
    estimated_psnr = [psnr(pixels(one), reference) for one, reference in zip(before, exact_pixels, strict=True)]
    assert np.mean(decoded_psnr) > np.mean(estimated_psnr) + 5
    states = [(keyframe.latent, keyframe.history, keyframe.draw_count) for keyframe in decode(ladder, Ladder).keyframes]
    replaced_again = decode(replace_thumbnails(ladder, thumbnails), Ladder)
    assert [(keyframe.latent, keyframe.history, keyframe.draw_count) for keyframe in replaced_again.keyframes] == states

    for changes in ({"revision": "other"}, {"revision": ""}, {"model": "other"}, {"width": 4096, "height": 4096}):
        record.task = replace(recipe, **changes)
        assert await client.decode(record, ladder) == (), changes
    record.task = recipe
    record.pool = "another"
    assert await client.decode(record, ladder) == (), "only the pool that drew the latents may see them"
    record.pool = "default"
    assert await client.decode(record, b"no ladder") == ()
    assert await client.decode(record, ladder) == thumbnails, "the same bits"


@pytest.mark.slow
@pytest.mark.asyncio
async def test_keyframes_are_decoded_during_a_running_job_and_unfit_requests_are_refused(
    harness: WorkerHarness,
) -> None:
    family: Any = harness.families["embedded"]
    worker = await start_worker(harness)
    await harness.bot.dispatch(make_job(OTHER_JOB, steps=LONG_STEPS))
    run = await wait_until_midway(worker)
    before = min(run.steps_done.values())
    shape = family.latent_shape(64, 64)
    latents = [torch.randn(shape, generator=torch.Generator().manual_seed(k)).half() for k in range(8)]
    contents = tuple(one.numpy().tobytes() for one in latents)
    request = DecodeRequest(model="embedded", revision=family.revision, width=64, height=64, latents=contents)
    thumbnails = await harness.bot.decode("default", request)
    assert len(thumbnails) == 8
    assert min(run.steps_done.values()) > before, "the running job continued meanwhile"
    tiled = await harness.bot.decode("default", replace(request, tile=True))
    assert tiled != thumbnails
    infinite_latents = torch.full(shape, float("inf")).half().numpy().tobytes()
    for changes, reason in (
        ({"revision": "other"}, "another version"),
        ({"width": 128}, WRONG_LATENTS_ERROR),
        ({"latents": (contents[0], contents[1][:-2])}, WRONG_LATENTS_ERROR),
        ({"latents": (contents[0], infinite_latents)}, WRONG_LATENTS_ERROR),
        ({"width": 4096, "height": 4096}, DECODE_SLOW_ERROR),
    ):
        with pytest.raises(NoWorkerAnswers, match=reason):
            await harness.bot.decode("default", replace(request, **changes))
    for pool, model in (("default", "other"), ("another", "embedded")):
        with pytest.raises(NoWorkerAnswers, match="No worker can decode"):
            await harness.bot.decode(pool, replace(request, model=model))
    answer = await harness.bot.client.request("decode.default.embedded", b"garbage", timeout=5)
    assert b"malformed" in answer.data
    assert worker._model_cache._loaded_models.count_users("embedded") == 1, "only the job holds the model"
    assert await harness.bot.decode("default", request) == thumbnails


@pytest.mark.asyncio
async def test_one_request_runs_at_a_time_and_closing_answers_the_waiting_one(
    affine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_worker = await asyncio.to_thread(DecodeWorker, {"affine": affine})
    cache = make_cache(affine)
    release = asyncio.Event()
    loop = asyncio.get_running_loop()
    draw = affine.decode

    def decode_slowly(latents: torch.Tensor) -> Image.Image:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(60)
        return draw(latents)

    monkeypatch.setattr(affine, "decode", decode_slowly)
    service = DecodeService(decode_worker, cache)
    latents = (torch.zeros(4, 4, 4).half().numpy().tobytes(),)
    request = DecodeRequest(model="affine", revision="r1", width=32, height=32, latents=latents)
    first = asyncio.create_task(service.answer_request(request))
    await wait_until(lambda: not service._slot.is_free)
    assert (await service.answer_request(request)).error == DECODE_BUSY_ERROR
    release.set()
    assert len((await first).thumbnails) == 1
    monkeypatch.setattr(affine, "decode", lambda latents: 1 / 0)
    assert (await service.answer_request(request)).error
    monkeypatch.setattr(affine, "decode", draw)
    assert len((await service.answer_request(request)).thumbnails) == 1, "the next one is answered"
    monkeypatch.setattr(worker_decoding, "MAX_DECODE_MS", 0.5)
    assert (await service.answer_request(request)).error == DECODE_SLOW_ERROR
    monkeypatch.undo()
    release.clear()
    monkeypatch.setattr(affine, "decode", decode_slowly)
    last = asyncio.create_task(service.answer_request(request))
    await wait_until(lambda: service._slot._timeout is not None)
    service.close()
    assert (await last).error == DECODE_SLOW_ERROR
    assert (await service.answer_request(request)).error == DECODE_BUSY_ERROR
    assert cache._loaded_models.count_users("affine") == 0
    release.set()
    await asyncio.to_thread(decode_worker.close)


@pytest.mark.asyncio
async def test_a_workers_answers_are_validated(harness: WorkerHarness, picture_decoder: UploadDecoder) -> None:
    """After a wrong count, bytes that are no picture, or no answer, the film uses the ladder's own thumbnails."""
    family: Any = harness.families["embedded"]
    worker = await start_worker(harness)
    recipe = replace(make_job(steps=4).task, revision=family.revision)
    ladder = await draw_ladder(harness, recipe)
    real = harness.bot.workers["one"]
    # It announces fast decodes, however busy this machine is.
    presence = replace(real, models=tuple(replace(profile, decode_ms=1.0) for profile in real.models))
    worker.drain()
    await wait_until(lambda: harness.started_workers[0][1].done())
    await harness.buses[-1].client.flush()
    latents = read_estimates(ladder)
    request = DecodeRequest(model="embedded", revision=family.revision, width=64, height=64, latents=latents)
    with pytest.raises(NoWorkerAnswers, match="No worker can decode"):  # so the next worker gets every request
        await harness.bot.decode("default", request)
    record: Any = type("Record", (), {"task": recipe, "pool": "default"})
    now = [0.0]
    requests = list[DecodeRequest]()
    lying_bus = await harness.connect()
    answers = iter([DecodeReply(thumbnails=(b"x",)), DecodeReply(thumbnails=(b"no picture",) * 4), DecodeReply()])

    async def answer_wrongly(request: DecodeRequest) -> DecodeReply:
        requests.append(request)
        return next(answers)

    await lying_bus.serve_decode(["default"], ["embedded"], answer_wrongly)
    await lying_bus.client.flush()
    client = DecodeClient(harness.bot.decode, lambda: {"one": presence}, picture_decoder, lambda: now[0])
    for number in range(3):
        assert await client.decode(record, ladder) == ()
        assert await client.decode(record, ladder) == (), "a worker with bad answers is not asked for a while"
        assert len(requests) == number + 1
        now[0] += 31.0
    await lying_bus.serve_decode(["default"], [], answer_wrongly)
    await lying_bus.client.flush()
    assert await client.decode(record, ladder) == ()
    assert await DecodeClient(harness.bot.decode, dict, picture_decoder).decode(record, ladder) == ()
    assert len(read_frames(render_film([ladder]))) == 4
    read = decode(ladder, Ladder)
    plain = Ladder(
        job=read.job,
        image=read.image,
        total_steps=read.total_steps,
        shape=read.shape,
        keyframes=tuple(replace(keyframe, estimate=None) for keyframe in read.keyframes),
    )
    plain_ladder = encode(plain)
    assert read_estimates(plain_ladder) == ()
    assert len(read_frames(render_film([plain_ladder]))) == 4, "a ladder without estimates"
