"""An unmodified pipeline gives the same pictures in our engine as alone, and shares forwards with other jobs."""

from __future__ import annotations

import gc
import inspect
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine import models
from engine.batching.engine import Engine, Event, JobFailure, LatentsDone, StepDone
from engine.contract import Concept, Job, JobRejected, NoiseAncestor, Recipe
from engine.models.generic_family import GenericFamily
from engine.models.loading.pipeline_loader import load_training_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' schedulers
Make = Callable[..., Any]
GENERIC = ("pixart", "lumina2")  # kinds that have a family, which these tests do without


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [each.name for each in threading.enumerate() if each.name.startswith("pipeline ")] == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Loads a small model of a kind from a folder; each kind once."""
    loaded_models: dict[str, Any] = {}

    def load(kind: str) -> Any:
        if kind not in loaded_models:
            folder = tmp_path_factory.mktemp(kind) / kind
            save_small_pipeline(kind, folder)
            loaded_models[kind] = (
                GenericFamily(load_training_pipeline(folder, kind), kind, "r1")
                if kind in GENERIC
                else models.load_folder(str(folder), kind)
            )
        return loaded_models[kind]

    return load


@pytest.fixture
def engines() -> Iterator[Callable[..., Engine]]:
    """Makes engines and closes them after the test."""
    open_engines: list[Engine] = []

    def make(*models: Any, **fields: Any) -> Engine:
        open_engines.append(Engine({model.name: model for model in models}, **fields))
        return open_engines[-1]

    yield make
    for engine in open_engines:
        engine.close()


@pytest.fixture
def make_job_for(recipe: Make, job: Make) -> Make:
    """Makes a small job for a model."""

    def make(model: Any, words: str = "cat", sampler: str = "native", user: str = "ann", **fields: Any) -> Job:
        side = min(64, model.size)
        defaults = {
            "model": model.name,
            "guidance_kind": model.guides,
            "width": side,
            "height": side,
            "steps": 4,
            "guidance": 4.0,
        }
        return job(recipe(words, sampler=sampler, **(defaults | fields)), user=user, ladder=True)

    return make


def run_to_end(engine: Engine, max_steps: int = 3000) -> list[Event]:
    events: list[Event] = []
    for _ in range(max_steps):
        if engine.is_idle:
            return events
        events += engine.step()
    raise AssertionError("the engine does not finish")


def pictures(model: Any, events: list[Event]) -> dict[tuple[str, int], np.ndarray]:
    return {
        (event.job, event.image): np.asarray(model.finish(event.latents), dtype=np.float64)
        for event in events
        if isinstance(event, LatentsDone)
    }


def with_hook(forward: Any, on_forward: Callable[[], None]) -> Any:
    """Wraps a forward: it calls `on_forward` before each call."""

    @wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        on_forward()
        return forward(*args, **kwargs)

    return wrapper


def draw_with_pipeline(model: Any, job: Job, image: int = 0) -> np.ndarray:
    """The picture that the unmodified pipeline gives in this thread."""
    task = job.task
    assert isinstance(task, Recipe)
    pipeline = model.pipeline
    before = model.pipeline.scheduler
    empty_negative = None if "XL" in type(pipeline).__name__ else ""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    extra = {name: False for name in ("use_resolution_binning", "clean_caption") if name in parameters}
    pipeline.scheduler = model.make_scheduler(task.sampler) or before
    try:
        picture = pipeline(
            prompt=task.concepts[0].text,
            negative_prompt=task.negative or empty_negative,
            guidance_scale=task.guidance - 1.0 + model.no_guidance,
            num_inference_steps=task.steps,
            width=task.width,
            height=task.height,
            generator=torch.Generator().manual_seed(task.seed + image),
            **extra,
        ).images[0]
    finally:
        pipeline.scheduler = before
    return np.asarray(picture, dtype=np.float64)


def count_forwards(engine: Engine) -> tuple[int, int]:
    batcher = engine._pipeline_batching.batcher
    return batcher.forwards, batcher.rows


@pytest.mark.parametrize("kind", ["auraflow", *GENERIC])
def test_an_unknown_pipeline_kind_gives_its_own_pictures(
    kind: str, model: Make, engines: Make, make_job_for: Make
) -> None:
    family = model(kind)
    assert isinstance(family, GenericFamily)
    engine = engines(family)
    one = make_job_for(family)
    engine.add(one)
    assert np.array_equal(pictures(family, run_to_end(engine))[one.id, 0], draw_with_pipeline(family, one))
    several_jobs = [
        make_job_for(family, words, user=words, steps=steps) for words, steps in (("dog", 4), ("sea", 6), ("red", 5))
    ]
    for each in several_jobs:
        engine.add(each)
    drawn_pictures = pictures(family, run_to_end(engine))
    for each in several_jobs:
        assert (
            np.abs(drawn_pictures[each.id, 0] - draw_with_pipeline(family, each)).max() <= 1
        )  # of 255: at most a rounding


def test_a_thresholding_scheduler_runs_as_a_whole_pipeline(tmp_path: Path, engines: Make, make_job_for: Make) -> None:
    """Elsewhere DDPM is a table. If the model's configuration thresholds, it cannot be one.

    `clip_sample` does not matter here: `StableDiffusionPipeline` itself switches it off.
    """
    folder = tmp_path / "thresholding"
    save_small_pipeline("sd", folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "DDPMScheduler"]}))
    config = {
        "_class_name": "DDPMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "steps_offset": 1,
        "clip_sample": False,
        "thresholding": True,
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    family = models.load_folder(str(folder), "thresholding")
    with pytest.raises(ValueError, match="clips or thresholds"):
        family.plan("ddpm", 4, 0.0, 32, 32)
    engine = engines(family)
    one = make_job_for(family, sampler="ddpm")
    engine.add(one)
    assert np.array_equal(pictures(family, run_to_end(engine))[one.id, 0], draw_with_pipeline(family, one))
    assert count_forwards(engine)[0] == 4


SAMPLERS = ("heun", "unipc", "kdpm2", "dpmpp_3m", "native")


@pytest.mark.sampled
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_stable_diffusion_with_a_sampler_without_a_table_matches_its_pipeline(
    sampler: str, model: Make, engines: Make, make_job_for: Make
) -> None:
    family = model("sd")
    engine = engines(family)
    one = make_job_for(family, sampler=sampler, steps=6)
    engine.add(one)
    events = run_to_end(engine)
    assert np.array_equal(pictures(family, events)[one.id, 0], draw_with_pipeline(family, one))
    steps = [event.step for event in events if isinstance(event, StepDone)]
    assert steps == list(range(1, 7))
    assert all(event.total_steps == 6 for event in events if isinstance(event, StepDone))
    assert not engine.take_snapshots(one.id, 1)


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [("sdxl", "heun"), ("sd3", "heun"), ("sd3", "unipc"), ("flux", "native"), ("zimage", "native"), ("sana", "native")],
)
def test_every_family_can_run_as_a_whole_pipeline(
    kind: str, sampler: str, model: Make, engines: Make, make_job_for: Make
) -> None:
    """Latents are unpacked and guidance is scaled as in our own steps: plain euler gives the same picture."""
    family = model(kind)
    engine = engines(family)
    pipeline_job = make_job_for(family, sampler=sampler, steps=5)
    engine.add(pipeline_job)
    drawn_pictures = pictures(family, run_to_end(engine))[pipeline_job.id, 0]
    assert drawn_pictures.shape == (64, 64, 3)
    if sampler == "native":
        native_sampler = "dpmpp_2m" if kind == "sana" else "euler"
        stepped_job = make_job_for(family, sampler=native_sampler, steps=5)
        engine.add(stepped_job)
        assert np.abs(pictures(family, run_to_end(engine))[stepped_job.id, 0] - drawn_pictures).max() <= 1


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux", "zimage", "sana"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_prompts_are_encoded_once_before_the_threads_and_give_the_same_picture(
    kind: str, guidance: float, model: Make, engines: Make, make_job_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a job that arrives meanwhile need not wait for a text encoder that a thread uses."""
    family = model(kind)
    encoding_threads = []
    pipeline_job = make_job_for(family, sampler="native", guidance=guidance, count=3, negative="fog")
    expected = [draw_with_pipeline(family, pipeline_job, image) for image in range(3)]
    family.text_cache.clear()
    for part, encoder in family.pipeline.components.items():
        if part.startswith("text_encoder"):
            monkeypatch.setattr(
                encoder,
                "forward",
                with_hook(encoder.forward, lambda: encoding_threads.append(threading.current_thread())),
            )
    engine = engines(family)
    engine.add(pipeline_job)
    before = len(encoding_threads)
    drawn_pictures = pictures(family, run_to_end(engine))
    assert len(encoding_threads) == before
    assert set(encoding_threads) == {threading.current_thread()}
    for image in range(3):
        assert np.abs(drawn_pictures[pipeline_job.id, image] - expected[image]).max() <= 1


