"""Image-to-prompt: the scores of texts for an image, and the worker that computes them between steps of jobs."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from PIL import Image

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine import models
from engine.batching.diffusion_classifier import ClassifierRow, noise_image, prediction_errors, split_rows
from engine.batching.engine import Engine
from engine.batching.input_pictures import encode_square
from engine.bus import Bus, NoWorkerAnswers
from engine.contract import DescribeReply, DescribeRequest, JobRejected, encode
from engine.device.core_turns import WorkKind
from engine.output.decode_worker import DecodeWorker
from engine.worker import model_requests as worker_describing
from engine.worker.model_requests import DESCRIBE_BUSY_ERROR, STOPPING_ERROR, DescribeService
from engine.worker.worker import Worker
from engine.worker.worker_life import Watchdog, WorkerProfile
from shared.worker_harness import LONG_STEPS, WorkerHarness, make_cache, make_job, wait_until, wait_until_midway
from training.diffusion.latent_sampling import build_input, initial_noise, sample_latents


def encode_png(picture: Image.Image | None = None, size: int = 64) -> bytes:
    buffer = io.BytesIO()
    (picture or Image.effect_noise((size, size), 80).convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()


def make_request(*texts: str, picture: bytes | None = None, **fields: Any) -> DescribeRequest:
    return DescribeRequest(**({"model": "embedded", "picture": picture or encode_png(), "texts": texts} | fields))


def test_an_exact_prediction_has_no_error(affine: Any) -> None:
    """This holds for any noise, any noise level and any prediction type."""
    samples = noise_image(affine, torch.randn(4, 4, 4), 0, 8)
    assert len({one.t for one in samples}) == 8, "each at its own noise level"
    assert all(300 < one.t < 900 for one in samples), "neither almost clean nor pure noise"
    exact_family: Any = SimpleNamespace(
        name="exact",
        samplers=affine.samplers,
        guidance=2.0,
        guides="rows",
        size=32,
        encode_conditioning=lambda text, recipe: (torch.zeros(1),),
        denoise=lambda x, t, texts, dtype: torch.stack(
            [next(one.target for one in samples if torch.equal(one.x, row)) for row in x]
        ),
    )
    error_list = prediction_errors(
        exact_family, ["a"], samples, [ClassifierRow(0, draw) for draw in range(8)], 8, "float32"
    )
    assert max(error_list) == 0.0
    same_noise = noise_image(affine, torch.zeros(4, 4, 4), 5, 2)
    assert [one.t for one in same_noise] == [one.t for one in samples[5:7]], "one fixed sequence"


def test_the_error_is_the_error_of_the_predicted_noise(affine: Any) -> None:
    """The affine network predicts noise: its error is its output minus the added noise."""
    latents = torch.randn(4, 4, 4)
    (one,) = noise_image(affine, latents, 3, 1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    assert one.weight == pytest.approx(1.0)
    assert torch.allclose(one.target, noise, atol=1e-4)
    (error,) = prediction_errors(affine, ["a cat"], [one], [ClassifierRow(0, 0)], 1, "float32")
    output = affine.denoise(one.x[None], torch.tensor([one.t]), (affine._embed("a cat")[None],), "float32")[0]
    assert error == pytest.approx(float((output - noise).square().mean()), rel=1e-4)


def test_every_text_is_scored_with_every_draw_in_forwards_of_one_shape(affine: Any) -> None:
    samples = noise_image(affine, torch.randn(4, 4, 4), 0, 3)
    parts = list(split_rows(5, 3, 4))
    assert [len(part) for part in parts] == [4, 4, 4, 3]
    assert [row for part in parts for row in part] == [
        ClassifierRow(text, draw) for text in range(5) for draw in range(3)
    ]
    batched_errors = [
        one for part in parts for one in prediction_errors(affine, list("abcde"), samples, part, 4, "float32")
    ]
    assert affine.shapes == [4] * 4
    one_by_one = [
        prediction_errors(affine, list("abcde"), samples, [row], 1, "float32")[0] for part in parts for row in part
    ]
    assert batched_errors == pytest.approx(one_by_one, rel=1e-5)
    with pytest.raises(JobRejected, match="not finite"):
        prediction_errors(
            type(affine)(affine.scheduler_config, "b"), ["b"], samples, [ClassifierRow(0, 0)], 1, "float32"
        )


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["sd", "latent_consistency", "sdxl", "sd3", "flux", "zimage", "sana"])
def test_every_family_can_score_texts(kind: str, tmp_path: Path) -> None:
    save_small_pipeline(kind, tmp_path / kind)
    family = models.load_model(str(tmp_path / kind), tmp_path)
    latents = encode_square(encode_png(size=90), family)
    assert tuple(latents.shape) == tuple(family.latent_shape(family.size, family.size))
    samples = noise_image(family, latents, 0, 2)
    error_list = prediction_errors(
        family, ["a fox", "a red car in the snow"], samples, next(split_rows(2, 2, 4)), 4, "float32"
    )
    assert len(error_list) == 4
    assert all(0 < one < 100 for one in error_list)


def test_the_embedded_model_recognises_its_own_fox(embedded: Any) -> None:
    plan = embedded.plan("dpmpp_2m", 15, 0.0, 64, 64)
    drawing = build_input(embedded, embedded.encode_text("fox, white background"), 4.0, initial_noise(embedded, 7))
    latents = encode_square(encode_png(embedded.decode(sample_latents(embedded, plan, [drawing])[0])), embedded)
    texts = ["fox", "car", "owl", "banana", "guitar", "wolf", "fox, blue background"]
    samples = noise_image(embedded, latents, 0, 2)
    rows = next(split_rows(len(texts), 2, 14))
    mean_errors = (
        torch.tensor(prediction_errors(embedded, texts, samples, rows, 14, "float32")).view(len(texts), 2).mean(dim=1)
    )
    assert texts[int(mean_errors.argmin())] == "fox"


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_worker_scores_texts_between_the_steps_of_a_running_job(harness: WorkerHarness) -> None:
    family = harness.families["embedded"]
    bus = await harness.connect()
    worker = Worker(
        bus,
        Engine(harness.families, rows=8),
        harness.decode_worker,
        WorkerProfile("one", "cpu", rows=8),
        Watchdog(),
        model_cache=make_cache(family),
    )
    harness.started_workers.append((worker, asyncio.create_task(worker.run())))
    await bus.serve_describe(worker.describe_service.models, worker.describe_service.answer_request)
    await bus.client.flush()
    await harness.bot.dispatch(make_job(steps=LONG_STEPS))
    run = await wait_until_midway(worker)
    before = min(run.steps_done.values())
    request = make_request("a fox", "a car", "", draws=8)
    scores = await harness.bot.describe(request)
    assert [len(one) for one in scores] == [8, 8, 8]
    assert min(run.steps_done.values()) > before, "the running job continued meanwhile"
    assert scores == await harness.bot.describe(request), "the same bits, whatever else runs"
    for request, reason in (
        (make_request("a", picture=b"no picture"), "cannot be read"),
        (make_request("a", model="other"), "No worker that is online has other in memory"),
    ):
        with pytest.raises(NoWorkerAnswers, match=reason):
            await harness.bot.describe(request)
    answer = await harness.bot.client.request("describe.embedded", b"garbage", timeout=5)
    assert b"malformed" in answer.data
    assert worker._model_cache._loaded_models.count_users("embedded") == 1, "only the job holds the model"


class DescribingHarness:
    """A worker's `DescribeService` over the affine network. Its thread waits until `call_gate` is set."""

    def __init__(self, affine: Any) -> None:
        self.call_gate = asyncio.Event()
        self.calls = 0
        cache = make_cache(affine)
        self.decode_worker = DecodeWorker(cache.families)
        self.cache = cache
        self.service = DescribeService(self, self.decode_worker, cache, 8)  # type: ignore[arg-type]

    async def call(self, function: Callable[[Any], Any], kind: WorkKind) -> Any:
        self.calls += 1
        await self.call_gate.wait()
        return await asyncio.to_thread(function, None)

    async def answer(self, *texts: str, **fields: Any) -> DescribeReply:
        return await self.service.answer_request(make_request(*texts, model="affine", **fields))


