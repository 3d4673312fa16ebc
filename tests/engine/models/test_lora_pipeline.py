"""LoRAs per job: the oracle is each pipeline's own loading. Without a LoRA, not one bit changes."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from benchmarks.fixtures.reference_pipeline import call_pipeline as by_pipeline
from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine.batching.engine import Engine, LatentsDone
from engine.calibration.calibration import Calibration
from engine.contract import TURBO_LORA, JobRejected, Lora
from engine.models import load_folder, load_model, lora_files
from engine.models.families.embedded import build_pipeline, load_embedded
from engine.models.lora_files import find_lora, find_loras
from shared.small_families import ATTENTION, build_recipe, by_engine, error, random_matrices, write_family_lora
from training.commands.run_lora import write_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers' own
    pytest.mark.filterwarnings(
        "ignore:Already found a `peft_config` attribute"
    ),  # PEFT warns when the oracle loads two
]

Make = Callable[..., Any]
TEXTS = {"sd": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}
NEWER_KINDS = ("flux2", "flux2_klein", "chroma", "qwen_image", "lumina2", "hidream")
CALIBRATION = Calibration("float32", 4, 10, "ddim", 1.0, 1.0, 1.0, {1: 1.0}, {"float32": 1.0})


@pytest.fixture(scope="module")
def small_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds the small model of a kind once and returns its folder."""
    built: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in built:
            built[kind] = tmp_path_factory.mktemp("small") / kind
            save_small_pipeline(kind, built[kind])
        return built[kind]

    return folder


@pytest.fixture
def load_small(small_folders: Make, tmp_path: Path) -> Callable[[str], Any]:
    """Loads a family of a kind, with `tmp_path` as its folder of LoRAs."""

    def family(kind: str) -> Any:
        model: Any = load_folder(str(small_folders(kind)), kind)
        model.lora_folder = tmp_path
        return model

    return family


def pipeline_of(folder: Path) -> Any:
    pipeline = import_module("diffusers").DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux", "zimage", "sana", *NEWER_KINDS])
def test_latents_equal_those_of_a_pipeline_that_loads_the_loras_itself(
    load_small: Make, small_folders: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make, kind: str
) -> None:
    """One LoRA changes network and text encoders, one only the network. Both run together, then the first alone."""
    family = load_small(kind)
    pipeline = pipeline_of(small_folders(kind))
    first = write_family_lora(tmp_path / "first.safetensors", family, 1, texts=TEXTS.get(kind, ()))
    second = write_family_lora(tmp_path / "second.v2" / "any.safetensors", family, 2)
    assert [lora.name for lora in family.list_loras()] == ["first", "second.v2"]
    without_lora = by_engine(family, build_recipe(recipe, family), job, finish)[0]
    for name, path in (("a", first), ("b", second)):
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    for weights in ((0.7, -0.4), (1.0,)):
        loras = tuple(Lora(name, weight) for name, weight in zip(("first", "second.v2"), weights, strict=False))
        pipeline.set_adapters(["a", "b"][: len(weights)], list(weights))
        (actual,) = by_engine(family, build_recipe(recipe, family, loras=loras), job, finish)
        assert error(actual, by_pipeline(pipeline, family, build_recipe(recipe, family))[0]) <= 1e-5
        assert error(actual, without_lora) > 1e-3


def test_a_lora_trained_by_darkroom_keeps_its_alpha(
    load_small: Make, small_folders: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make
) -> None:
    """The file's header holds its alpha."""
    family = load_small("sd")
    pipeline = pipeline_of(small_folders("sd"))
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v"], init_lora_weights=False))
    write_lora(pipeline.unet, tmp_path / "mine")
    assert [lora.name for lora in family.list_loras()] == ["mine"]
    (actual,) = by_engine(family, build_recipe(recipe, family, loras=(Lora("mine"),)), job, finish)
    assert error(actual, by_pipeline(pipeline, family, build_recipe(recipe, family))[0]) <= 1e-5


def test_the_embedded_model_accepts_loras(tmp_path: Path, recipe: Make, job: Make, finish: Make) -> None:
    family = load_embedded()
    pipeline = build_pipeline()
    family.lora_folder = tmp_path
    write_family_lora(tmp_path / "one.safetensors", family, 1)
    assert [lora.name for lora in family.list_loras()] == [TURBO_LORA, "one"]
    pipeline.load_lora_weights(str(tmp_path), weight_name="one.safetensors", adapter_name="a")
    pipeline.set_adapters(["a"], [0.1])
    (actual,) = by_engine(family, build_recipe(recipe, family, sampler="ddim", loras=(Lora("one", 0.1),)), job, finish)
    expected = by_pipeline(pipeline, family, build_recipe(recipe, family, sampler="ddim"))[0]
    assert error(actual, expected) <= 1e-4


