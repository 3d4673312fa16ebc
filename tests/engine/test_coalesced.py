"""Pictures that go whole through an unmodified pipeline are that pipeline's own, and share forwards with others."""

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

from engine import families
from engine.bench.small_models import build
from engine.engine import Developed, Engine, Event, Failed, Stepped
from engine.families.coalesced import Coalesced
from engine.families.opening import open_pipeline
from engine.job import Ancestor, Concept, Job, Recipe
from engine.unfit import Unfit

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' schedulers
Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_strand_is_left() -> Iterator[None]:
    yield
    assert [each.name for each in threading.enumerate() if each.name.startswith("strand")] == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A small model of a kind, loaded as any folder is; the same one each time."""
    loaded: dict[str, Any] = {}

    def load(kind: str) -> Any:
        if kind not in loaded:
            folder = tmp_path_factory.mktemp(kind) / kind
            build(kind, folder)
            loaded[kind] = families.load_folder(str(folder), kind)
        return loaded[kind]

    return load


@pytest.fixture
def engines() -> Iterator[Callable[..., Engine]]:
    """Engines that are closed in the end."""
    made: list[Engine] = []

    def make(*models: Any, **fields: Any) -> Engine:
        made.append(Engine({model.name: model for model in models}, **fields))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def order(recipe: Make, job: Make) -> Make:
    """A job for a model, small."""

    def make(model: Any, words: str = "cat", sampler: str = "native", user: str = "ann", **fields: Any) -> Job:
        side = min(64, model.size)
        known = {
            "model": model.name,
            "guides": model.guides,
            "width": side,
            "height": side,
            "steps": 4,
            "guidance": 4.0,
        }
        return job(recipe(words, sampler=sampler, **(known | fields)), user=user, ladder=True)

    return make


def run(engine: Engine, most: int = 3000) -> list[Event]:
    events: list[Event] = []
    for _ in range(most):
        if engine.idle:
            return events
        events += engine.step()
    raise AssertionError("the engine does not come to an end")


def pictures(model: Any, events: list[Event]) -> dict[tuple[str, int], np.ndarray]:
    return {
        (event.job, event.image): np.asarray(model.finish(event.latents), dtype=np.float64)
        for event in events
        if isinstance(event, Developed)
    }


def told(forward: Any, tell: Callable[[], None]) -> Any:
    """The same forward, which tells of each call."""

    @wraps(forward)
    def telling(*args: Any, **kwargs: Any) -> Any:
        tell()
        return forward(*args, **kwargs)

    return telling


def own(model: Any, job: Job, image: int = 0) -> np.ndarray:
    """What the pipeline's own call gives, in this thread, unmodified."""
    task = job.task
    assert isinstance(task, Recipe)
    pipeline, before = model.pipeline, model.pipeline.scheduler
    nothing = None if "XL" in type(pipeline).__name__ else ""
    takes = inspect.signature(type(pipeline).__call__).parameters
    more = {name: False for name in ("use_resolution_binning", "clean_caption") if name in takes}
    pipeline.scheduler = model.scheduler(task.sampler) or before
    try:
        found = pipeline(
            prompt=task.concepts[0].text, negative_prompt=task.negative or nothing,
            guidance_scale=task.guidance - 1.0 + model.no_guidance,
            num_inference_steps=task.steps, width=task.width, height=task.height,
            generator=torch.Generator().manual_seed(task.seed + image), **more,
        ).images[0]  # fmt: skip
    finally:
        pipeline.scheduler = before
    return np.asarray(found, dtype=np.float64)


def forwards(engine: Engine) -> tuple[int, int]:
    gathering = engine._coalescing.gathering
    return gathering.forwards, gathering.rows


@pytest.mark.parametrize("kind", ["pixart", "lumina2"])
def test_a_kind_that_nobody_here_knows_gives_its_own_pictures(
    kind: str, model: Make, engines: Make, order: Make
) -> None:
    known = model(kind)
    assert isinstance(known, Coalesced)
    engine = engines(known)
    one = order(known)
    engine.add(one)
    assert np.array_equal(pictures(known, run(engine))[one.id, 0], own(known, one))
    several = [order(known, words, user=words, steps=steps) for words, steps in (("dog", 4), ("sea", 6), ("red", 5))]
    for each in several:
        engine.add(each)
    drawn = pictures(known, run(engine))
    for each in several:
        assert np.abs(drawn[each.id, 0] - own(known, each)).max() <= 1  # of 255: a rounding at the most


