"""Pictures beside the prompt as part of rows: rows with and without them share forwards, each with its own bits."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from io import BytesIO

import pytest
import torch
from PIL import Image

from engine.batching.engine import Engine, LatentsDone
from engine.batching.input_pictures import load_pictures
from engine.batching.job_images import build_images
from engine.batching.model_inputs import ModelInputs
from engine.batching.trajectory import Trajectory
from engine.contract import Concept, ControlImage, Dtype, Job, JobRejected, Lora, Recipe, ReferenceImage
from engine.models.family import Conditioning
from engine.models.picture_conditions import (
    OpenPicture,
    PictureCondition,
    PictureConditions,
    PictureRows,
    PictureSlot,
    TakesPictures,
)
from engine.picture_files import MAX_PIXELS
from shared.engine_fixtures import SCHEDULE, Affine
from shared.picture_files import make_png

SHA = "a" * 64
OTHER_SHA = "b" * 64
JobMaker = Callable[..., Job]
RecipeMaker = Callable[..., Recipe]


class PictureAffine(Affine, TakesPictures):
    """An affine network that adds each row's scaled pictures, and records which rows had which."""

    def __init__(self) -> None:
        super().__init__(SCHEDULE)
        self.seen: list[list[tuple[str, int, list[int]]]] = []

    def needs_pictures(self, recipe: Recipe) -> bool:
        return bool(recipe.controls or recipe.references)

    def check_pictures(self, recipe: Recipe) -> None:
        """It takes all pictures."""

    def prepare_pictures(self, recipe: Recipe, open_picture: OpenPicture) -> PictureConditions:
        shape = self.latent_shape(recipe.width, recipe.height)
        controls = [
            PictureCondition(
                PictureSlot("control", each.name, number=number),
                (_to_latents(open_picture(each.picture), shape),),
                each.scale,
                each.start,
                each.stop,
            )
            for number, each in enumerate(recipe.controls)
        ]
        references = [
            PictureCondition(
                PictureSlot("reference", each.name),
                (_to_latents(open_picture(each.picture), shape),),
                each.scale,
                unconditional_tensors=(torch.zeros(shape),),
            )
            for each in recipe.references
        ]
        return (*controls, *references)

    def denoise(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        conditioning: Conditioning,
        dtype: Dtype,
        loras: tuple[Lora, ...] = (),
        pictures: tuple[PictureRows, ...] = (),
    ) -> torch.Tensor:
        out = super().denoise(x, t, conditioning, dtype, loras)
        self.seen.append([(each.slot.name, each.slot.number, each.rows.tolist()) for each in pictures])
        for each in pictures:
            out = out + each.spread(each.scale(each.tensors[0] * each.select(x).abs().mean((1, 2, 3), True)), len(x))
        return out


