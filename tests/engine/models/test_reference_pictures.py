"""Reference pictures by IP-Adapters: the oracle is diffusers' pipelines with `load_ip_adapter`, in float32."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.fixtures.reference_pipeline import call_with_references, load_reference_pipeline
from benchmarks.fixtures.small_controls import save_small_ip_adapter
from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine.batching.engine import Engine
from engine.batching.job_images import check_job
from engine.calibration.calibration import Calibration
from engine.contract import Concept, Job, JobRejected, Recipe, ReferenceImage
from engine.models import load_model
from engine.models.reference_pictures import MAX_CONFIG_BYTES, ReferenceConditioner
from shared.init_image_jobs import Blobs, add_job
from shared.picture_jobs import draw_reference, run_engine, run_picture_jobs, store_pictures
from shared.small_families import by_engine, error, random_matrices

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

Make = Callable[..., Any]
KINDS = ("sd", "sdxl")
ADAPTERS = ("plain", "plus")
PICTURES = [draw_reference(colour) for colour in ("crimson", "teal", "gold")]
NAMES, BLOBS = store_pictures(*PICTURES)
CALIBRATION = Calibration("float32", 4, 10, "ddim", 1.0, 1.0, 1.0, {1: 1.0}, {"float32": 1.0})


@pytest.fixture(scope="module")
def load_small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path, Path]]:
    """(family, data folder, model folder) of a kind, with a plain and a plus adapter."""
    loaded: dict[str, tuple[Any, Path, Path]] = {}

    def load(kind: str) -> tuple[Any, Path, Path]:
        if kind not in loaded:
            data = tmp_path_factory.mktemp(f"data-{kind}")
            folder = data / "models" / kind
            save_small_pipeline(kind, folder)
            family: Any = load_model(kind, data)
            for number, name in enumerate(ADAPTERS):
                save_small_ip_adapter(
                    data / "ip-adapters" / name, family.pipeline.unet, is_plus=name == "plus", seed=number
                )
            loaded[kind] = family, data, folder
        return loaded[kind]

    return load


def find_conditioner(family: Any) -> ReferenceConditioner:
    return next(each for each in family.conditioners if isinstance(each, ReferenceConditioner))


def make_reference(name: str, picture: int, scale: float = 0.8) -> ReferenceImage:
    return ReferenceImage(name, NAMES[picture], scale)


def build(make: Make, family: Any, *references: ReferenceImage, **fields: Any) -> Recipe:
    defaults: dict[str, Any] = {
        "model": family.name,
        "sampler": "euler",
        "steps": 4,
        "width": family.size,
        "height": family.size,
        "guidance": 4.0,
        "guidance_kind": family.guides,
        "references": references,
    }
    return make("a cat", **(defaults | fields))


def by_pipeline(folder: Path, data: Path, family: Any, recipe: Recipe) -> torch.Tensor:
    """The unmodified pipeline with the recipe's adapters, one for each picture."""
    adapters = tuple(data / "ip-adapters" / reference.name for reference in recipe.references)
    return call_with_references(load_oracle(folder, adapters), family, recipe, BLOBS)


load_oracle = lru_cache(maxsize=8)(load_reference_pipeline)