def test_the_kohya_format_is_read(
    load_small: Make, small_folders: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make
) -> None:
    family = load_small("sd")
    pipeline = pipeline_of(small_folders("sd"))
    tensors: dict[str, torch.Tensor] = {}
    for key, value in random_matrices(family.get_network("float32"), ATTENTION, 3).items():
        name = "lora_unet_" + key.split(".lora_")[0].replace(".", "_")
        tensors |= {
            f"{name}.lora_{'down' if 'lora_A' in key else 'up'}.weight": value,
            f"{name}.alpha": torch.tensor(1.0),
        }
    save_file(tensors, tmp_path / "kohya.safetensors")
    pipeline.load_lora_weights(str(tmp_path), weight_name="kohya.safetensors")
    assert [lora.name for lora in family.list_loras()] == ["kohya"]
    (actual,) = by_engine(family, build_recipe(recipe, family, loras=(Lora("kohya"),)), job, finish)
    assert error(actual, by_pipeline(pipeline, family, build_recipe(recipe, family))[0]) <= 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jobs_without_loras_keep_every_bit(
    load_small: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make, dtype: str
) -> None:
    family = load_small("sd")
    write_family_lora(tmp_path / "one.safetensors", family, 1, texts=TEXTS["sd"])
    plain_recipe, with_one = (build_recipe(recipe, family, dtype=dtype, loras=loras) for loras in ((), (Lora("one"),)))
    before = by_engine(family, plain_recipe, job, finish)[0]
    conditioning = family.encode_conditioning("a cat", plain_recipe)[0]
    with_lora = by_engine(family, with_one, job, finish)[0]
    family.text_cache.clear()
    assert torch.equal(by_engine(family, plain_recipe, job, finish)[0], before)
    assert torch.equal(family.encode_conditioning("a cat", plain_recipe)[0], conditioning)
    assert not torch.equal(with_lora, before)
    assert torch.equal(by_engine(family, with_one, job, finish)[0], with_lora)
    lora_layers = [type(layer).__name__ for layer in family.get_network(dtype).modules() if hasattr(layer, "lora_A")]
    assert lora_layers == []


@pytest.mark.slow
def test_jobs_with_different_loras_do_not_affect_each_other(
    load_small: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make
) -> None:
    family = load_small("sd")
    for seed, name in enumerate(("one", "two")):
        write_family_lora(tmp_path / f"{name}.safetensors", family, seed, texts=TEXTS["sd"])
    combinations = [(), (Lora("one"),), (Lora("two"),), (Lora("one", 0.5),), (Lora("one"), Lora("two", 2.0))]
    jobs = [
        job(build_recipe(recipe, family, loras=loras), user=f"u{number}") for number, loras in enumerate(combinations)
    ]
    lone_pictures = [by_engine(load_small("sd"), each.task, job, finish)[0] for each in jobs]
    engine = Engine({"sd": family})
    for each in jobs:
        engine.add(each)
    shared_latents = finish(engine)
    for each, expected in zip(jobs, lone_pictures, strict=True):
        assert torch.equal(shared_latents[each.id, 0], expected)
    assert len({each.numpy().tobytes() for each in lone_pictures}) == len(combinations)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_whole_pipelines_apply_their_jobs_loras(
    load_small: Make, small_folders: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make, kind: str
) -> None:
    """Two whole pipelines run in their threads while a third job keeps switching the network's LoRAs."""
    family = load_small(kind)
    pipeline = pipeline_of(small_folders(kind))
    for seed, name in enumerate(("one", "two")):
        write_family_lora(tmp_path / f"{name}.safetensors", family, seed, texts=TEXTS[kind])
        pipeline.load_lora_weights(str(tmp_path), weight_name=f"{name}.safetensors", adapter_name=name)
    heun_fields = {"sampler": "heun", "negative": "a dog", "steps": 6}
    jobs = [job(build_recipe(recipe, family, loras=(Lora(name),), **heun_fields), user=name) for name in ("one", "two")]
    other = job(build_recipe(recipe, family, steps=6, loras=(Lora("two", -1.0), Lora("one", 2.0))))
    engine = Engine({kind: family})
    for each in (*jobs, other):
        engine.add(each)
    latents = finish(engine)
    for each, name in zip(jobs, ("one", "two"), strict=True):
        pipeline.set_adapters([name])
        assert (
            error(latents[each.id, 0], by_pipeline(pipeline, family, build_recipe(recipe, family, **heun_fields))[0])
            <= 1e-4
        )


