"""The engine on an affine network: many samplers in one forward, cancelling, memory, non-finite rows, snapshots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch

from engine.batching.batch import RowLayout
from engine.batching.engine import Engine, JobFailure, LatentsDone, StepDone
from engine.batching.trajectory import Trajectory
from engine.contract import Concept, ImageLife, Job, JobRejected, NoiseAncestor, Recipe, UpscaleTask, count_rows
from engine.device.memory import is_out_of_memory
from engine.sampling import plan

Make = Callable[..., Any]


def run_alone(affine: Any, job: Job, finish: Make) -> dict[int, torch.Tensor]:
    engine = Engine({"affine": affine})
    engine.add(job)
    return {image: latents for (_, image), latents in finish(engine).items()}


def test_different_samplers_steps_and_texts_share_a_forward(affine: Any, recipe: Make, job: Make, finish: Make) -> None:
    jobs = [
        job(recipe("a cat", sampler="ddpm", steps=12)),
        job(recipe("a dog", sampler="ddim", eta=0.5, steps=7, count=2)),
        job(recipe("a tree", sampler="euler", steps=9, guidance=1.0)),
        job(
            recipe(sampler="dpmpp_2m", steps=11, concepts=(Concept("sea", 2.0), Concept("red", -0.5), Concept("ship")))
        ),
    ]
    engine = Engine({"affine": affine})
    for each in jobs:
        engine.add(each)
    shared_latents = finish(engine)
    assert affine.shapes[0] == 12  # 2 + 2·2 + 1 + 4 rows, padded to a bucket
    assert len(affine.shapes) == 12  # as many forwards as the longest has steps
    for each in jobs:
        for image, latents in run_alone(affine, each, finish).items():
            torch.testing.assert_close(shared_latents[each.id, image], latents, rtol=1e-6, atol=1e-6)


def test_one_step_applies_guidance_and_the_plans_coefficients(
    affine: Any, recipe: Make, job: Make, finish: Make
) -> None:
    concepts = (Concept("sea", 2.0), Concept("red", -0.5))
    one = recipe(sampler="ddim", steps=1, guidance=3.0, concepts=concepts, negative="fog")
    latents = run_alone(affine, job(one), finish)[0]
    row = plan(affine.scheduler_config, "ddim", 1).table[0]
    x = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(7))
    unconditional, sea_output, red_output = (
        affine.denoise(x[None], torch.tensor([row[0]]), (affine.encode_conditioning(text, one)[0][None],), "float32")[0]
        for text in ("fog", "sea", "red")
    )
    expected_output = unconditional + 3.0 * (2.0 * (sea_output - unconditional) - 0.5 * (red_output - unconditional))
    torch.testing.assert_close(latents, (row[2] * x + row[3] * expected_output).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"guidance": 1.0},
        {"guidance": 1.0, "negative": "fog"},
        {"guidance": 3.0},
        {"guidance": 2.0, "count": 3},
        {"guidance": 2.0, "concepts": (Concept("a", 0.5),)},
        {"guidance": 1.0, "concepts": (Concept("a"), Concept("b"))},
        {"guidance": 1.0, "concepts": (Concept("a", 0.5), Concept("b", 0.5))},
    ],
)
def test_the_charged_rows_are_the_rows_that_run(affine: Any, recipe: Make, fields: dict[str, Any], job: Make) -> None:
    engine = Engine({"affine": affine}, buckets=tuple(range(1, 33)))
    one = recipe(**fields)
    engine.add(job(one))
    engine.step()
    assert affine.shapes == [count_rows(one)]


def test_the_empty_text_takes_no_row_if_guidance_cancels_it(affine: Any, recipe: Make, job: Make, finish: Make) -> None:
    halves = (Concept("a", 0.5), Concept("b", 0.5))
    without_guidance = run_alone(affine, job(recipe(guidance=1.0, concepts=halves)), finish)[0]
    with_small_guidance = run_alone(affine, job(recipe(guidance=1.0 + 1e-6, concepts=halves)), finish)[0]
    torch.testing.assert_close(without_guidance, with_small_guidance, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_variation_moves_away_from_its_parent_by_its_strength(
    affine: Any, recipe: Make, job: Make, finish: Make, sampler: str
) -> None:
    """DDPM draws noise at every step, so the whole noise stream must follow the parent's."""
    parent = run_alone(affine, job(recipe(sampler=sampler, steps=30, count=3)), finish)[2]
    same_latents, near_variation, far_variation = (
        run_alone(
            affine, job(recipe(sampler=sampler, steps=30, seed=99, lineage=(NoiseAncestor(7, 2, strength),))), finish
        )[0]
        for strength in (0.0, 0.1, 0.8)
    )
    torch.testing.assert_close(same_latents, parent, rtol=1e-5, atol=1e-5)
    assert 0 < float((near_variation - parent).norm()) < float((far_variation - parent).norm()) / 3


