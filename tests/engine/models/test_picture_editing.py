"""Models that edit a picture by words: the oracle is each unmodified pipeline with the same picture."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.fixtures.reference_pipeline import call_pipeline
from engine.batching.engine import Engine
from engine.batching.input_pictures import load_init_latents
from engine.contract import MAX_INIT_IMAGES, Branch, ImageToImage, InitImage, Job, JobRejected, Recipe
from engine.models.families.picture_editing import EditsPictures, fit_edited_size, is_edit
from shared.small_families import build_recipe, error

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

Make = Callable[..., Any]
EDITORS = ("kontext", "qwen_image_edit", "qwen_image_edit_plus")  # they draw nothing without a picture
KINDS = ("flux2_klein", *EDITORS, "flux2")
TAKING_SEVERAL = ("flux2_klein", "qwen_image_edit_plus", "flux2")
SIZE = (64, 96)


@pytest.fixture
def native_area(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen's pipelines scale every picture to a million pixels. Here they scale to the recipe's, as our family does."""
    edit, plus = (
        import_module(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_{name}") for name in ("edit", "edit_plus")
    )
    scale = plus.calculate_dimensions
    monkeypatch.setattr(edit, "calculate_dimensions", lambda area, ratio: (*SIZE, None))
    monkeypatch.setattr(
        plus,
        "calculate_dimensions",
        lambda area, ratio: scale(SIZE[0] * SIZE[1] if area == plus.VAE_IMAGE_SIZE else area, ratio),
    )


def draw_picture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (3, 2, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def encode(picture: Image.Image) -> tuple[str, bytes]:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return sha256(buffer.getvalue()).hexdigest(), buffer.getvalue()


def build_edit(make: Make, kind: str, family: Any, picture: Image.Image, text: str = "a cat", **fields: Any) -> Any:
    start = ImageToImage((InitImage(encode(picture)[0]),), 1.0)
    return build_recipe(make, family, text, **({"width": SIZE[0], "height": SIZE[1], "start": start} | fields))


def add_edit(engine: Engine, family: Any, each: Job, picture: Image.Image) -> None:
    assert isinstance(each.task, Recipe)
    engine.add(each, (), load_init_latents(each.task, dict([encode(picture)]), family))


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_edits_share_forwards_and_equal_the_pipelines(
    load_small: Make, native_area: None, recipe: Make, job: Make, finish: Make, kind: str, watch_rows: Make
) -> None:
    family, pipeline = load_small(kind)
    rows = watch_rows(family)
    pictures = draw_picture(1), draw_picture(2)
    first = job(build_edit(recipe, kind, family, pictures[0], steps=4, guidance=3.0), user="ann")
    second = job(
        build_edit(recipe, kind, family, pictures[1], "make it a longer night", steps=3, guidance=2.0, seed=3),
        user="bea",
    )
    engine = Engine({kind: family})
    add_edit(engine, family, first, pictures[0])
    engine.step()
    add_edit(engine, family, second, pictures[1])
    latents = finish(engine)
    assert len(rows) == 4
    for each, picture in zip((first, second), pictures, strict=True):
        (expected,) = call_pipeline(pipeline, family, each.task, image=picture)
        assert error(latents[each.id, 0], expected) <= 1e-4


@pytest.mark.sampled
@pytest.mark.parametrize("kind", TAKING_SEVERAL)
def test_an_edit_of_several_pictures_equals_the_pipeline(
    load_small: Make, native_area: None, recipe: Make, job: Make, finish: Make, kind: str
) -> None:
    """The further pictures keep a shape of their own."""
    family, pipeline = load_small(kind)
    pictures = [draw_picture(1), draw_picture(2, (SIZE[1], SIZE[0])), draw_picture(3)]
    engine = Engine({kind: family})
    blobs = dict(map(encode, pictures))
    jobs = list[tuple[Job, Recipe]]()
    for shown in (pictures, pictures[:1]):
        start = ImageToImage(tuple(InitImage(encode(picture)[0]) for picture in shown), 1.0)
        edit = build_edit(recipe, kind, family, pictures[0], steps=3, guidance=3.0, start=start)
        assert is_edit(edit, family)
        jobs.append((job(edit), edit))
        engine.add(jobs[-1][0], (), load_init_latents(edit, blobs, family))
    latents = finish(engine)
    several, one = (latents[each.id, 0] for each, _ in jobs)
    (expected,) = call_pipeline(pipeline, family, jobs[0][1], image=pictures)
    assert error(several, expected) <= 1e-4
    assert error(several, one) > 1e-3


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_changes_the_latents(load_small: Make, recipe: Make, job: Make, finish: Make, kind: str) -> None:
    """Otherwise the comparisons with the pipeline would prove nothing."""
    family, _ = load_small(kind)
    drawn: list[torch.Tensor] = []
    for seed in (1, 2):
        engine = Engine({kind: family})
        each = job(build_edit(recipe, kind, family, draw_picture(seed), steps=4, guidance=2.0))
        add_edit(engine, family, each, draw_picture(seed))
        drawn.append(finish(engine)[each.id, 0])
    assert error(*drawn) > 1e-3


@pytest.mark.parametrize("kind", EDITORS[:2])
def test_an_editor_refuses_what_is_no_edit_with_a_sentence(
    load_small: Make, recipe: Make, job: Make, kind: str
) -> None:
    family, _ = load_small(kind)
    sha = encode(draw_picture(1))[0]
    engine = Engine({kind: family})
    for start, words in (
        (None, "give it one"),
        (Branch(ladder=sha, step=2), "give it one"),
        (ImageToImage((InitImage(sha),), 0.5), "as it is"),
        (ImageToImage((InitImage(sha), InitImage(sha)), 1.0), "edits one picture at a time, and these are 2"),
        (ImageToImage((InitImage(sha),), 1.0, sha), "as it is"),
    ):
        with pytest.raises(JobRejected, match=words) as refusal:
            engine.add(job(build_recipe(recipe, family, start=start)))
        assert refusal.value.blame == "member"
    assert "native" not in family.samplers


def test_a_model_that_draws_and_edits_tells_them_apart_by_the_strength(load_small: Make, recipe: Make) -> None:
    family, _ = load_small("flux2_klein")
    sha = encode(draw_picture(1))[0]
    starts = [ImageToImage((InitImage(sha),), strength) for strength in (1.0, 0.6)]
    recipes = [build_recipe(recipe, family, start=start) for start in (*starts, None)]
    assert [is_edit(each, family) for each in recipes] == [True, False, False]
    loaded = [load_init_latents(each, dict([encode(draw_picture(1))]), family) for each in recipes]
    assert [each is not None and bool(each.edited) for each in loaded] == [True, False, False]


@pytest.mark.parametrize("kind", ["flux2_klein", "kontext"])
def test_an_edit_does_not_tile(load_small: Make, recipe: Make, job: Make, kind: str) -> None:
    family, _ = load_small(kind)
    with pytest.raises(JobRejected, match="does not tile") as refusal:
        Engine({kind: family}).add(job(build_edit(recipe, kind, family, draw_picture(1), tile=True)))
    assert refusal.value.blame == "member"


def test_editors_say_whether_they_also_draw(load_small: Make) -> None:
    families = {kind: load_small(kind)[0] for kind in ("flux2", *EDITORS[:2])}
    assert all(isinstance(family, EditsPictures) for family in families.values())
    assert [family.needs_picture for family in families.values()] == [False, True, True]
    assert [family.max_edit_pictures for family in families.values()] == [MAX_INIT_IMAGES, 1, 1]


def test_a_picture_is_never_larger_than_the_native_area(load_small: Make, recipe: Make) -> None:
    family, _ = load_small("kontext")
    sizes = [
        fit_edited_size(build_recipe(recipe, family, width=width, height=height), family)
        for width, height in ((64, 96), (256, 256), (512, 128), (512, 512))
    ]
    assert sizes == [(64, 96), (256, 256), (512, 128), (256, 256)]
    whole = build_recipe(recipe, family, width=256, height=256)
    shapes = [fit_edited_size(whole, family, shape) for shape in ((64, 96), (3000, 3000), (9000, 9), (9, 9000))]
    assert all(
        width * height <= 256 * 256 and width % family.multiple == height % family.multiple == 0
        for width, height in shapes
    )
    assert shapes[1:] == [(256, 256), (512, 128), (128, 512)], "no more than four to one"