@pytest.mark.slow
def test_jobs_with_different_prompts_steps_and_samplers_share_forwards(
    model: Make, engines: Make, make_job_for: Make
) -> None:
    family = model("sd")
    jobs = [
        make_job_for(family, "cat", "heun", user="a", steps=7),
        make_job_for(family, "dog", "unipc", user="b", steps=9, count=2),
        make_job_for(family, "sea", "kdpm2", user="c", steps=5),
        make_job_for(family, "red", "native", user="d", steps=12, guidance=1.0),
        make_job_for(family, "ice", "dpmpp_3m", user="e", steps=10, negative="fog"),
    ]
    engine = engines(family)
    single_runs = []
    for each in jobs:
        by_itself = engines(family)
        by_itself.add(each)
        single_runs.append((pictures(family, run_to_end(by_itself)), count_forwards(by_itself)))
        engine.add(each)
    run_to_end(engine)  # here the engine tries whether rows may share a forward
    trial_count = count_forwards(engine)[0]
    expected = sum(count for _, (count, _) in single_runs)
    for each in jobs:
        engine.add(each)
    shared_pictures = pictures(family, run_to_end(engine))
    assert sorted(shared_pictures) == sorted(key for drawn_pictures, _ in single_runs for key in drawn_pictures)
    assert (
        max(
            np.abs(shared_pictures[key] - each).max()
            for drawn_pictures, _ in single_runs
            for key, each in drawn_pictures.items()
        )
        <= 1
    )
    print(f"{count_forwards(engine)[0] - trial_count} forwards for {expected}, {trial_count} with the trials")
    assert trial_count < expected
    assert count_forwards(engine)[0] - trial_count <= expected / 3