def test_forwards_are_padded_to_buckets(affine: Any, recipe: Make, job: Make) -> None:
    engine = Engine({"affine": affine})
    for count in (1, 2, 4):
        engine.add(job(recipe(count=count)))
        engine.step()
    assert affine.shapes == [2, 6, 16]


def test_a_pinned_bucket_shares_forwards_only_with_the_same_bucket(
    affine: Any, recipe: Make, job: Make, finish: Make
) -> None:
    engine = Engine({"affine": affine})
    engine.add(job(recipe(bucket=4, count=3, steps=4)))
    engine.add(job(recipe(steps=4)))
    finish(engine)
    assert sorted(affine.shapes) == [2] * 4 + [4] * 8  # six rows go in two forwards of exactly four


def test_more_rows_than_the_batch_limit_take_turns(affine: Any, recipe: Make, job: Make, finish: Make) -> None:
    engine = Engine({"affine": affine}, rows=8)
    for user in range(5):
        engine.add(job(recipe(count=4, steps=5), user=str(user)))
    finish(engine)
    assert set(affine.shapes) == {8}
    assert len(affine.shapes) == 5 * 8 * 5 / 8


def test_an_image_with_more_rows_than_the_batch_limit_runs_in_several_forwards(
    affine: Any, recipe: Make, job: Make
) -> None:
    engine = Engine({"affine": affine}, rows=2)
    engine.add(job(recipe(concepts=(Concept("a"), Concept("b"), Concept("c"), Concept("d")))))
    assert isinstance(engine.step()[0], StepDone)
    assert affine.shapes == [2, 2, 2]


def test_events_report_every_step_and_the_finished_images(affine: Any, recipe: Make, job: Make) -> None:
    engine = Engine({"affine": affine})
    one = job(recipe(steps=3, count=2))
    assert engine.step() == []
    engine.add(one)
    assert not engine.is_idle
    events = [engine.step() for _ in range(3)]
    assert [[type(event) for event in each] for each in events] == [[StepDone] * 2] * 2 + [
        [StepDone] * 2 + [LatentsDone] * 2
    ]
    assert [(event.image, event.step, event.total_steps) for event in events[1] if isinstance(event, StepDone)] == [
        (0, 2, 3),
        (1, 2, 3),
    ]
    assert engine.is_idle
    assert engine.step() == []


def test_x0_is_reported_only_for_watched_jobs(affine: Any, recipe: Make, job: Make) -> None:
    engine = Engine({"affine": affine})
    watched_job = job(recipe(steps=20))
    unwatched_job = job(recipe(steps=20))
    for each in (watched_job, unwatched_job):
        engine.add(each)
    engine.watch(watched_job.id)
    steps = [event for _ in range(20) for event in engine.step() if isinstance(event, StepDone)]
    assert {event.job for event in steps if event.x0 is not None} == {watched_job.id}
    assert all(event.x0 is not None for event in steps if event.job == watched_job.id)


def test_the_ladder_has_keyframes_with_states_to_branch_from(affine: Any, recipe: Make, job: Make) -> None:
    engine = Engine({"affine": affine})
    engine.add(job(recipe(steps=16, sampler="dpmpp_2m")))
    latents_done = next(event for _ in range(16) for event in engine.step() if isinstance(event, LatentsDone))
    assert [keyframe.step for keyframe in latents_done.keyframes] == list(range(1, 17))
    assert [keyframe.step for keyframe in latents_done.keyframes if keyframe.latents is not None] == [4, 8, 12, 16]
    assert latents_done.keyframes[-1].latents is not None
    assert torch.equal(latents_done.keyframes[-1].latents, latents_done.latents)