def test_a_scheduler_that_thresholds_goes_whole_and_is_its_own(tmp_path: Path, engines: Make, order: Make) -> None:
    """DDPM is a table elsewhere; where the model's configuration thresholds, it cannot be one.

    `clip_sample` is no such case here: `StableDiffusionPipeline` itself switches it off.
    """
    folder = tmp_path / "thresholding"
    build("sd", folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "DDPMScheduler"]}))
    config = {
        "_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
        "steps_offset": 1, "clip_sample": False, "thresholding": True,
    }  # fmt: skip
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    known = families.load_folder(str(folder), "thresholding")
    with pytest.raises(ValueError, match="clips or thresholds"):
        known.plan("ddpm", 4, 0.0, 32, 32)
    engine, one = engines(known), order(known, sampler="ddpm")
    engine.add(one)
    assert np.array_equal(pictures(known, run(engine))[one.id, 0], own(known, one))
    assert forwards(engine)[0] == 4


SAMPLERS = ("heun", "unipc", "kdpm2", "dpmpp_3m", "native")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_stable_diffusion_with_a_sampler_that_is_no_table_is_the_pipelines(
    sampler: str, model: Make, engines: Make, order: Make
) -> None:
    known = model("sd")
    engine, one = engines(known), order(known, sampler=sampler, steps=6)
    engine.add(one)
    events = run(engine)
    assert np.array_equal(pictures(known, events)[one.id, 0], own(known, one))
    steps = [event.k for event in events if isinstance(event, Stepped)]
    assert steps == list(range(1, 7))
    assert all(event.of == 6 for event in events if isinstance(event, Stepped))
    assert not engine.snapshots(one.id, 1)


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [("sdxl", "heun"), ("sd3", "heun"), ("sd3", "unipc"), ("flux", "native"), ("zimage", "native"), ("sana", "native")],
)
def test_every_family_can_go_whole(kind: str, sampler: str, model: Make, engines: Make, order: Make) -> None:
    """Its latents are unpacked and its guidance is counted as its own steps have them: the plain euler looks alike."""
    known = model(kind)
    engine, whole = engines(known), order(known, sampler=sampler, steps=5)
    engine.add(whole)
    drawn = pictures(known, run(engine))[whole.id, 0]
    assert drawn.shape == (64, 64, 3)
    if sampler == "native":
        native = "dpmpp_2m" if kind == "sana" else "euler"
        stepped = order(known, sampler=native, steps=5)
        engine.add(stepped)
        assert np.abs(pictures(known, run(engine))[stepped.id, 0] - drawn).max() <= 1


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux", "zimage", "sana"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_words_are_read_once_before_the_threads_and_say_the_same(
    kind: str, guidance: float, model: Make, engines: Make, order: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes meanwhile need not wait for a text encoder that a thread is using."""
    known, reading = model(kind), []
    whole = order(known, sampler="native", guidance=guidance, count=3, negative="fog")
    expected = [own(known, whole, image) for image in range(3)]
    known.forget_texts()
    for part, encoder in known.pipeline.components.items():
        if part.startswith("text_encoder"):
            monkeypatch.setattr(
                encoder, "forward", told(encoder.forward, lambda: reading.append(threading.current_thread()))
            )
    engine = engines(known)
    engine.add(whole)
    before = len(reading)
    drawn = pictures(known, run(engine))
    assert len(reading) == before
    assert set(reading) == {threading.current_thread()}
    for image in range(3):
        assert np.abs(drawn[whole.id, image] - expected[image]).max() <= 1


def test_jobs_of_different_words_steps_and_samplers_share_forwards(model: Make, engines: Make, order: Make) -> None:
    known = model("sd")
    jobs = [
        order(known, "cat", "heun", user="a", steps=7), order(known, "dog", "unipc", user="b", steps=9, count=2),
        order(known, "sea", "kdpm2", user="c", steps=5),
        order(known, "red", "native", user="d", steps=12, guidance=1.0),
        order(known, "ice", "dpmpp_3m", user="e", steps=10, negative="fog"),
    ]  # fmt: skip
    engine, alone = engines(known), []
    for each in jobs:
        by_itself = engines(known)
        by_itself.add(each)
        alone.append((pictures(known, run(by_itself)), forwards(by_itself)))
        engine.add(each)
    run(engine)  # whether rows may go together is tried here
    tried, asked = forwards(engine)[0], sum(count for _, (count, _) in alone)
    for each in jobs:
        engine.add(each)
    together = pictures(known, run(engine))
    assert sorted(together) == sorted(key for drawn, _ in alone for key in drawn)
    assert max(np.abs(together[key] - each).max() for drawn, _ in alone for key, each in drawn.items()) <= 1
    print(f"{forwards(engine)[0] - tried} forwards for {asked}, {tried} with the trials")
    assert tried < asked
    assert forwards(engine)[0] - tried <= asked / 3


def test_whole_and_stepped_jobs_of_one_model_live_in_one_engine(model: Make, engines: Make, order: Make) -> None:
    known = model("sd")
    engine, by_itself = engines(known), engines(known)
    whole, stepped = order(known, sampler="heun", user="a"), order(known, sampler="euler", user="b", steps=20)
    by_itself.add(stepped)
    expected = pictures(known, run(by_itself))[stepped.id, 0]
    engine.add(whole)
    engine.add(stepped)
    events = run(engine)
    assert np.array_equal(pictures(known, events)[whole.id, 0], own(known, whole))
    assert np.abs(pictures(known, events)[stepped.id, 0] - expected).max() <= 1
    kinds = [event.job for event in events if isinstance(event, Developed)]
    assert kinds == [whole.id, stepped.id]  # the short one did not wait behind the long one


def test_previews_and_rungs_are_the_samplers_estimate(model: Make, engines: Make, order: Make) -> None:
    for kind, sampler in (("sd", "heun"), ("sd", "unipc"), ("sd", "dpmpp_3m"), ("lumina2", "native")):
        known = model(kind)
        engine, one = engines(known), order(known, sampler=sampler, steps=5)
        engine.add(one)
        engine.watch(one.id)
        events = run(engine)
        seen = [event.x0 for event in events if isinstance(event, Stepped)]
        assert all(x0 is not None for x0 in seen), kind
        (done,) = [event for event in events if isinstance(event, Developed)]
        assert [rung.step for rung in done.rungs] == [1, 2, 3, 4, 5]
        last = np.asarray(known.decode(done.rungs[-1].x0), dtype=np.float64)
        assert np.abs(last - pictures(known, events)[one.id, 0]).max() <= 2, (kind, sampler)


def test_a_ladder_has_a_rung_where_the_sampler_shows_nothing(model: Make, engines: Make, order: Make) -> None:
    known = model("sd")
    engine, one = engines(known), order(known, sampler="native")  # PNDM
    engine.add(one)
    (done,) = [event for event in run(engine) if isinstance(event, Developed)]
    assert [rung.step for rung in done.rungs] == [4]
    assert torch.equal(done.rungs[0].x0, done.latents)


@pytest.mark.parametrize("others", [0, 1, 5])
def test_a_pinned_picture_has_the_same_bits_whoever_is_beside_it(
    others: int, model: Make, engines: Make, order: Make
) -> None:
    known = model("sd")
    alone, crowded = engines(known), engines(known)
    one = order(known, sampler="unipc", bucket=8, steps=6)
    alone.add(one)
    expected = next(event.latents for event in run(alone) if isinstance(event, Developed))
    for number in range(others):
        crowded.add(order(known, "dog", "heun", user=str(number), bucket=8, steps=3 + number, seed=number))
    crowded.add(one)
    got = next(event.latents for event in run(crowded) if isinstance(event, Developed) and event.job == one.id)
    assert torch.equal(got, expected)


def test_cancelled_it_is_out_at_once_and_its_thread_ends(model: Make, engines: Make, order: Make) -> None:
    known = model("sd")
    engine = engines(known)
    gone, kept = order(known, sampler="heun", user="a", steps=50), order(known, sampler="heun", user="b", steps=5)
    engine.add(gone)
    engine.add(kept)
    while not any(isinstance(event, Stepped) and event.job == gone.id for event in engine.step()):
        pass
    assert engine.cancel(gone.id) >= 1
    before = forwards(engine)[1]
    engine.step()
    assert forwards(engine)[1] - before <= 2  # the rows of who is left
    assert np.array_equal(pictures(known, run(engine))[kept.id, 0], own(known, kept))
    unstarted = order(known, sampler="heun")
    engine.add(unstarted)
    assert engine.cancel(unstarted.id) == 0
    assert engine.idle


def test_what_fails_in_one_pipeline_fails_that_job_alone(
    model: Make, engines: Make, order: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = model("sd")
    encode = known.pipeline.encode_prompt.__func__

    def poor(self: Any, prompt: str, *args: Any, **kwargs: Any) -> Any:
        if prompt == "unreadable":
            raise RuntimeError("this text cannot be read")
        states, empty = encode(self, prompt, *args, **kwargs)
        return (states * float("nan") if prompt == "nan" else states), empty

    prepare = known.pipeline.prepare_latents.__func__

    def unprepared(self: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name.startswith(f"strand {jobs['bad'].id}"):
            raise RuntimeError("these latents cannot be made")
        return prepare(self, *args, **kwargs)

    monkeypatch.setattr(type(known.pipeline), "encode_prompt", poor)
    monkeypatch.setattr(type(known.pipeline), "prepare_latents", unprepared)
    engine = engines(known)
    jobs = {words: order(known, words, "unipc", user=words, steps=12) for words in ("bad", "nan", "cat")}
    with pytest.raises(Unfit, match="before its first step") as refused:
        engine.add(order(known, "unreadable", "unipc"))
    assert refused.value.blame == "model"
    assert engine.idle
    for each in jobs.values():
        engine.add(each)
    events = run(engine)
    failed = {event.job: event.reason for event in events if isinstance(event, Failed)}
    assert set(failed) == {jobs["bad"].id, jobs["nan"].id}
    assert "not finite" in failed[jobs["nan"].id]
    assert "pipeline failed" in failed[jobs["bad"].id]
    assert np.abs(pictures(known, events)[jobs["cat"].id, 0] - own(known, jobs["cat"])).max() <= 1


def test_out_of_memory_halves_the_batch(
    model: Make, engines: Make, order: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = model("sd")
    forward, largest = known.pipeline.unet.forward, []

    def small(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(sample) > 4:
            raise torch.OutOfMemoryError("the test's memory is full")
        largest.append(len(sample))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(known.pipeline.unet, "forward", small)
    engine, jobs = engines(known), [order(known, sampler="unipc", user=str(number)) for number in range(4)]
    for each in jobs:
        engine.add(each)
        engine.pause(each.id)
    early = run(engine)  # until all four wait for their first forward: it has 8 rows, whichever thread is slow
    for each in jobs:
        engine.resume(each.id)
    assert len(pictures(known, early + run(engine))) == 4
    assert max(largest) == 4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"concepts": (Concept("a"), Concept("b"))}, "one prompt"),
        ({"concepts": (Concept("a", 0.5),)}, "without weights"),
        ({"lineage": (Ancestor(1, 0, 0.5),)}, "variations"),
        ({"guidance_stop": 0.5}, "guidance at every step"),
    ],
)
def test_what_no_unmodified_pipeline_does_is_refused_in_a_sentence(
    fields: dict[str, Any], words: str, model: Make, engines: Make, order: Make
) -> None:
    engine = engines(model("sd"))
    with pytest.raises(Unfit, match=words) as refused:
        engine.add(order(model("sd"), sampler="heun", **fields))
    assert refused.value.blame == "member"
    assert engine.idle


def test_closing_ends_every_thread_wherever_it_is(model: Make, order: Make) -> None:
    known = model("sd")
    engine = Engine({known.name: known})
    for number in range(5):
        engine.add(order(known, sampler="heun", user=str(number), count=2))
        engine.step()
    engine.close()
    assert engine.idle


def test_words_are_read_by_one_at_a_time(
    model: Make, engines: Make, order: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokenizers are set anew for each text: two strands in one at once gave a wrong picture now and then."""
    known, inside, most = model("sd"), [], []
    encode = type(known.pipeline).encode_prompt

    def slow(*args: Any, **kwargs: Any) -> Any:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        try:
            return encode(*args, **kwargs)
        finally:
            inside.pop()

    monkeypatch.setattr(type(known.pipeline), "encode_prompt", slow)
    engine = engines(known)
    for number in range(4):
        engine.add(order(known, sampler="unipc", user=str(number), count=2))
        engine.step()
        engine.add(order(known, f"new {number}", sampler="euler", user=str(number)))  # read in the engine's thread
    run(engine)
    assert len(most) >= 12
    assert max(most) == 1