def test_whole_pipelines_and_stepped_jobs_of_one_model_share_an_engine(
    model: Make, engines: Make, make_job_for: Make
) -> None:
    family = model("sd")
    engine = engines(family)
    by_itself = engines(family)
    pipeline_job = make_job_for(family, sampler="heun", user="a")
    stepped_job = make_job_for(family, sampler="euler", user="b", steps=20)
    by_itself.add(stepped_job)
    expected = pictures(family, run_to_end(by_itself))[stepped_job.id, 0]
    engine.add(pipeline_job)
    engine.add(stepped_job)
    events = run_to_end(engine)
    assert np.array_equal(pictures(family, events)[pipeline_job.id, 0], draw_with_pipeline(family, pipeline_job))
    assert np.abs(pictures(family, events)[stepped_job.id, 0] - expected).max() <= 1
    kinds = [event.job for event in events if isinstance(event, LatentsDone)]
    assert kinds == [pipeline_job.id, stepped_job.id]  # the short one did not wait behind the long one


def test_previews_and_keyframes_are_the_samplers_x0(model: Make, engines: Make, make_job_for: Make) -> None:
    for kind, sampler in (("sd", "heun"), ("sd", "unipc"), ("sd", "dpmpp_3m"), ("lumina2", "native")):
        family = model(kind)
        engine = engines(family)
        one = make_job_for(family, sampler=sampler, steps=5)
        engine.add(one)
        engine.watch(one.id)
        events = run_to_end(engine)
        x0_estimates = [event.x0 for event in events if isinstance(event, StepDone)]
        assert all(x0 is not None for x0 in x0_estimates), kind
        (latents_done,) = [event for event in events if isinstance(event, LatentsDone)]
        assert [keyframe.step for keyframe in latents_done.keyframes] == [1, 2, 3, 4, 5]
        last = np.asarray(family.decode(latents_done.keyframes[-1].x0), dtype=np.float64)
        assert np.abs(last - pictures(family, events)[one.id, 0]).max() <= 2, (kind, sampler)


