"""The decode worker: it encodes deterministic pictures and ladders, and frames of the newest step only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, get_args

import pytest
import torch
from PIL import Image

from engine.batching.engine import Engine, LatentsDone, StepDone
from engine.contract import (
    Branch,
    Concept,
    ImageToImage,
    InitImage,
    Job,
    JobRejected,
    Ladder,
    NoiseAncestor,
    UpscaleMethod,
    decode,
)
from engine.output.decode_worker import DecodeWorker
from engine.output.upscaler import upscale_picture
from engine.picture_files import encode_png, format_parameters

Make = Callable[..., Any]
TIMEOUT = 30.0


@pytest.fixture
def decode_worker(affine: Any) -> Iterator[DecodeWorker]:
    decode_worker = DecodeWorker({"affine": affine})
    yield decode_worker
    decode_worker.close()


def decode_ladder(ladder: bytes) -> Ladder:
    return decode(ladder, Ladder)


def run_job(affine: Any, job: Job) -> tuple[list[StepDone], LatentsDone]:
    engine = Engine({"affine": affine})
    engine.add(job)
    engine.watch(job.id)
    events = [event for _ in range(job.task.steps) for event in engine.step()]  # pyright: ignore[reportAttributeAccessIssue]
    return [e for e in events if isinstance(e, StepDone)], next(e for e in events if isinstance(e, LatentsDone))


def test_a_picture_has_the_same_bytes_every_time_and_carries_its_parameters(
    decode_worker: DecodeWorker, affine: Any, recipe: Make, job: Make
) -> None:
    one = job(recipe("a cat", seed=41, steps=5))
    _, latents_done = run_job(affine, one)
    first, second = (decode_worker.render_picture(latents_done, one).result(TIMEOUT) for _ in range(2))
    assert first == second
    with Image.open(BytesIO(first)) as picture:
        assert picture.size == (32, 32)
        assert set(picture.info) == {"parameters"}
        assert "Steps: 5, Sampler: DDPM, CFG scale: 2, Seed: 41, Size: 32x32, Model hash: r1, Model: affine" in str(
            picture.info["parameters"]
        )


def test_parameters_have_the_format_of_a1111(recipe: Make) -> None:
    full_recipe = recipe(
        concepts=(Concept("sea"), Concept("fog", -0.5)),
        negative="people, text",
        sampler="ddim",
        eta=0.3,
        bucket=8,
        lineage=(NoiseAncestor(3, 2, 0.25),),
        seed=9,
    )
    assert format_parameters(full_recipe, 2, "abc").splitlines() == [
        "sea fog::-0.5",
        "Negative prompt: people, text",
        (
            "Steps: 10, Sampler: DDIM, CFG scale: 2, Seed: 11, Size: 32x32, Model hash: abc, Model: affine, "
            "Precision: float32, Eta: 0.3, Variation of: 5@0.25, Batch shape: 8, Version: Darkroom"
        ),
    ]


@pytest.mark.parametrize(
    ("fields", "expected_text"),
    [
        (
            {"start": ImageToImage((InitImage("ab" * 32), InitImage("cd" * 32, 2.0)), 0.6)},
            "Denoising strength: 0.6, Begun with: ababababab@1 cdcdcdcdcd@2, Version",
        ),
        (
            {"start": ImageToImage((InitImage("ab" * 32),), 1.0, "ef" * 32)},
            "Denoising strength: 1, Begun with: ababababab@1, Mask: efefefefef, Version",
        ),
        ({"start": Branch("ab" * 32, 4), "tile": True}, "Branched from: ababababab at 4, Tiling: True, Version"),
        ({"stop_at": 0.5, "mixed": True}, "Stopped after: 5, Mixed: True, Version"),
        ({"chaos": 1.0, "count": 2}, "CFG scale: 3, Seed: 8"),
    ],
)
def test_parameters_name_init_images_branches_and_options(
    recipe: Make, fields: dict[str, Any], expected_text: str
) -> None:
    assert expected_text in format_parameters(recipe(**fields), 1, "abc").splitlines()[-1]


def test_parameters_keep_text_beyond_latin_1() -> None:
    with Image.open(BytesIO(encode_png(Image.new("RGB", (8, 8)), "котёнок 猫 😀"))) as picture:
        assert picture.info["parameters"] == "котёнок 猫 😀"


def test_the_ladder_holds_thumbnails_latents_and_history(
    decode_worker: DecodeWorker, affine: Any, recipe: Make, job: Make
) -> None:
    one = job(recipe(steps=9, sampler="dpmpp_2m"))
    _, latents_done = run_job(affine, one)
    ladder = decode(decode_worker.encode_ladder(latents_done, one).result(TIMEOUT), Ladder)
    assert (ladder.job, ladder.image, ladder.total_steps, ladder.shape) == (one.id, 0, 9, (4, 4, 4))
    assert [keyframe.step for keyframe in ladder.keyframes] == list(range(1, 10))
    assert [keyframe.step for keyframe in ladder.keyframes if keyframe.latent] == [4, 8]
    latent = torch.frombuffer(bytearray(ladder.keyframes[3].latent or b""), dtype=torch.float32).view(4, 4, 4)
    third_keyframe = latents_done.keyframes[3]
    assert third_keyframe.latents is not None
    assert torch.equal(latent, third_keyframe.latents)
    assert ladder.keyframes[3].history == third_keyframe.x0.numpy().tobytes()
    assert ladder.keyframes[2].history is None
    assert [keyframe.estimate for keyframe in ladder.keyframes] == [
        keyframe.x0.half().numpy().tobytes() for keyframe in latents_done.keyframes
    ]
    with Image.open(BytesIO(ladder.keyframes[0].thumbnail)) as thumbnail:
        assert thumbnail.format == "JPEG"


def test_live_previews_of_a_small_model_are_decoded_until_its_own_map_is_fitted(
    decode_worker: DecodeWorker, affine: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(recipe(steps=3))
    decoded_latents = list[torch.Tensor]()
    decode = affine.decode
    (event, *_), _ = run_job(affine, one)
    monkeypatch.setattr(affine, "decode", lambda x0: decoded_latents.append(x0) or decode(x0))
    decode_worker.render_frame(event, one, 0, 0.0).result(TIMEOUT)
    assert len(decoded_latents) == 1
    previewer = decode_worker._previewer_of("affine")
    while not previewer.is_fitted:
        previewer.fit_one_more()
    decode_worker.render_frame(event, one, 0, 0.0).result(TIMEOUT)
    assert len(decoded_latents) == 1


def test_an_exact_film_decodes_the_keyframes_of_a_small_model_only(
    decode_worker: DecodeWorker, affine: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(recipe(steps=3))
    decoded_latents = list[torch.Tensor]()
    decode = affine.decode
    _, latents_done = run_job(affine, one)
    monkeypatch.setattr(affine, "decode", lambda x0: decoded_latents.append(x0) or decode(x0))
    decode_worker.encode_ladder(latents_done, one).result(TIMEOUT)
    assert not decoded_latents
    ladder = decode_ladder(decode_worker.encode_ladder(latents_done, one, is_for_film=True).result(TIMEOUT))
    assert len(decoded_latents) == len(ladder.keyframes) == 3
    assert {keyframe.estimate for keyframe in ladder.keyframes} == {None}, "the thumbnail is already exact"
    monkeypatch.setattr(affine, "size", 512)
    decode_worker.encode_ladder(latents_done, one, is_for_film=True).result(TIMEOUT)
    assert len(decoded_latents) == 3, "a large model would take minutes"


def test_only_the_newest_frame_is_rendered(decode_worker: DecodeWorker, affine: Any, recipe: Make, job: Make) -> None:
    one = job(recipe(steps=4))
    steps, _ = run_job(affine, one)
    gate = threading.Event()
    decode_worker._submit(0, gate.wait)  # keeps the decode worker busy
    frame_futures = [decode_worker.render_frame(event, one, 7, 1.5) for event in steps]
    gate.set()
    frame = frame_futures[-1].result(TIMEOUT)
    assert (frame.job, frame.image, frame.epoch, frame.step, frame.total_steps, frame.seconds_left) == (
        one.id,
        0,
        7,
        4,
        4,
        1.5,
    )
    assert all(future.cancelled() for future in frame_futures[:-1])
    with Image.open(BytesIO(frame.picture)) as picture:
        assert picture.format == "JPEG"


def test_pictures_go_before_frames_and_frames_before_ladders(
    decode_worker: DecodeWorker, affine: Any, recipe: Make, job: Make
) -> None:
    one = job(recipe(steps=3))
    steps, latents_done = run_job(affine, one)
    gate = threading.Event()
    order = []
    decode_worker._submit(0, gate.wait)
    for name, future in (
        ("ladder", decode_worker.encode_ladder(latents_done, one)),
        ("frame", decode_worker.render_frame(steps[-1], one, 0, 0.0)),
        ("picture", decode_worker.render_picture(latents_done, one)),
    ):
        future.add_done_callback(lambda _, name=name: order.append(name))
    gate.set()
    decode_worker.close()
    assert order == ["picture", "frame", "ladder"]


def test_forgetting_a_job_drops_its_waiting_work(
    decode_worker: DecodeWorker, affine: Any, recipe: Make, job: Make
) -> None:
    one = job(recipe(steps=6))
    other = job(recipe(steps=6))
    steps, _ = run_job(affine, one)
    gate = threading.Event()
    decode_worker._submit(0, gate.wait)
    frame = decode_worker.render_frame(steps[-1], one, 0, 0.0)
    other_frame = decode_worker.render_frame(run_job(affine, other)[0][-1], other, 0, 0.0)
    decode_worker.forget_job(one.id)
    gate.set()
    assert frame.cancelled()
    assert other_frame.result(TIMEOUT)


def test_a_jobs_error_goes_to_its_future_and_the_decode_worker_continues(
    decode_worker: DecodeWorker, affine: Any, recipe: Make, job: Make, caplog: pytest.LogCaptureFixture
) -> None:
    one = job(recipe(steps=2))
    _, latents_done = run_job(affine, one)
    corrupt_event = LatentsDone(latents_done.job, 0, torch.zeros(1), ())
    with pytest.raises(RuntimeError, match="dimensions"):
        decode_worker.render_picture(corrupt_event, one).result(TIMEOUT)
    assert decode_worker.render_picture(latents_done, one).result(TIMEOUT)
    assert "failed at one item" in caplog.text


def test_an_upscale_keeps_the_parameters_and_adds_its_own() -> None:
    small = encode_png(Image.new("RGB", (20, 10), "red"), "a cat\nSteps: 3")
    with Image.open(BytesIO(upscale_picture(small, 4).png)) as large:
        assert large.size == (80, 40)
        expected = "a cat\nSteps: 3, Postprocess upscale by: 4, Postprocess upscaler: Lanczos"
        assert large.info["parameters"] == expected
    assert upscale_picture(small, 2) == upscale_picture(small, 2)


@pytest.mark.parametrize(
    ("source", "factor", "sentence"),
    [
        (b"no picture", 2, "cannot be read"),
        (encode_png(Image.new("RGB", (1025, 8)), ""), 4, "4100×32 is more than 4096 pixels a side"),
        (encode_png(Image.new("RGB", (8, 8)), "")[:50], 2, "cannot be read"),
    ],
)
def test_a_picture_that_cannot_be_upscaled_is_refused(source: bytes, factor: int, sentence: str) -> None:
    for method in get_args(UpscaleMethod):
        with pytest.raises(JobRejected, match=sentence):
            upscale_picture(source, factor, method)


def test_decoding_uses_all_cores_and_later_threads_keep_their_thread_count(
    affine: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New threads inherit torch's latest thread count, and another count changes the last bits."""
    cores = torch.get_num_threads()
    thread_counts = list[int]()
    original = affine.decode
    monkeypatch.setattr(affine, "decode", lambda x: thread_counts.append(torch.get_num_threads()) or original(x))
    torch.set_num_threads(3)
    try:
        decode_worker = DecodeWorker({"affine": affine})
        order = job(recipe(steps=1, count=1))
        decode_worker.render_picture(run_job(affine, order)[1], order).result(TIMEOUT)
        later_thread = threading.Thread(target=lambda: thread_counts.append(torch.get_num_threads()))
        later_thread.start()
        later_thread.join()
        decode_worker.close()
    finally:
        torch.set_num_threads(cores)
    assert thread_counts == [3, 3]