def test_what_fails_in_looking_at_one_picture_fails_that_job_alone(
    model: Make, engines: Make, order: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = model("sd")
    seen = known.seen

    def poor(x0: torch.Tensor, width: int, height: int) -> torch.Tensor:
        if height == 16:
            raise RuntimeError("this cannot be looked at")
        return seen(x0, width, height)

    monkeypatch.setattr(known, "seen", poor)
    engine = engines(known)
    kept, gone = order(known, sampler="unipc", user="a"), order(known, sampler="unipc", user="b", height=16, count=2)
    unshown = order(known, sampler="native", user="c", height=16)  # PNDM: what is finished is looked at
    monkeypatch.setattr(known, "last_seen", lambda finished: poor(finished, 32, finished.shape[1] * known.factor))
    for each in (kept, gone, unshown):
        engine.add(each)
    events = run(engine)
    failed = [event for event in events if isinstance(event, Failed)]
    assert {event.job for event in failed} == {gone.id, unshown.id}
    assert len(failed) == 2
    assert {event.blame for event in failed} == {"model"}
    assert set(pictures(known, events)) == {(kept.id, 0)}


def test_what_is_finished_is_looked_at_in_its_strand(
    model: Make, engines: Make, order: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a model that gives pixels it is decoded and encoded: the engine's thread has others to serve."""
    known, where = model("sd"), []

    def noted(finished: torch.Tensor) -> torch.Tensor:
        where.append(threading.current_thread().name)
        return finished

    monkeypatch.setattr(known, "last_seen", noted)
    engine = engines(known)
    engine.add(order(known, sampler="native"))
    assert len(pictures(known, run(engine))) == 1
    assert [name.split()[0] for name in where] == ["strand"]


def test_a_large_network_is_held_once(tmp_path: Path) -> None:
    """Loaded, rehearsed and timed in the number format of its files."""
    build("pixart", tmp_path / "once")
    pipeline = open_pipeline(tmp_path / "once", "once")
    pipeline.transformer.to(torch.bfloat16)
    known = Coalesced(pipeline, "once", "r1")
    assert known.dtypes == ("bfloat16",)
    known.denoise(torch.zeros(4, 3, known.size, known.size), torch.zeros(4), (), "bfloat16")
    assert list(map(id, known._nets.values())) == [id(pipeline.transformer)]


def test_a_small_network_is_timed_without_copies_of_copies(tmp_path: Path) -> None:
    build("pixart", tmp_path / "small")
    known = Coalesced(open_pipeline(tmp_path / "small", "small"), "small", "r1")
    for dtype in known.dtypes * 2:
        known.denoise(torch.zeros(2, 3, known.size, known.size), torch.zeros(2), (), dtype)
    assert set(known._nets) == {(id(known.pipeline.transformer), dtype) for dtype in ("float32", "bfloat16")}


def test_a_model_that_was_dropped_is_freed(tmp_path: Path, order: Make) -> None:
    build("pixart", tmp_path / "dropped")
    present: dict[str, Any] = {"dropped": families.load_folder(str(tmp_path / "dropped"), "dropped")}
    engine = Engine(present)
    for number in range(2):
        engine.add(order(present["dropped"], user=str(number), bucket=8))
    assert len(pictures(present["dropped"], run(engine))) == 2
    assert engine._coalescing.gathering._tried
    gone = order(present["dropped"], steps=50)  # cancelled, it leaves while its thread still works
    engine.add(gone)
    engine.step()
    engine.cancel(gone.id)
    while any(each.name.startswith("strand") for each in threading.enumerate()):
        time.sleep(0.01)
    network = weakref.ref(present["dropped"].pipeline.transformer)
    present.clear()
    gc.collect()
    assert network() is None
    engine.close()
