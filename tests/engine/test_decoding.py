"""A ladder's rungs decoded on request: by a worker that has the very model in memory, behind running pictures."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image

from bot.desk.decoding import Decoding as Asking
from bot.images.estimates import estimates, with_thumbnails
from bot.images.film import film
from engine.bus import NobodyAnswers
from engine.engine import Engine
from engine.job import DecodeReply, DecodeRequest, Ladder, Picture, decode, encode
from engine.lane import Lane
from engine.worker import Offer, Worker
from engine.worker import decoding as worker_decoding
from engine.worker.decoding import BUSY, SLOW, WRONG, Decoding
from engine.worker.pulse import Pulse
from tests.engine.shop import LONG, OTHER, Shop, a_job, midway, until
from tests.engine.test_describing import shelf_of


def pixels(picture: bytes | Image.Image, side: int = 64) -> np.ndarray[Any, Any]:
    opened = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
    return np.asarray(opened.convert("RGB").resize((side, side), Image.Resampling.BOX), dtype=np.float64)


def psnr(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.square(one - other).mean())))


def frames(made: bytes) -> list[Image.Image]:
    with Image.open(io.BytesIO(made)) as opened:
        found = []
        for number in range(getattr(opened, "n_frames", 1)):
            opened.seek(number)
            found.append(opened.convert("RGB"))
        return found


def tensor(half: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(half, np.float16).astype(np.float32))


async def start(shop: Shop) -> Worker:
    """A worker with the embedded model in memory, that answers requests."""
    bus, shelf = await shop.join(), shelf_of(shop.loaded["embedded"])
    worker = Worker(bus, Engine(shop.loaded, rows=8), shop.lane, Offer("one", "cpu", rows=8), Pulse(), shelf=shelf)
    shop.running.append((worker, asyncio.create_task(worker.run())))
    await shop.bot.watch_workers()
    await until(lambda: shop.bot.workers and bus._decodes)
    await bus.client.flush()
    return worker


async def drawn(shop: Shop, recipe: Any) -> bytes:
    """The ladder of a finished job."""
    await shop.bot.dispatch(replace(a_job(ladder=True), task=recipe))
    (kept,) = [one for one in await shop.results() if isinstance(one, Picture) and one.kind == "ladder"]
    return await shop.bot.get_blob(kept.sha256, 1 << 24)


@pytest.mark.asyncio
async def test_a_film_shows_what_the_decoder_makes_of_every_rung(shop: Shop) -> None:
    family: Any = shop.loaded["embedded"]
    await start(shop)
    recipe = replace(a_job(steps=12).task, revision=family.revision)
    ladder = await drawn(shop, recipe)
    record: Any = type("Record", (), {"task": recipe, "pool": "default"})
    made = await Asking(shop.bot.decode, lambda: shop.bot.workers).decode(record, ladder)
    truths = [pixels(family.decode(tensor(one).view(family.latent_shape(64, 64)))) for one in estimates(ladder)]
    assert len(made) == len(truths) == 12
    assert min(psnr(pixels(one), truth) for one, truth in zip(made, truths, strict=True)) > 33, "as good as a JPEG is"
    after, before = frames(film([with_thumbnails(ladder, made)])), frames(film([ladder]))
    assert len(after) == len(before) == 12
    near = [psnr(pixels(one), truth) for one, truth in zip(after, truths, strict=True)]
    soft = [psnr(pixels(one), truth) for one, truth in zip(before, truths, strict=True)]
    assert np.mean(near) > np.mean(soft) + 5
    states = [(rung.latent, rung.history, rung.drawn) for rung in decode(ladder, Ladder).rungs]
    again = decode(with_thumbnails(ladder, made), Ladder)
    assert [(rung.latent, rung.history, rung.drawn) for rung in again.rungs] == states

    asked = Asking(shop.bot.decode, lambda: shop.bot.workers)
    for changes in ({"revision": "other"}, {"revision": ""}, {"model": "other"}, {"width": 4096, "height": 4096}):
        record.task = replace(recipe, **changes)
        assert await asked.decode(record, ladder) == (), changes
    record.task, record.pool = recipe, "another"
    assert await asked.decode(record, ladder) == (), "latents are shown to the pool that drew them"
    record.pool = "default"
    assert await asked.decode(record, b"no ladder") == ()
    assert await asked.decode(record, ladder) == made, "the same bits"


@pytest.mark.asyncio
async def test_rungs_are_decoded_while_a_picture_is_drawn_and_what_does_not_fit_is_refused(shop: Shop) -> None:
    family: Any = shop.loaded["embedded"]
    worker = await start(shop)
    await shop.bot.dispatch(a_job(OTHER, steps=LONG))
    run = await midway(worker)
    before, shape = min(run.done.values()), family.latent_shape(64, 64)
    latents = [torch.randn(shape, generator=torch.Generator().manual_seed(k)).half() for k in range(8)]
    wire = tuple(one.numpy().tobytes() for one in latents)
    request = DecodeRequest(model="embedded", revision=family.revision, width=64, height=64, latents=wire)
    found = await shop.bot.decode("default", request)
    assert len(found) == 8
    assert min(run.done.values()) > before, "the picture went on meanwhile"
    tiled = await shop.bot.decode("default", replace(request, tile=True))
    assert tiled != found
    bad = torch.full(shape, float("inf")).half().numpy().tobytes()
    for changes, reason in (
        ({"revision": "other"}, "another version"),
        ({"width": 128}, WRONG),
        ({"latents": (wire[0], wire[1][:-2])}, WRONG),
        ({"latents": (wire[0], bad)}, WRONG),
        ({"width": 4096, "height": 4096}, SLOW),
    ):
        with pytest.raises(NobodyAnswers, match=reason):
            await shop.bot.decode("default", replace(request, **changes))
    for pool, model in (("default", "other"), ("another", "embedded")):
        with pytest.raises(NobodyAnswers, match="No worker can decode"):
            await shop.bot.decode(pool, replace(request, model=model))
    answer = await shop.bot.client.request("decode.default.embedded", b"garbage", timeout=5)
    assert b"malformed" in answer.data
    assert worker._shelf._stock.users("embedded") == 1, "only the job holds the model"
    assert await shop.bot.decode("default", request) == found


@pytest.mark.asyncio
async def test_one_request_at_a_time_and_whoever_waits_at_the_end_is_told(
    affine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = await asyncio.to_thread(Lane, {"affine": affine})
    shelf, go = shelf_of(affine), asyncio.Event()
    loop, draw = asyncio.get_running_loop(), affine.decode

    def slow(latents: torch.Tensor) -> Image.Image:
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(60)
        return draw(latents)

    monkeypatch.setattr(affine, "decode", slow)
    decoding = Decoding(lane, shelf)
    latents = (torch.zeros(4, 4, 4).half().numpy().tobytes(),)
    request = DecodeRequest(model="affine", revision="r1", width=32, height=32, latents=latents)
    first = asyncio.create_task(decoding.answer(request))
    await until(lambda: not decoding._turn.is_free)
    assert (await decoding.answer(request)).error == BUSY
    go.set()
    assert len((await first).thumbnails) == 1
    monkeypatch.setattr(affine, "decode", lambda latents: 1 / 0)
    assert (await decoding.answer(request)).error
    monkeypatch.setattr(affine, "decode", draw)
    assert len((await decoding.answer(request)).thumbnails) == 1, "the next one is answered"
    monkeypatch.setattr(worker_decoding, "MOST_MS", 0.5)
    assert (await decoding.answer(request)).error == SLOW
    monkeypatch.undo()
    go.clear()
    monkeypatch.setattr(affine, "decode", slow)
    last = asyncio.create_task(decoding.answer(request))
    await until(lambda: decoding._turn._left is not None)
    decoding.close()
    assert (await last).error == SLOW
    assert (await decoding.answer(request)).error == BUSY
    assert shelf._stock.users("affine") == 0
    go.set()
    await asyncio.to_thread(lane.close)


@pytest.mark.asyncio
async def test_what_a_worker_answers_is_not_believed(shop: Shop) -> None:
    """Not as many as were asked for, no picture, no answer at all: the film comes with what the ladder has."""
    family: Any = shop.loaded["embedded"]
    worker = await start(shop)
    recipe = replace(a_job(steps=4).task, revision=family.revision)
    ladder = await drawn(shop, recipe)
    said = shop.bot.workers["one"]
    presence = replace(said, models=tuple(replace(warm, decode_ms=1.0) for warm in said.models))  # however busy it is
    worker.drain()
    await until(lambda: shop.running[0][1].done())
    await shop.buses[-1].client.flush()
    latents = estimates(ladder)
    request = DecodeRequest(model="embedded", revision=family.revision, width=64, height=64, latents=latents)
    with pytest.raises(NobodyAnswers, match="No worker can decode"):  # and the next worker would get every request
        await shop.bot.decode("default", request)
    record: Any = type("Record", (), {"task": recipe, "pool": "default"})
    now = [0.0]
    asked = list[DecodeRequest]()
    liar = await shop.join()
    answers = iter([DecodeReply(thumbnails=(b"x",)), DecodeReply(thumbnails=(b"no picture",) * 4), DecodeReply()])

    async def lie(request: DecodeRequest) -> DecodeReply:
        asked.append(request)
        return next(answers)

    await liar.serve_decode(["default"], ["embedded"], lie)
    await liar.client.flush()
    asking = Asking(shop.bot.decode, lambda: {"one": presence}, lambda: now[0])
    for number in range(3):
        assert await asking.decode(record, ladder) == ()
        assert await asking.decode(record, ladder) == (), "who answers badly is left alone for a while"
        assert len(asked) == number + 1
        now[0] += 31.0
    await liar.serve_decode(["default"], [], lie)
    await liar.client.flush()
    assert await asking.decode(record, ladder) == ()
    assert await Asking(shop.bot.decode, dict).decode(record, ladder) == ()
    older = Asking(shop.bot.decode, lambda: {"one": replace(presence, v=5)})
    assert await older.decode(record, ladder) == ()
    assert len(frames(film([ladder]))) == 4
    read = decode(ladder, Ladder)
    old = Ladder(
        job=read.job, image=read.image, of=read.of, shape=read.shape,
        rungs=tuple(replace(rung, estimate=None) for rung in read.rungs),
    )  # fmt: skip
    bare = encode(old)
    assert (read.v, old.v, b"estimate" in bare) == (6, 5, False), "bots of version 5 refuse what they do not know"
    assert estimates(bare) == ()
    assert len(frames(film([bare]))) == 4, "an older ladder is read"