def test_a_ladder_has_one_keyframe_if_the_sampler_gives_no_x0(model: Make, engines: Make, make_job_for: Make) -> None:
    family = model("sd")
    # PNDM
    engine = engines(family)
    one = make_job_for(family, sampler="native")
    engine.add(one)
    (latents_done,) = [event for event in run_to_end(engine) if isinstance(event, LatentsDone)]
    assert [keyframe.step for keyframe in latents_done.keyframes] == [4]
    assert torch.equal(latents_done.keyframes[0].x0, latents_done.latents)


@pytest.mark.sampled
@pytest.mark.parametrize("other_count", [0, 1, 5])
def test_a_pinned_picture_has_the_same_bits_beside_any_other_jobs(
    other_count: int, model: Make, engines: Make, make_job_for: Make
) -> None:
    family = model("sd")
    empty_engine = engines(family)
    crowded_engine = engines(family)
    one = make_job_for(family, sampler="unipc", bucket=8, steps=6)
    empty_engine.add(one)
    expected = next(event.latents for event in run_to_end(empty_engine) if isinstance(event, LatentsDone))
    for number in range(other_count):
        crowded_engine.add(
            make_job_for(family, "dog", "heun", user=str(number), bucket=8, steps=3 + number, seed=number)
        )
    crowded_engine.add(one)
    latents = next(
        event.latents for event in run_to_end(crowded_engine) if isinstance(event, LatentsDone) and event.job == one.id
    )
    assert torch.equal(latents, expected)


def test_a_cancelled_job_leaves_at_once_and_its_thread_ends(model: Make, engines: Make, make_job_for: Make) -> None:
    family = model("sd")
    engine = engines(family)
    cancelled_job = make_job_for(family, sampler="heun", user="a", steps=50)
    remaining_job = make_job_for(family, sampler="heun", user="b", steps=5)
    engine.add(cancelled_job)
    engine.add(remaining_job)
    while not any(isinstance(event, StepDone) and event.job == cancelled_job.id for event in engine.step()):
        pass
    assert engine.cancel(cancelled_job.id) >= 1
    before = count_forwards(engine)[1]
    engine.step()
    assert count_forwards(engine)[1] - before <= 2  # the rows of the remaining job
    assert np.array_equal(
        pictures(family, run_to_end(engine))[remaining_job.id, 0], draw_with_pipeline(family, remaining_job)
    )
    unstarted_job = make_job_for(family, sampler="heun")
    engine.add(unstarted_job)
    assert engine.cancel(unstarted_job.id) == 0
    assert engine.is_idle