def _to_latents(picture: Image.Image, shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.full(shape, sum(picture.resize((1, 1)).tobytes()) / 765)


BLOBS = {SHA: make_png(8, 8, "teal"), OTHER_SHA: make_png(8, 8, "orange")}


def _control(
    name: str = "lines", sha: str = SHA, scale: float = 0.7, start: float = 0.0, stop: float = 1.0
) -> ControlImage:
    return ControlImage(name, sha, scale=scale, start=start, stop=stop)


def _run(family: PictureAffine, jobs: Sequence[Job], rows: int = 32) -> dict[tuple[str, int], torch.Tensor]:
    engine = Engine({"affine": family}, rows=rows)
    for one in jobs:
        assert isinstance(one.task, Recipe)
        engine.add(one, (), None, load_pictures(one.task, BLOBS, family))
    results: dict[tuple[str, int], torch.Tensor] = {}
    while not engine.is_idle:
        for event in engine.step():
            if isinstance(event, LatentsDone):
                results[event.job, event.image] = event.latents
    return results


def _build_image(one: Job) -> Trajectory:
    assert isinstance(one.task, Recipe)
    family = PictureAffine()
    (image,) = build_images(one, {"affine": family}, pictures=load_pictures(one.task, BLOBS, family))
    assert isinstance(image, Trajectory)
    return image


def _make_jobs(job: JobMaker, recipe: RecipeMaker) -> list[Job]:
    recipes = [
        recipe("a plain cat"),
        recipe("a cat", seed=1, controls=(_control(),)),
        recipe("two", seed=2, count=2, controls=(_control(scale=1.5), _control("depth", OTHER_SHA))),
        recipe("late", seed=3, guidance=1.0, controls=(_control(sha=OTHER_SHA, start=0.3, stop=0.7),)),
        recipe("twice", seed=4, controls=(_control(), _control(sha=OTHER_SHA, scale=1.0))),
        recipe("style", seed=5, references=(ReferenceImage("style", SHA),)),
        recipe(concepts=(Concept("a"), Concept("b", -0.5)), seed=6, controls=(_control(),)),
    ]
    return [job(each) for each in recipes]


@pytest.mark.parametrize("rows", [32, 5, 3])
def test_rows_with_and_without_pictures_share_forwards_with_the_bits_of_a_run_alone(
    job: JobMaker, recipe: RecipeMaker, rows: int
) -> None:
    jobs = _make_jobs(job, recipe)
    alone = {key: value for one in jobs for key, value in _run(PictureAffine(), [one]).items()}
    family = PictureAffine()
    together = _run(family, jobs, rows)
    assert len(together) == 8
    assert all(torch.equal(together[key], alone[key]) for key in alone)
    if rows == 32:
        assert len(family.seen) == 10, "one forward a step"
        assert {name for name, _, _ in family.seen[0]} == {"lines", "depth", "style"}


def test_pictures_leave_memory_with_their_job(job: JobMaker, recipe: RecipeMaker) -> None:
    family = PictureAffine()
    engine = Engine({"affine": family})
    task = recipe("a cat", controls=(_control(),))
    one = job(task)
    pictures = load_pictures(task, BLOBS, family)
    alive = weakref.ref(pictures[0].tensors[0])
    engine.add(one, (), None, pictures)
    engine.step()
    del pictures
    assert alive() is not None
    engine.cancel(one.id)
    gc.collect()
    assert alive() is None


def test_a_control_changes_the_picture_and_a_scale_of_zero_does_not(job: JobMaker, recipe: RecipeMaker) -> None:
    plain, controlled, silent = (
        next(iter(_run(PictureAffine(), [job(recipe("a cat", controls=controls))]).values()))
        for controls in ((), (_control(),), (_control(scale=0.0),))
    )
    assert torch.equal(plain, silent)
    assert not torch.allclose(plain, controlled)


def test_a_control_holds_in_its_interval_as_diffusers_counts_it(job: JobMaker, recipe: RecipeMaker) -> None:
    family = PictureAffine()
    _run(family, [job(recipe("a cat", controls=(_control(start=0.25, stop=0.61),)))])
    steps = 10
    expected = [not (k / steps < 0.25 or (k + 1) / steps > 0.61) for k in range(steps)]
    assert [bool(each) for each in family.seen] == expected
    assert expected.count(True) == 3


def test_a_reference_leaves_the_unconditional_row_without_its_picture(recipe: RecipeMaker, job: JobMaker) -> None:
    image = _build_image(job(recipe("a cat", references=(ReferenceImage("style", SHA, scale=1.0),))))
    unconditional, conditional = image.model_inputs.pictures[0].tensors[0]
    assert not unconditional.any()
    assert conditional.all()


def test_equal_steps_share_one_layout(job: JobMaker, recipe: RecipeMaker) -> None:
    image = _build_image(job(recipe("a cat", controls=(_control(stop=0.5),))))
    inputs = list[ModelInputs]()
    for image.k in range(10):
        inputs.append(image.model_inputs)
    assert len({id(each) for each in inputs}) == 2, "with the control, and without it"


def test_what_a_family_or_a_picture_cannot_be_is_one_sentence(
    affine: Affine, recipe: RecipeMaker, job: JobMaker
) -> None:
    controlled = recipe("a cat", controls=(_control(),))
    with pytest.raises(JobRejected, match="affine takes no control or reference pictures"):
        Engine({"affine": affine}).add(job(controlled))
    family = PictureAffine()
    with pytest.raises(JobRejected, match="did not reach the engine"):
        Engine({"affine": family}).add(job(controlled))
    with pytest.raises(JobRejected, match="no longer stored"):
        load_pictures(controlled, {}, family)
    with pytest.raises(JobRejected, match="The picture cannot be read"):
        load_pictures(controlled, {SHA: b"no picture"}, family)
    with pytest.raises(JobRejected, match="A tile takes no control"):
        load_pictures(recipe("a cat", controls=(_control(),), tile=True), BLOBS, family)
    with pytest.raises(JobRejected, match="cannot stop before it starts"):
        load_pictures(recipe("a cat", controls=(_control(start=0.6, stop=0.5),)), BLOBS, family)
    large = BytesIO()
    Image.new("1", (MAX_PIXELS // 4096 + 1, 4096)).save(large, format="PNG")
    with pytest.raises(JobRejected, match="too large"):
        load_pictures(controlled, {SHA: large.getvalue()}, family)