def draw(one: Job, family: Any, blobs: Blobs = BLOBS) -> torch.Tensor:
    return run_picture_jobs([one], blobs, family)[one.id, 0]


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_reference_picture_equals_the_pipelines(
    load_small: Make, recipe: Make, job: Make, kind: str, name: str, guidance: float
) -> None:
    family, data, folder = load_small(kind)
    one = build(recipe, family, make_reference(name, 0), guidance=guidance)
    actual = draw(job(one), family)
    assert error(actual, by_pipeline(folder, data, family, one)) <= 1e-4
    plain = draw(job(build(recipe, family, guidance=guidance)), family)
    assert error(actual, plain) > 1e-3


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_several_references_add_up_as_several_adapters_do(load_small: Make, recipe: Make, job: Make, kind: str) -> None:
    family, data, folder = load_small(kind)
    references = make_reference("plain", 0, 0.7), make_reference("plus", 1, 0.4), make_reference("plain", 2, 1.3)
    one = build(recipe, family, *references, negative="a dog in the grass")
    assert error(draw(job(one), family), by_pipeline(folder, data, family, one)) <= 1e-4


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_and_without_references_share_forwards(
    load_small: Make, recipe: Make, job: Make, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, data, folder = load_small(kind)
    recipes = [
        build(recipe, family, seed=1),
        build(recipe, family, make_reference("plain", 0, 0.3), seed=2),
        build(recipe, family, make_reference("plus", 1, 1.0), make_reference("plain", 2, 0.5), seed=3),
        build(recipe, family, make_reference("plain", 0, 1.2), seed=4, guidance=1.0),
    ]
    jobs = [job(each, user=f"user{number}") for number, each in enumerate(recipes)]
    row_counts = list[int]()
    denoise = family.denoise

    def count_rows(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        row_counts.append(len(x))
        return denoise(x, *arguments)

    monkeypatch.setattr(family, "denoise", count_rows)
    together = run_picture_jobs(jobs, BLOBS, family, buckets=(8,))
    assert row_counts == [8] * 4  # one forward a step: 7 rows and one of padding
    for each in jobs:
        references = each.task.references
        expected = by_pipeline(folder, data, family, each.task) if references else draw(each, family)
        assert error(together[each.id, 0], expected) <= 1e-4


def test_concepts_share_the_reference(load_small: Make, recipe: Make, job: Make) -> None:
    """Two equal concepts of half the weight are one."""
    family, _, _ = load_small("sd")
    halves = tuple(Concept("a cat", 0.5) for _ in range(2))
    one = build(recipe, family, make_reference("plus", 0))
    other = build(recipe, family, make_reference("plus", 0), concepts=halves)
    assert error(draw(job(other), family), draw(job(one), family)) <= 1e-4


def test_a_lora_changes_a_picture_with_a_reference_as_in_the_pipeline(
    load_small: Make, recipe: Make, job: Make
) -> None:
    family, data, folder = load_small("sd")
    matrices = random_matrices(family.pipeline.unet, (".to_q", ".to_v"), 3)
    (data / "loras").mkdir(exist_ok=True)
    save_file({f"unet.{name}": matrix for name, matrix in matrices.items()}, data / "loras" / "bright.safetensors")
    (lora,) = family.list_loras()
    one = build(recipe, family, make_reference("plain", 0), loras=(lora,))
    pipeline = load_reference_pipeline(folder, [data / "ip-adapters" / "plain"])
    pipeline.load_lora_weights(str(data / "loras"), weight_name="bright.safetensors")
    actual = draw(job(one), family)
    assert error(actual, call_with_references(pipeline, family, one, BLOBS)) <= 1e-4
    assert error(actual, draw(job(build(recipe, family, make_reference("plain", 0))), family)) > 1e-3


def test_a_large_model_refers_in_its_only_number_format(load_small: Make, recipe: Make, job: Make) -> None:
    small, data, _ = load_small("sdxl")
    large: Any = load_model("sdxl", data, large_threshold=1)
    dtype = large.dtypes[0]
    one = build(recipe, large, make_reference("plus", 1), dtype=dtype)
    exact = draw(job(build(recipe, small, make_reference("plus", 1))), small)
    plain = draw(job(build(recipe, small)), small)
    assert large.is_single_format
    assert large.count_picture_bytes(one) > 0
    assert error(draw(job(one), large), exact) < 0.5 * error(plain, exact)


def test_an_adapter_of_another_recipe_is_counted_apart_and_can_go(load_small: Make, recipe: Make, job: Make) -> None:
    family, _, _ = load_small("sd")
    conditioner = find_conditioner(family)
    plain, plus, none = (
        build(recipe, family, *references)
        for references in ((make_reference("plain", 0),), (make_reference("plus", 0),), ())
    )
    draw(job(plus), family)
    gc.collect()
    assert not conditioner._cast_rows, "keys and values go with the job"
    small, large = (conditioner.count_bytes(each, with_kept=False) for each in (plain, plus))
    assert 0 < small < large == conditioner.count_bytes(none) == conditioner.count_bytes(plain)
    family.release_other_networks(plus)
    assert conditioner.count_bytes(none) == large
    family.release_other_networks(plain)
    assert (conditioner.count_bytes(none), conditioner.count_bytes(plain)) == (0, small)


@pytest.mark.slow
def test_without_references_the_bits_stay_the_same(load_small: Make, recipe: Make, job: Make, finish: Make) -> None:
    family, _, _ = load_small("sd")
    for dtype in ("float32", "bfloat16"):
        one = build(recipe, family, dtype=dtype)
        (before,) = by_engine(family, one, job, finish)
        draw(job(build(recipe, family, make_reference("plain", 0), dtype=dtype)), family)
        assert torch.equal(by_engine(family, one, job, finish)[0], before)


@pytest.mark.slow
def test_bfloat16_is_near_float32(load_small: Make, recipe: Make, job: Make) -> None:
    family, _, _ = load_small("sd")
    exact, rounded, plain = (
        draw(job(build(recipe, family, *references, dtype=dtype)), family)
        for references, dtype in (
            ((make_reference("plain", 0),), "float32"),
            ((make_reference("plain", 0),), "bfloat16"),
            ((), "float32"),
        )
    )
    assert error(rounded, exact) < 0.5 * error(plain, exact)


def test_an_interrupted_picture_goes_on_from_its_snapshot(load_small: Make, recipe: Make, job: Make) -> None:
    family, _, _ = load_small("sd")
    one = job(build(recipe, family, make_reference("plus", 0), steps=6, sampler="dpmpp_2m"))
    expected = draw(one, family)
    engine = Engine({"sd": family})
    add_job(engine, one, BLOBS, family)
    run_engine(engine, {}, steps=3)
    snapshots = engine.take_snapshots(one.id, 1)
    assert snapshots[0].next_step == 3
    other_engine = Engine({"sd": family})
    add_job(other_engine, one, BLOBS, family, snapshots)
    assert torch.equal(run_engine(other_engine, {})[one.id, 0], expected)


def test_a_model_announces_the_adapters_that_fit(load_small: Make, tmp_path: Path) -> None:
    family, data, _ = load_small("sd")
    other, _, _ = load_small("sdxl")
    profile = CALIBRATION.to_model_profile(family)
    assert [(each.name, len(each.revision)) for each in profile.references] == [("plain", 12), ("plus", 12)]
    assert profile.required == ""
    conditioner = find_conditioner(other)
    folder = conditioner.folder
    conditioner.folder = data / "ip-adapters"
    assert CALIBRATION.to_model_profile(other).references == ()
    conditioner.folder = folder


def check(family: Any, recipe: Recipe, job: Make) -> str:
    with pytest.raises(JobRejected) as caught:
        check_job(job(recipe), {family.name: family})
    return caught.value.sentence


def test_a_missing_or_changed_adapter_is_refused_with_a_sentence(load_small: Make, recipe: Make, job: Make) -> None:
    family, _, _ = load_small("sd")
    (known, _) = family.list_references()
    check_job(job(build(recipe, family, ReferenceImage("plain", NAMES[0], revision=known.revision))), {"sd": family})
    assert check(family, build(recipe, family, make_reference("other", 0)), job) == (
        "This worker has no reference adapter called other."
    )
    assert check(family, build(recipe, family, ReferenceImage("plain", NAMES[0], revision="0" * 12)), job) == (
        "This worker has another version of the reference adapter plain."
    )
    assert "no control or reference pictures" in check(
        family, build(recipe, family, make_reference("plain", 0), sampler="heun"), job
    )


def test_a_picture_that_is_none_is_refused_with_a_sentence(load_small: Make, recipe: Make, job: Make) -> None:
    family, _, _ = load_small("sd")
    one = job(build(recipe, family, make_reference("plain", 0)))
    with pytest.raises(JobRejected, match="The picture cannot be read"):
        draw(one, family, {NAMES[0]: b"no picture"})
    with pytest.raises(JobRejected, match="no longer stored"):
        draw(one, family, {})


def spoil(folder: Path, how: str) -> None:
    path = folder / "adapter.safetensors"
    if how == "pickle":
        path.rename(folder / "adapter.bin")
    elif how == "rubbish":
        path.write_bytes(b"rubbish")
    elif how == "several":
        shutil.copy(path, folder / "other.safetensors")
    elif how == "no encoder":
        shutil.rmtree(folder / "image_encoder")
    elif how == "configuration":
        (folder / "image_encoder" / "config.json").write_text(" " * (MAX_CONFIG_BYTES + 1))
    elif how == "image size":  # its table of places would take 16 TB
        path = folder / "image_encoder" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"image_size": 50_000_000}))
    elif how == "link":
        path.rename(folder.parents[1] / "outside.safetensors")
        path.symlink_to(folder.parents[1] / "outside.safetensors")
    elif how == "faces":  # a small network in place of one matrix
        tensors = {key.replace("proj.weight", "proj.0.weight"): tensor for key, tensor in load_file(path).items()}
        save_file(tensors, path)
    else:
        save_file(load_file(path) | {"ip_adapter.9.to_k_ip.weight": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("pickle", "only as a pickle"),
        ("rubbish", "does not fit this model"),
        ("several", "several files of weights"),
        ("no encoder", "needs its image encoder beside it"),
        ("link", "leads out of the folder"),
        ("configuration", "has an image encoder with a configuration of more than 1 MiB"),
        ("image size", "has an image encoder that is not built here: expected `int` <= 1024 - at `$.image_size`."),
        ("faces", "does not fit this model"),
        ("layers", "does not fit this model"),
    ],
)
def test_a_faulty_adapter_is_refused_with_a_sentence_and_not_announced(
    load_small: Make, recipe: Make, job: Make, tmp_path: Path, how: str, sentence: str
) -> None:
    family, data, _ = load_small("sd")
    shutil.copytree(data / "ip-adapters" / "plain", tmp_path / "ip-adapters" / "plain")
    spoil(tmp_path / "ip-adapters" / "plain", how)
    conditioner = find_conditioner(family)
    folder = conditioner.folder
    conditioner.folder = tmp_path / "ip-adapters"
    try:
        assert sentence in check(family, build(recipe, family, make_reference("plain", 0)), job)
        assert family.list_references() == ()
    finally:
        conditioner.folder = folder