def test_an_error_in_one_pipeline_fails_only_that_job(
    model: Make, engines: Make, make_job_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = model("sd")
    encode = family.pipeline.encode_prompt.__func__

    def encode_or_fail(self: Any, prompt: str, *args: Any, **kwargs: Any) -> Any:
        if prompt == "unreadable":
            raise RuntimeError("this text cannot be read")
        states, empty_engine = encode(self, prompt, *args, **kwargs)
        return (states * float("nan") if prompt == "nan" else states), empty_engine

    original_prepare = family.pipeline.prepare_latents.__func__

    def prepare_or_fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name.startswith(f"pipeline {jobs['bad'].id}"):
            raise RuntimeError("these latents cannot be made")
        return original_prepare(self, *args, **kwargs)

    monkeypatch.setattr(type(family.pipeline), "encode_prompt", encode_or_fail)
    monkeypatch.setattr(type(family.pipeline), "prepare_latents", prepare_or_fail)
    engine = engines(family)
    jobs = {words: make_job_for(family, words, "unipc", user=words, steps=12) for words in ("bad", "nan", "cat")}
    with pytest.raises(JobRejected, match="before its first step") as error:
        engine.add(make_job_for(family, "unreadable", "unipc"))
    assert error.value.blame == "model"
    assert engine.is_idle
    for each in jobs.values():
        engine.add(each)
    events = run_to_end(engine)
    reasons_by_job = {event.job: event.reason for event in events if isinstance(event, JobFailure)}
    assert set(reasons_by_job) == {jobs["bad"].id, jobs["nan"].id}
    assert "not finite" in reasons_by_job[jobs["nan"].id]
    assert "pipeline failed" in reasons_by_job[jobs["bad"].id]
    assert np.abs(pictures(family, events)[jobs["cat"].id, 0] - draw_with_pipeline(family, jobs["cat"])).max() <= 1


def test_out_of_memory_halves_the_batch(
    model: Make, engines: Make, make_job_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = model("sd")
    forward = family.pipeline.unet.forward
    batch_rows = []

    def small(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(sample) > 4:
            raise torch.OutOfMemoryError("the test's memory is full")
        batch_rows.append(len(sample))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(family.pipeline.unet, "forward", small)
    engine = engines(family)
    jobs = [make_job_for(family, sampler="unipc", user=str(number)) for number in range(4)]
    for each in jobs:
        engine.add(each)
        engine.pause(each.id)
    early_events = run_to_end(engine)  # until all four wait for their first forward of 8 rows, however slow a thread is
    for each in jobs:
        engine.resume(each.id)
    assert len(pictures(family, early_events + run_to_end(engine))) == 4
    assert max(batch_rows) == 4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"concepts": (Concept("a"), Concept("b"))}, "one prompt"),
        ({"concepts": (Concept("a", 0.5),)}, "without weights"),
        ({"lineage": (NoiseAncestor(1, 0, 0.5),)}, "variations"),
        ({"guidance_stop": 0.5}, "guidance at every step"),
    ],
)
def test_options_that_no_unmodified_pipeline_has_are_refused_with_a_sentence(
    fields: dict[str, Any], words: str, model: Make, engines: Make, make_job_for: Make
) -> None:
    engine = engines(model("sd"))
    with pytest.raises(JobRejected, match=words) as error:
        engine.add(make_job_for(model("sd"), sampler="heun", **fields))
    assert error.value.blame == "member"
    assert engine.is_idle


def test_closing_the_engine_ends_every_thread(model: Make, make_job_for: Make) -> None:
    family = model("sd")
    engine = Engine({family.name: family})
    for number in range(5):
        engine.add(make_job_for(family, sampler="heun", user=str(number), count=2))
        engine.step()
    engine.close()
    assert engine.is_idle