def test_a_network_switches_only_when_the_loras_change(
    load_small: Make, tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load_small("sd")
    for seed, name in enumerate(("one", "two")):
        write_family_lora(tmp_path / f"{name}.safetensors", family, seed)
    one, second_loras = (
        family.with_loras(build_recipe(recipe, family, loras=(Lora(name),))).loras for name in ("one", "two")
    )
    family.get_network("float32", one)
    switch_calls: list[Any] = []
    kind = type(family.get_text_pipeline(one))
    real = kind.set_adapters
    monkeypatch.setattr(kind, "set_adapters", lambda *words: (switch_calls.append(words), real(*words)))
    networks = [family.get_network("float32", loras) for loras in (one, one, second_loras, second_loras, one)]
    assert len(switch_calls) == 2
    assert all(net is networks[0] for net in networks)


def test_a_lora_for_one_text_encoder_changes_only_its_conditioning(
    load_small: Make, tmp_path: Path, recipe: Make
) -> None:
    family = load_small("sdxl")
    write_family_lora(tmp_path / "words.safetensors", family, 1, network=False, texts=("text_encoder_2",))
    plain_recipe = build_recipe(recipe, family)
    conditioning = family.encode_conditioning(
        "a cat", family.with_loras(build_recipe(recipe, family, loras=(Lora("words"),)))
    )
    states = conditioning[0]
    other_states = family.encode_conditioning("a cat", plain_recipe)[0]
    assert torch.equal(states[:, :32], other_states[:, :32])
    assert not torch.equal(states[:, 32:], other_states[:, 32:])


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_half_precision_applies_the_lora(load_small: Make, tmp_path: Path, recipe: Make, kind: str) -> None:
    family = load_small(kind)
    write_family_lora(tmp_path / "one.safetensors", family, 1)
    one = family.with_loras(build_recipe(recipe, family, loras=(Lora("one", 2.0),), dtype="bfloat16"))
    texts = tuple(part[None] for part in family.encode_conditioning("a cat", one))
    x = torch.randn(1, *family.latent_shape(64, 64), generator=torch.manual_seed(0))
    t = torch.tensor([500.0])
    exact_output, bfloat16_output = (family.denoise(x, t, texts, dtype, one.loras) for dtype in ("float32", "bfloat16"))
    plain_output = family.denoise(x, t, texts, "float32")
    assert float((bfloat16_output - exact_output).std()) < 0.2 * float((exact_output - plain_output).std())
    kinds = {each.dtype for each in family.get_network("bfloat16", one.loras).parameters()}
    assert kinds == {torch.bfloat16}


@pytest.mark.slow
def test_loras_beyond_the_cache_size_are_loaded_again(
    load_small: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_files, "LORAS_PER_COPY", 2)
    family = load_small("sd")
    names = ("one", "two", "three")
    for seed, name in enumerate(names):
        write_family_lora(tmp_path / f"{name}.safetensors", family, seed)
    recipes = [build_recipe(recipe, family, loras=(Lora(name),)) for name in names]
    first = [by_engine(family, each, job, finish)[0] for each in recipes]
    repeated_pictures = [by_engine(family, each, job, finish)[0] for each in recipes]
    for before, after in zip(first, repeated_pictures, strict=True):
        assert torch.equal(before, after)


def test_fitting_loras_are_announced_and_all_others_refused(
    load_small: Make, tmp_path: Path, recipe: Make, job: Make, caplog: pytest.LogCaptureFixture
) -> None:
    family = load_small("sd")
    other = load_small("sdxl")
    write_family_lora(tmp_path / "fits.safetensors", family, 1, texts=TEXTS["sd"])
    write_family_lora(tmp_path / "large" / "pytorch_lora_weights.safetensors", other, 1, texts=TEXTS["sdxl"])
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "none.safetensors")
    (tmp_path / "spoilt.safetensors").write_bytes(b"rubbish")
    torch.save({}, tmp_path / "old.pt")
    (fitting_lora,) = CALIBRATION.to_model_profile(family).loras
    assert (fitting_lora.name, fitting_lora.weight, len(fitting_lora.revision)) == ("fits", 1.0, 12)
    assert [lora.name for lora in CALIBRATION.to_model_profile(other).loras] == ["large"]
    assert {"large", "none", "spoilt", "old"} <= {word for line in caplog.messages for word in line.split()}
    for name, sentence in {
        "large": "The LoRA large does not fit this model.",
        "none": "The LoRA none does not fit this model.",
        "spoilt": "The LoRA spoilt cannot be read as safetensors.",
        "old": "The LoRA old exists only as a pickle, which can run code when it is opened: convert it to safetensors.",
        "absent": "This worker has no LoRA called absent.",
    }.items():
        with pytest.raises(JobRejected) as error:
            Engine({"sd": family}).add(job(build_recipe(recipe, family, loras=(Lora(name),))))
        assert error.value.sentence == sentence
    assert torch.isfinite(step_once(family, recipe, job, fitting_lora)).all()


def step_once(family: Any, recipe: Make, job: Make, lora: Lora) -> torch.Tensor:
    """The latents after one step with this LoRA."""
    engine = Engine({family.name: family})
    engine.add(job(build_recipe(recipe, family, steps=1, loras=(lora,))))
    return next(event.latents for event in engine.step() if isinstance(event, LatentsDone))