@pytest.mark.asyncio
async def test_one_request_runs_at_a_time_and_none_after_closing(affine: Any) -> None:
    harness = await asyncio.to_thread(DescribingHarness, affine)
    first = asyncio.create_task(harness.answer("a", "b"))
    await wait_until(lambda: harness.calls)
    assert (await harness.answer("c")).error == DESCRIBE_BUSY_ERROR
    harness.service.close()
    assert (await first).error == STOPPING_ERROR
    assert (await harness.answer("c")).error == STOPPING_ERROR
    assert harness.cache._loaded_models.count_users("affine") == 0
    await asyncio.to_thread(harness.decode_worker.close)


@pytest.mark.asyncio
async def test_an_error_is_answered_with_a_sentence_and_the_next_request_works(
    affine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = await asyncio.to_thread(DescribingHarness, affine)
    harness.call_gate.set()
    affine.memory = 2
    reply = await harness.answer("a", "b", draws=4)
    assert [len(one) for one in reply.errors] == [4, 4]
    assert max(affine.shapes) == 2, "smaller forwards if memory runs out"
    affine.memory = 0
    assert "not enough memory" in (await harness.answer("a")).error
    affine.memory = 100
    assert "cannot be read" in (await harness.answer("a", picture=b"x")).error
    monkeypatch.setattr(affine, "denoise", lambda *arguments: 1 / 0)
    assert (await harness.answer("a")).error == "The model failed at this picture."
    monkeypatch.undo()
    monkeypatch.setattr(worker_describing, "DESCRIBE_TIMEOUT_SECONDS", 0.0)
    assert "too slow" in (await harness.answer("a")).error
    monkeypatch.undo()
    assert (await harness.service.answer_request(make_request("a", model="sdxl"))).error.startswith(
        "The model sdxl is not in memory"
    )
    assert (await harness.answer("a", revision="other")).error.startswith("This worker has another version of affine")
    assert len((await harness.answer("a", revision="r1")).errors) == 1
    await asyncio.to_thread(harness.decode_worker.close)


@pytest.mark.asyncio
async def test_a_slower_device_gets_smaller_forwards(affine: Any) -> None:
    for row_ms, rows in ((1.0, 8), (300.0, 3), (5000.0, 1)):
        harness = await asyncio.to_thread(DescribingHarness, affine)
        harness.call_gate.set()
        model = harness.cache._models["affine"]
        model.profile = replace(model.profile, row_ms=row_ms)
        affine.shapes.clear()
        await harness.answer(*"abcdefgh")
        assert set(affine.shapes) == {rows}
        await asyncio.to_thread(harness.decode_worker.close)


@pytest.mark.asyncio
async def test_a_request_refused_by_one_worker_goes_to_another(harness: WorkerHarness) -> None:
    requested_models: list[str] = []

    async def answer_busy(request: DescribeRequest) -> DescribeReply:
        requested_models.append(request.model)
        is_refused = len(requested_models) < 3
        return (
            DescribeReply(error=DESCRIBE_BUSY_ERROR, may_retry_elsewhere=True)
            if is_refused
            else DescribeReply(errors=((0.5,),))
        )

    worker = await harness.connect()
    await worker.serve_describe(["embedded"], answer_busy)
    await worker.client.flush()
    assert await harness.bot.describe(make_request("a", draws=1)) == ((0.5,),)
    assert len(requested_models) == 3
    await worker.serve_describe(["other"], answer_busy)  # `embedded` is no longer in memory
    await worker.client.flush()
    with pytest.raises(NoWorkerAnswers, match="has embedded in memory"):
        await harness.bot.describe(make_request("a", draws=1))


@pytest.mark.asyncio
async def test_an_answer_that_does_not_fit_the_request_is_refused(harness: WorkerHarness) -> None:
    worker = await harness.connect()
    wrong_replies = iter([((0.1,),), ((0.1, 0.2), (0.1,)), ()])

    async def describe(request: DescribeRequest) -> DescribeReply:
        return DescribeReply(errors=next(wrong_replies))

    await worker.serve_describe(["embedded"], describe)
    await worker.client.flush()
    for _ in range(3):
        with pytest.raises(NoWorkerAnswers, match="wrong number"):
            await harness.bot.describe(make_request("a", "b", draws=2))
    bus: Bus = harness.bot

    async def odd(msg: Any) -> None:
        await msg.respond(encode(DescribeReply(errors=((float("nan"),),))))

    await bus.client.subscribe("describe.odd", cb=odd)
    with pytest.raises(NoWorkerAnswers, match="did not answer"):
        await harness.bot.describe(make_request("a", model="odd"))