def test_one_thread_at_a_time_encodes_prompts(
    model: Make, engines: Make, make_job_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer is set up anew for each text. Two threads in one at once sometimes gave a wrong picture."""
    family = model("sd")
    threads_inside = []
    thread_counts = []
    encode = type(family.pipeline).encode_prompt

    def run_slowly(*args: Any, **kwargs: Any) -> Any:
        threads_inside.append(1)
        thread_counts.append(len(threads_inside))
        time.sleep(0.02)
        try:
            return encode(*args, **kwargs)
        finally:
            threads_inside.pop()

    monkeypatch.setattr(type(family.pipeline), "encode_prompt", run_slowly)
    engine = engines(family)
    for number in range(4):
        engine.add(make_job_for(family, sampler="unipc", user=str(number), count=2))
        engine.step()
        # This prompt is encoded in the engine's thread.
        engine.add(make_job_for(family, f"new {number}", sampler="euler", user=str(number)))
    run_to_end(engine)
    assert len(thread_counts) >= 12
    assert max(thread_counts) == 1


def test_an_error_in_a_preview_fails_only_that_job(
    model: Make, engines: Make, make_job_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = model("sd")
    show = family.to_preview_latents

    def show_or_fail(x0: torch.Tensor, width: int, height: int) -> torch.Tensor:
        if height == 16:
            raise RuntimeError("this cannot be looked at")
        return show(x0, width, height)

    monkeypatch.setattr(family, "to_preview_latents", show_or_fail)
    engine = engines(family)
    sound_job = make_job_for(family, sampler="unipc", user="a")
    faulty_job = make_job_for(family, sampler="unipc", user="b", height=16, count=2)
    unshown_job = make_job_for(
        family, sampler="native", user="c", height=16
    )  # PNDM: only the finished picture is shown
    monkeypatch.setattr(
        family,
        "final_to_preview_latents",
        lambda final_latents: show_or_fail(final_latents, 32, final_latents.shape[1] * family.pixels_per_latent),
    )
    for each in (sound_job, faulty_job, unshown_job):
        engine.add(each)
    events = run_to_end(engine)
    failures = [event for event in events if isinstance(event, JobFailure)]
    assert {event.job for event in failures} == {faulty_job.id, unshown_job.id}
    assert len(failures) == 2
    assert {event.blame for event in failures} == {"model"}
    assert set(pictures(family, events)) == {(sound_job.id, 0)}


def test_the_last_preview_is_made_in_the_pipelines_thread(
    model: Make, engines: Make, make_job_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that gives pixels decodes and encodes for it, and the engine's thread must serve other jobs."""
    family = model("sd")
    threads = []

    def note_thread(latents: torch.Tensor) -> torch.Tensor:
        threads.append(threading.current_thread().name)
        return latents

    monkeypatch.setattr(family, "final_to_preview_latents", note_thread)
    engine = engines(family)
    engine.add(make_job_for(family, sampler="native"))
    assert len(pictures(family, run_to_end(engine))) == 1
    assert [name.split()[0] for name in threads] == ["pipeline"]


def test_a_large_network_is_in_memory_once(tmp_path: Path) -> None:
    """It is loaded, rehearsed and timed in the number format of its files."""
    save_small_pipeline("pixart", tmp_path / "once")
    pipeline = load_training_pipeline(tmp_path / "once", "once")
    pipeline.transformer.to(torch.bfloat16)
    family = GenericFamily(pipeline, "once", "r1")
    assert family.dtypes == ("bfloat16",)
    family.denoise(torch.zeros(4, 3, family.size, family.size), torch.zeros(4), (), "bfloat16")
    assert list(map(id, family._networks.values())) == [id(pipeline.transformer)]


def test_a_small_network_is_timed_without_copies_of_copies(tmp_path: Path) -> None:
    save_small_pipeline("pixart", tmp_path / "small")
    family = GenericFamily(load_training_pipeline(tmp_path / "small", "small"), "small", "r1")
    for dtype in family.dtypes * 2:
        family.denoise(torch.zeros(2, 3, family.size, family.size), torch.zeros(2), (), dtype)
    assert set(family._networks) == {(id(family.pipeline.transformer), dtype) for dtype in ("float32", "bfloat16")}


def test_a_dropped_model_is_freed(tmp_path: Path, make_job_for: Make) -> None:
    save_small_pipeline("auraflow", tmp_path / "dropped")
    families: dict[str, Any] = {"dropped": models.load_folder(str(tmp_path / "dropped"), "dropped")}
    engine = Engine(families)
    for number in range(2):
        engine.add(make_job_for(families["dropped"], user=str(number), bucket=8))
    assert len(pictures(families["dropped"], run_to_end(engine))) == 2
    assert engine._pipeline_batching.batcher._is_joinable
    cancelled_job = make_job_for(families["dropped"], steps=50)  # it leaves while its thread still works
    engine.add(cancelled_job)
    engine.step()
    engine.cancel(cancelled_job.id)
    while any(each.name.startswith("pipeline ") for each in threading.enumerate()):
        time.sleep(0.01)
    network = weakref.ref(families["dropped"].pipeline.transformer)
    families.clear()
    gc.collect()
    assert network() is None
    engine.close()