def test_another_version_is_refused_and_a_new_file_is_another_version(
    load_small: Make, tmp_path: Path, recipe: Make
) -> None:
    family = load_small("sd")
    path = write_family_lora(tmp_path / "one.safetensors", family, 1)
    (first,) = family.list_loras()
    write_family_lora(path, family, 2)
    (second,) = family.list_loras()
    assert first.revision != second.revision
    with pytest.raises(JobRejected, match="another version of the LoRA one") as error:
        family.with_loras(build_recipe(recipe, family, loras=(first,)))
    assert error.value.blame == "worker"
    assert (
        family.with_loras(build_recipe(recipe, family, loras=(Lora("one", 0.5),))).loras[0].revision == second.revision
    )


def test_the_weights_of_a_repeated_lora_add_up(load_small: Make, tmp_path: Path, recipe: Make) -> None:
    family = load_small("sd")
    write_family_lora(tmp_path / "one.safetensors", family, 1)
    (lora,) = family.with_loras(build_recipe(recipe, family, loras=(Lora("one", 0.5), Lora("one", 0.25)))).loras
    assert lora.weight == 0.75


def test_a_family_without_lora_support_refuses_them(affine: Any, recipe: Make, job: Make) -> None:
    with pytest.raises(JobRejected, match="LoRAs cannot be added to affine"):
        Engine({"affine": affine}).add(job(recipe(loras=(Lora("one"),))))
    assert CALIBRATION.to_model_profile(affine).loras == ()


def test_without_peft_loras_are_neither_announced_nor_accepted(
    load_small: Make, tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load_small("sd")
    write_family_lora(tmp_path / "one.safetensors", family, 1)
    monkeypatch.setattr(lora_files, "find_spec", lambda name: None)
    assert family.list_loras() == ()
    with pytest.raises(JobRejected, match="LoRAs need the package peft"):
        family.with_loras(build_recipe(recipe, family, loras=(Lora("one"),)))


def test_no_lora_name_or_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    outside = tmp_path / "secret.safetensors"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, outside)
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "within.safetensors").write_bytes(outside.read_bytes())
    (folder / "alias.safetensors").symlink_to(folder / "within.safetensors")
    (folder / ".hidden.safetensors").write_bytes(b"")
    assert [one.name for one in find_loras(folder)] == ["alias", "within"]
    for name in ("../secret", "..", "/etc/passwd", "a/b", "", "secret\n", ".hidden"):
        with pytest.raises(JobRejected, match="has no LoRA"):
            find_lora(folder, name)
    with pytest.raises(JobRejected, match="leads out of the folder"):
        find_lora(folder, "link")


def test_an_unreadable_lora_is_left_out_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("good", "locked"):
        save_file({"a": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    usual_open = Path.open
    usual_iterdir = Path.iterdir

    def open_unless_locked(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.stem == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return usual_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_unless_locked)
    assert [one.name for one in find_loras(tmp_path)] == ["good"]
    assert "The LoRA locked cannot be read" in caplog.text
    with pytest.raises(JobRejected, match="The LoRA locked cannot be read"):
        find_lora(tmp_path, "locked")

    def refuse_listing(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path)) if path == tmp_path else AssertionError(usual_iterdir)

    monkeypatch.setattr(Path, "iterdir", refuse_listing)
    assert find_loras(tmp_path) == []
    assert "cannot be read" in caplog.text


def test_a_lora_folder_with_several_weights_needs_the_standard_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "many").mkdir(exist_ok=True)
        save_file({"a": torch.zeros(1)}, tmp_path / "many" / f"{name}.safetensors")
    with pytest.raises(JobRejected, match="several files of weights"):
        find_lora(tmp_path, "many")
    save_file({"a": torch.zeros(1)}, tmp_path / "many" / "pytorch_lora_weights.safetensors")
    assert find_lora(tmp_path, "many").path.name == "pytorch_lora_weights.safetensors"
    (tmp_path / "empty").mkdir()
    assert [one.name for one in find_loras(tmp_path)] == ["many"]
    assert find_loras(None) == find_loras(tmp_path / "missing") == []


def test_loras_are_found_in_the_data_folder(
    small_folders: Make, load_small: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make
) -> None:
    write_family_lora(tmp_path / "data" / "loras" / "one.safetensors", load_small("sd"), 1)
    family: Any = load_model(str(small_folders("sd")), tmp_path / "data")
    assert [lora.name for lora in family.list_loras()] == ["one"]
    assert family.lora_folder == tmp_path / "data" / "loras"
    assert by_engine(
        family, build_recipe(recipe, load_small("sd"), model=family.name, loras=family.list_loras()), job, finish
    )