def test_cancel_frees_the_rows_at_once(affine: Any, recipe: Make, job: Make, finish: Make) -> None:
    engine = Engine({"affine": affine}, rows=16)
    remaining_job = job(recipe(steps=6))
    cancelled_job = job(recipe(steps=900, count=4))
    engine.add(remaining_job)
    engine.add(cancelled_job)
    for _ in range(3):
        engine.step()
    assert engine.free_rows == 6
    assert engine.cancel(cancelled_job.id) == 3
    assert engine.cancel(cancelled_job.id) == 0
    assert engine.free_rows == 14
    assert set(finish(engine)) == {(remaining_job.id, 0)}


def test_a_job_that_is_added_twice_runs_once(affine: Any, recipe: Make, job: Make, finish: Make) -> None:
    engine = Engine({"affine": affine})
    one = job(recipe())
    engine.add(one)
    engine.add(one)
    assert len(finish(engine)) == 1


def test_a_non_finite_row_fails_only_its_job(affine: Any, recipe: Make, job: Make) -> None:
    affine._failing_text = "poison"
    engine = Engine({"affine": affine})
    valid_job = job(recipe(steps=30))
    failing_job = job(recipe("poison", steps=30, count=2))
    engine.add(valid_job)
    engine.add(failing_job)
    events = [event for _ in range(30) for event in engine.step()]
    failures = [event for event in events if isinstance(event, JobFailure)]
    finished_images = [event for event in events if isinstance(event, LatentsDone)]
    assert [(event.job, event.blame) for event in failures] == [(failing_job.id, "model")]
    assert [event.job for event in finished_images] == [valid_job.id]
    assert bool(finished_images[0].latents.isfinite().all())
    assert max(event.step for event in events if isinstance(event, StepDone) and event.job == failing_job.id) <= 10


def test_a_non_finite_last_step_is_noticed(affine: Any, recipe: Make, job: Make) -> None:
    affine._failing_text = "poison"
    engine = Engine({"affine": affine})
    engine.add(job(recipe("poison", steps=3)))
    events = [event for _ in range(3) for event in engine.step()]
    assert [type(event) for event in events if not isinstance(event, StepDone)] == [JobFailure]


def test_out_of_memory_halves_the_batch_and_changes_no_picture(
    affine: Any, recipe: Make, job: Make, finish: Make
) -> None:
    jobs = [job(recipe(text, steps=6, count=2), user=text) for text in ("a", "b", "c", "d")]
    expected = {each.id: run_alone(affine, each, finish) for each in jobs}
    affine.memory = 5
    engine = Engine({"affine": affine})
    for each in jobs:
        engine.add(each)
    for (identity, image), latents in finish(engine).items():
        torch.testing.assert_close(latents, expected[identity][image], rtol=1e-6, atol=1e-6)


def test_a_job_that_never_fits_in_memory_fails_alone(affine: Any, recipe: Make, job: Make) -> None:
    affine.memory = 3
    engine = Engine({"affine": affine})
    pinned_job = job(recipe(bucket=8, steps=3))
    unpinned_job = job(recipe(steps=3))
    engine.add(pinned_job)
    engine.add(unpinned_job)
    events = [event for _ in range(8) for event in engine.step()]
    assert [(event.job, event.blame) for event in events if isinstance(event, JobFailure)] == [
        (pinned_job.id, "worker")
    ]
    assert [event.job for event in events if isinstance(event, LatentsDone)] == [unpinned_job.id]


def test_a_size_that_never_fits_does_not_shrink_batches_of_other_sizes(affine: Any, recipe: Make, job: Make) -> None:
    affine.memory_of = {8: 0}  # latents of eight columns never fit
    engine = Engine({"affine": affine})
    engine.add(job(recipe(width=64, height=64, count=4)))
    while not engine.is_idle:
        engine.step()
    engine.add(job(recipe(count=4, steps=2)))
    while not engine.is_idle:
        engine.step()
    assert affine.shapes == [8, 8]


@pytest.mark.parametrize(
    "text", ["CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", "CUDNN_STATUS_ALLOC_FAILED"]
)
def test_out_of_memory_errors_of_cuda_libraries_are_recognised(text: str) -> None:
    assert is_out_of_memory(RuntimeError(f"CUDA error: {text}"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize("batch_limit", [1, 4, 8])
def test_a_pinned_forward_is_filled_at_any_batch_limit(
    affine: Any, recipe: Make, job: Make, finish: Make, batch_limit: int
) -> None:
    engine = Engine({"affine": affine}, rows=batch_limit)
    engine.add(job(recipe(bucket=8, count=4, steps=3)))
    finish(engine)
    assert affine.shapes == [8] * 3


def test_an_absent_job_is_not_watched(affine: Any, recipe: Make, job: Make) -> None:
    engine = Engine({"affine": affine})
    absent_job = job(recipe(steps=1))
    engine.add(absent_job)
    engine.step()
    engine.watch(absent_job.id)
    assert not engine._watched_jobs


def break_network(affine: Any, monkeypatch: pytest.MonkeyPatch, *marks: float) -> None:
    """Makes the network raise if the batch has a text with one of these values; always without values."""
    denoise = affine.denoise

    def fail(x: torch.Tensor, t: torch.Tensor, texts: Any, *arguments: Any) -> torch.Tensor:
        if not marks or any(mark in texts[0][:, 0, 0].tolist() for mark in marks):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return denoise(x, t, texts, *arguments)

    monkeypatch.setattr(affine, "denoise", fail)


def test_an_error_that_one_job_causes_fails_only_that_job(
    affine: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    affine.encode_conditioning = lambda text, *_, **__: (torch.full((4, 2), len(text) / 16),)  # exact in float32
    break_network(affine, monkeypatch, len("guilty") / 16)
    engine = Engine({"affine": affine})
    guilty_job = job(recipe("guilty", count=2, steps=3))
    valid_job = [job(recipe(text, steps=3)) for text in ("a", "be")]
    for each in (valid_job[0], guilty_job, valid_job[1]):
        engine.add(each)
    events = [event for _ in range(3) for event in engine.step()]
    assert [(event.job, event.blame) for event in events if isinstance(event, JobFailure)] == [(guilty_job.id, "model")]
    assert {event.job for event in events if isinstance(event, LatentsDone)} == {each.id for each in valid_job}
    assert engine.is_idle


def test_an_error_of_all_jobs_is_raised_and_blames_none(
    affine: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_network(affine, monkeypatch)
    engine = Engine({"affine": affine})
    for text in ("a", "b"):
        engine.add(job(recipe(text)))
    with pytest.raises(RuntimeError, match="mat1"):
        engine.step()


def test_any_other_error_is_raised_and_changes_no_state(
    affine: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine({"affine": affine})
    one = job(recipe())
    engine.add(one)
    engine.step()
    before = engine.take_snapshots(one.id, 1)

    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(affine, "denoise", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        engine.step()
    assert engine.take_snapshots(one.id, 1) == before


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler", "dpmpp_2m"])
def test_a_job_resumes_exactly_from_its_snapshots(affine: Any, recipe: Make, job: Make, sampler: str) -> None:
    one = job(recipe(sampler=sampler, eta=0.5, steps=60, count=2, bucket=4))
    reference_engine, interrupted_engine, resumed_engine = (Engine({"affine": affine}) for _ in range(3))
    reference_engine.add(one)
    interrupted_engine.add(one)
    for _ in range(23):
        interrupted_engine.step()
    resumed_engine.add(one, interrupted_engine.take_snapshots(one.id, epoch=3))
    expected = [event for _ in range(60) for event in reference_engine.step() if isinstance(event, LatentsDone)]
    actual = [event for _ in range(37) for event in resumed_engine.step() if isinstance(event, LatentsDone)]
    for left, right in zip(expected, actual, strict=True):
        assert torch.equal(left.latents, right.latents)
        assert [keyframe.step for keyframe in left.keyframes] == [keyframe.step for keyframe in right.keyframes]
        for a, b in zip(left.keyframes, right.keyframes, strict=True):
            assert torch.equal(a.x0, b.x0)
            assert (a.latents is None) == (b.latents is None)
            assert a.latents is None or (b.latents is not None and torch.equal(a.latents, b.latents))


def test_a_snapshot_of_a_finished_image_only_needs_decoding(affine: Any, recipe: Make, job: Make) -> None:
    one = job(recipe(steps=4))
    image = Trajectory(one, one.task, ImageLife(0, 0), plan(affine.scheduler_config, "ddpm", 4), affine)
    image.k = 4
    engine = Engine({"affine": affine})
    engine.add(one, [image.snapshot(1)])
    assert not engine.is_idle
    assert [type(event) for event in engine.step()] == [LatentsDone]
    assert affine.shapes == []


@pytest.mark.parametrize(
    "snapshot_changes",
    [
        {"x": b"\0" * 12},
        {"x": b"\0" * 13},
        {"next_step": 900},
        {"shape": (1, 2, 3)},
        {"history": b"\0" * 256},
        {"x": b"\xff" * 256},
        {"keyframes": ((999, b"\0" * 256),)},
        {"keyframes": ((2, b""),)},
        {"image": 3},
    ],
)
def test_a_damaged_snapshot_restarts_the_image(
    affine: Any, recipe: Make, job: Make, finish: Make, snapshot_changes: dict[str, Any]
) -> None:
    one = job(recipe())
    engine = Engine({"affine": affine})
    new_engine = Engine({"affine": affine})
    engine.add(one)
    engine.step()
    snapshot = msgspec.structs.replace(engine.take_snapshots(one.id, 1)[0], **snapshot_changes)
    new_engine.add(one, [snapshot])
    assert new_engine.take_snapshots(one.id, 1)[0].next_step == 0
    torch.testing.assert_close(finish(new_engine)[one.id, 0], finish(engine)[one.id, 0])


@pytest.mark.parametrize(
    ("fields", "sentence", "blame"),
    [
        ({"model": "sdxl"}, "This worker has no model called sdxl.", "worker"),
        ({"revision": "r9"}, "This worker has another version of affine", "worker"),
        ({"width": 36}, "multiples of 8", "member"),
        ({"width": 512}, "512×32 is too large for affine: at most 64×64 pixels", "member"),
        ({"steps": 1000, "sampler": "dpmpp_2m"}, None, None),
    ],
)
def test_unfit_jobs_are_refused_with_a_sentence(
    affine: Any, recipe: Make, job: Make, fields: dict[str, Any], sentence: str | None, blame: str | None
) -> None:
    engine = Engine({"affine": affine})
    if sentence is None:
        engine.add(job(recipe(**fields)))
        return
    with pytest.raises(JobRejected) as error:
        engine.add(job(recipe(**fields)))
    assert sentence in error.value.sentence
    assert error.value.blame == blame
    assert engine.is_idle


def test_a_limit_of_the_model_is_not_blamed_on_the_member(affine: Any, recipe: Make, job: Make) -> None:
    affine.scheduler_config = affine.scheduler_config | {"timestep_spacing": "leading"}  # counts to 1000 of 0…999
    with pytest.raises(JobRejected) as error:
        Engine({"affine": affine}).add(job(recipe(steps=1000)))
    assert error.value.sentence.startswith("affine cannot take 1000 steps with the sampler ddpm;")
    assert error.value.blame == "model"


def test_the_engine_refuses_an_upscale(affine: Any, job: Make) -> None:
    with pytest.raises(JobRejected):
        Engine({"affine": affine}).add(job(UpscaleTask(source="0" * 64)))


def test_a_layout_points_every_image_at_its_own_rows(affine: Any, recipe: Make, job: Make) -> None:
    table = plan(affine.scheduler_config, "ddpm", recipe().steps)
    recipes: list[Recipe] = [recipe("a", guidance=1.0), recipe(concepts=(Concept("b"), Concept("c"))), recipe("d")]
    layout = RowLayout.build([Trajectory(job(each), each, ImageLife(0, 0), table, affine) for each in recipes], 4)
    assert layout.owner.tolist() == [0, 1, 1, 1, 2, 2, 0, 0]
    assert layout.base.tolist() == [0, 1, 4]
    assert [row.tolist() for row, _ in layout.slots] == [[0, 2, 5], [0, 3, 4]]
    assert [coefficients.flatten().tolist() for _, coefficients in layout.slots] == [[0, 2, 2], [0, 2, 0]]
