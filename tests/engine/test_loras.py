"""LoRAs per job: each pipeline's own loading is the oracle; without one, every bit is as if there had been none."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from engine.bench.small_models import build
from engine.calibration import Calibration
from engine.engine import Developed, Engine
from engine.families import adapted, load, load_folder
from engine.families.additions import addition, additions
from engine.families.embedded import assemble, load_embedded
from engine.job import Lora
from engine.training.commands.run_lora import write_lora
from engine.unfit import Unfit
from tests.engine.test_real_families import by_engine, by_pipeline, error

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers' own
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute"),  # PEFT's, where the oracle loads two
]

Make = Callable[..., Any]
ATTENTION = (".to_q", ".to_k", ".to_v")
CLIP = (".q_proj", ".v_proj")
TEXTS = {"sd": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}
MEASURED = Calibration("float32", 4, 10, "ddim", 1.0, 1.0, 1.0, {1: 1.0}, {"float32": 1.0})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where the small model of a kind is."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("small") / kind
            build(kind, made[kind])
        return made[kind]

    return folder


@pytest.fixture
def opened(folders: Make, tmp_path: Path) -> Callable[[str], Any]:
    """A family of a kind that looks for LoRAs in `tmp_path`."""

    def family(kind: str) -> Any:
        found: Any = load_folder(str(folders(kind)), kind)
        found.lora_folder = tmp_path
        return found

    return family


def pipeline_of(folder: Path) -> Any:
    pipeline = import_module("diffusers").DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(module: Any, endings: tuple[str, ...], seed: int, rank: int = 2) -> dict[str, torch.Tensor]:
    """Random matrices for the layers of these names, as PEFT calls them."""
    chance, found = torch.Generator().manual_seed(seed), {}
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.endswith(endings):
            found[f"{name}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=chance) * 0.3
            found[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=chance) * 0.3
    assert found
    return found


def write(path: Path, family: Any, seed: int, *, network: bool = True, texts: tuple[str, ...] = ()) -> Path:
    """A LoRA for parts of a family, as diffusers writes it."""
    tensors: dict[str, torch.Tensor] = {}
    if network:
        matrices = drawn(family.net("float32"), ATTENTION, seed)
        tensors |= {f"{family.network}.{name}": value for name, value in matrices.items()}
    for number, part in enumerate(texts):
        matrices = drawn(getattr(family.pipeline, part), CLIP, seed + 100 * (number + 1))
        tensors |= {f"{part}.{name}": value for name, value in matrices.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def asked(make: Make, family: Any, **fields: Any) -> Any:
    usual = {"sana": "dpmpp_2m", "sd": "ddim"}.get(family.name, "euler")
    side = min(64, family.size)
    defaults: dict[str, Any] = {
        "model": family.name, "sampler": usual, "steps": 3, "width": side, "height": side, "guides": family.guides,
        "guidance": 3.0,
    }  # fmt: skip
    return make("a cat", **(defaults | fields))


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux", "zimage", "sana"])
def test_latents_are_those_of_the_pipelines_own_loading(
    opened: Make, folders: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make, kind: str
) -> None:
    """One in network and text encoders, one in the network alone, each so strong; the first is also asked for alone."""
    family, pipeline = opened(kind), pipeline_of(folders(kind))
    first = write(tmp_path / "first.safetensors", family, 1, texts=TEXTS.get(kind, ()))
    second = write(tmp_path / "second.v2" / "any.safetensors", family, 2)
    assert [lora.name for lora in family.loras()] == ["first", "second.v2"]
    plain = by_engine(family, asked(recipe, family), job, finish)[0]
    for name, path in (("a", first), ("b", second)):
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    for weights in ((0.7, -0.4), (1.0,)):
        loras = tuple(Lora(name, weight) for name, weight in zip(("first", "second.v2"), weights, strict=False))
        pipeline.set_adapters(["a", "b"][: len(weights)], list(weights))
        (ours,) = by_engine(family, asked(recipe, family, loras=loras), job, finish)
        assert error(ours, by_pipeline(pipeline, family, asked(recipe, family))[0]) <= 1e-5
        assert error(ours, plain) > 1e-3


def test_what_darkroom_trains_counts_as_much_as_it_was_trained_to(
    opened: Make, folders: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make
) -> None:
    """Its alpha is in the file's header."""
    family, pipeline = opened("sd"), pipeline_of(folders("sd"))
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v"], init_lora_weights=False))
    write_lora(pipeline.unet, tmp_path / "mine")
    assert [lora.name for lora in family.loras()] == ["mine"]
    (ours,) = by_engine(family, asked(recipe, family, loras=(Lora("mine"),)), job, finish)
    assert error(ours, by_pipeline(pipeline, family, asked(recipe, family))[0]) <= 1e-5


def test_the_embedded_model_takes_them_too(tmp_path: Path, recipe: Make, job: Make, finish: Make) -> None:
    family, pipeline = load_embedded(), assemble()
    family.lora_folder = tmp_path
    write(tmp_path / "one.safetensors", family, 1)
    assert [lora.name for lora in family.loras()] == ["one"]
    pipeline.load_lora_weights(str(tmp_path), weight_name="one.safetensors", adapter_name="a")
    pipeline.set_adapters(["a"], [0.1])
    (ours,) = by_engine(family, asked(recipe, family, sampler="ddim", loras=(Lora("one", 0.1),)), job, finish)
    theirs = by_pipeline(pipeline, family, asked(recipe, family, sampler="ddim"))[0]
    assert error(ours, theirs) <= 1e-4


def test_the_format_of_kohyas_trainer_is_read(
    opened: Make, folders: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make
) -> None:
    family, pipeline = opened("sd"), pipeline_of(folders("sd"))
    tensors: dict[str, torch.Tensor] = {}
    for key, value in drawn(family.net("float32"), ATTENTION, 3).items():
        name = "lora_unet_" + key.split(".lora_")[0].replace(".", "_")
        tensors |= {
            f"{name}.lora_{'down' if 'lora_A' in key else 'up'}.weight": value,
            f"{name}.alpha": torch.tensor(1.0),
        }
    save_file(tensors, tmp_path / "kohya.safetensors")
    pipeline.load_lora_weights(str(tmp_path), weight_name="kohya.safetensors")
    assert [lora.name for lora in family.loras()] == ["kohya"]
    (ours,) = by_engine(family, asked(recipe, family, loras=(Lora("kohya"),)), job, finish)
    assert error(ours, by_pipeline(pipeline, family, asked(recipe, family))[0]) <= 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_loras_no_bit_changes(
    opened: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make, dtype: str
) -> None:
    family = opened("sd")
    write(tmp_path / "one.safetensors", family, 1, texts=TEXTS["sd"])
    plain, with_one = (asked(recipe, family, dtype=dtype, loras=loras) for loras in ((), (Lora("one"),)))
    before = by_engine(family, plain, job, finish)[0]
    told = family.condition("a cat", plain)[0]
    between = by_engine(family, with_one, job, finish)[0]
    family._texts.clear()
    assert torch.equal(by_engine(family, plain, job, finish)[0], before)
    assert torch.equal(family.condition("a cat", plain)[0], told)
    assert not torch.equal(between, before)
    assert torch.equal(by_engine(family, with_one, job, finish)[0], between)
    changed = [type(layer).__name__ for layer in family.net(dtype).modules() if hasattr(layer, "lora_A")]
    assert changed == []


def test_jobs_with_different_loras_are_each_as_if_alone(
    opened: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make
) -> None:
    family = opened("sd")
    for seed, name in enumerate(("one", "two")):
        write(tmp_path / f"{name}.safetensors", family, seed, texts=TEXTS["sd"])
    wanted = [(), (Lora("one"),), (Lora("two"),), (Lora("one", 0.5),), (Lora("one"), Lora("two", 2.0))]
    jobs = [job(asked(recipe, family, loras=loras), user=f"u{number}") for number, loras in enumerate(wanted)]
    alone = [by_engine(opened("sd"), each.task, job, finish)[0] for each in jobs]
    engine = Engine({"sd": family})
    for each in jobs:
        engine.add(each)
    together = finish(engine)
    for each, expected in zip(jobs, alone, strict=True):
        assert torch.equal(together[each.id, 0], expected)
    assert len({each.numpy().tobytes() for each in alone}) == len(wanted)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_pictures_that_go_whole_through_the_pipeline_have_theirs_too(
    opened: Make, folders: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make, kind: str
) -> None:
    """Side by side, each in its strand, while a third is switched over and over."""
    family, pipeline = opened(kind), pipeline_of(folders(kind))
    for seed, name in enumerate(("one", "two")):
        write(tmp_path / f"{name}.safetensors", family, seed, texts=TEXTS[kind])
        pipeline.load_lora_weights(str(tmp_path), weight_name=f"{name}.safetensors", adapter_name=name)
    heun = {"sampler": "heun", "negative": "a dog", "steps": 6}
    jobs = [job(asked(recipe, family, loras=(Lora(name),), **heun), user=name) for name in ("one", "two")]
    other = job(asked(recipe, family, steps=6, loras=(Lora("two", -1.0), Lora("one", 2.0))))
    engine = Engine({kind: family})
    for each in (*jobs, other):
        engine.add(each)
    latents = finish(engine)
    for each, name in zip(jobs, ("one", "two"), strict=True):
        pipeline.set_adapters([name])
        assert error(latents[each.id, 0], by_pipeline(pipeline, family, asked(recipe, family, **heun))[0]) <= 1e-4


def test_a_network_is_switched_only_where_the_loras_are_others(
    opened: Make, tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = opened("sd")
    for seed, name in enumerate(("one", "two")):
        write(tmp_path / f"{name}.safetensors", family, seed)
    one, two = (family.with_loras(asked(recipe, family, loras=(Lora(name),))).loras for name in ("one", "two"))
    family.net("float32", one)
    switches: list[Any] = []
    kind = type(family.told_by(one))
    real = kind.set_adapters
    monkeypatch.setattr(kind, "set_adapters", lambda *words: (switches.append(words), real(*words)))
    nets = [family.net("float32", loras) for loras in (one, one, two, two, one)]
    assert len(switches) == 2
    assert all(net is nets[0] for net in nets)


def test_a_text_encoders_part_is_in_its_texts_alone(opened: Make, tmp_path: Path, recipe: Make) -> None:
    family = opened("sdxl")
    write(tmp_path / "words.safetensors", family, 1, network=False, texts=("text_encoder_2",))
    plain = asked(recipe, family)
    told = family.condition("a cat", family.with_loras(asked(recipe, family, loras=(Lora("words"),))))
    states, others = told[0], family.condition("a cat", plain)[0]
    assert torch.equal(states[:, :32], others[:, :32])
    assert not torch.equal(states[:, 32:], others[:, 32:])


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_half_precision_has_the_lora_too(opened: Make, tmp_path: Path, recipe: Make, kind: str) -> None:
    family = opened(kind)
    write(tmp_path / "one.safetensors", family, 1)
    one = family.with_loras(asked(recipe, family, loras=(Lora("one", 2.0),), dtype="bfloat16"))
    texts = tuple(part[None] for part in family.condition("a cat", one))
    x, t = torch.randn(1, *family.latent_shape(64, 64), generator=torch.manual_seed(0)), torch.tensor([500.0])
    exact, near = (family.denoise(x, t, texts, dtype, one.loras) for dtype in ("float32", "bfloat16"))
    plain = family.denoise(x, t, texts, "float32")
    assert float((near - exact).std()) < 0.2 * float((exact - plain).std())
    kinds = {each.dtype for each in family.net("bfloat16", one.loras).parameters()}
    assert kinds == {torch.bfloat16}


def test_more_loras_than_a_copy_keeps(
    opened: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapted, "KEPT", 2)
    family = opened("sd")
    names = ("one", "two", "three")
    for seed, name in enumerate(names):
        write(tmp_path / f"{name}.safetensors", family, seed)
    wanted = [asked(recipe, family, loras=(Lora(name),)) for name in names]
    first = [by_engine(family, each, job, finish)[0] for each in wanted]
    again = [by_engine(family, each, job, finish)[0] for each in wanted]
    for before, after in zip(first, again, strict=True):
        assert torch.equal(before, after)


def test_those_that_fit_are_announced_and_the_others_refused(
    opened: Make, tmp_path: Path, recipe: Make, job: Make, caplog: pytest.LogCaptureFixture
) -> None:
    family, other = opened("sd"), opened("sdxl")
    write(tmp_path / "fits.safetensors", family, 1, texts=TEXTS["sd"])
    write(tmp_path / "large" / "pytorch_lora_weights.safetensors", other, 1, texts=TEXTS["sdxl"])
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "none.safetensors")
    (tmp_path / "spoilt.safetensors").write_bytes(b"rubbish")
    torch.save({}, tmp_path / "old.pt")
    (fits,) = MEASURED.warm(family).loras
    assert (fits.name, fits.weight, len(fits.revision)) == ("fits", 1.0, 12)
    assert [lora.name for lora in MEASURED.warm(other).loras] == ["large"]
    assert {"large", "none", "spoilt", "old"} <= {word for line in caplog.messages for word in line.split()}
    for name, sentence in {
        "large": "The LoRA large does not fit this model.",
        "none": "The LoRA none does not fit this model.",
        "spoilt": "The LoRA spoilt cannot be read as safetensors.",
        "old": "The LoRA old exists only as a pickle, which can run code when it is opened: convert it to safetensors.",
        "absent": "This worker has no LoRA called absent.",
    }.items():
        with pytest.raises(Unfit) as refused:
            Engine({"sd": family}).add(job(asked(recipe, family, loras=(Lora(name),))))
        assert refused.value.sentence == sentence
    assert torch.isfinite(by_engine_of(family, recipe, job, fits)).all()


def by_engine_of(family: Any, recipe: Make, job: Make, lora: Lora) -> torch.Tensor:
    """One step with it, after others were refused."""
    engine = Engine({family.name: family})
    engine.add(job(asked(recipe, family, steps=1, loras=(lora,))))
    return next(event.latents for event in engine.step() if isinstance(event, Developed))


def test_another_version_is_refused_and_a_new_file_is_another_version(
    opened: Make, tmp_path: Path, recipe: Make
) -> None:
    family = opened("sd")
    path = write(tmp_path / "one.safetensors", family, 1)
    (first,) = family.loras()
    write(path, family, 2)
    (second,) = family.loras()
    assert first.revision != second.revision
    with pytest.raises(Unfit, match="another version of the LoRA one") as refused:
        family.with_loras(asked(recipe, family, loras=(first,)))
    assert refused.value.blame == "worker"
    assert family.with_loras(asked(recipe, family, loras=(Lora("one", 0.5),))).loras[0].revision == second.revision


def test_the_same_lora_twice_adds_up(opened: Make, tmp_path: Path, recipe: Make) -> None:
    family = opened("sd")
    write(tmp_path / "one.safetensors", family, 1)
    (lora,) = family.with_loras(asked(recipe, family, loras=(Lora("one", 0.5), Lora("one", 0.25)))).loras
    assert lora.weight == 0.75


def test_a_family_that_takes_none_says_so(affine: Any, recipe: Make, job: Make) -> None:
    with pytest.raises(Unfit, match="LoRAs cannot be added to affine"):
        Engine({"affine": affine}).add(job(recipe(loras=(Lora("one"),))))
    assert MEASURED.warm(affine).loras == ()


def test_without_peft_there_are_none(
    opened: Make, tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = opened("sd")
    write(tmp_path / "one.safetensors", family, 1)
    monkeypatch.setattr(adapted, "find_spec", lambda name: None)
    assert family.loras() == ()
    with pytest.raises(Unfit, match="LoRAs need the package peft"):
        family.with_loras(asked(recipe, family, loras=(Lora("one"),)))


def test_no_name_and_no_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "loras", tmp_path / "secret.safetensors"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, outside)
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "within.safetensors").write_bytes(outside.read_bytes())
    (folder / "alias.safetensors").symlink_to(folder / "within.safetensors")
    (folder / ".hidden.safetensors").write_bytes(b"")
    assert [one.name for one in additions(folder)] == ["alias", "within"]
    for name in ("../secret", "..", "/etc/passwd", "a/b", "", "secret\n", ".hidden"):
        with pytest.raises(Unfit, match="has no LoRA"):
            addition(folder, name)
    with pytest.raises(Unfit, match="leads out of the folder"):
        addition(folder, "link")


def test_one_that_cannot_be_read_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("good", "locked"):
        save_file({"a": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    usual, listed = Path.open, Path.iterdir

    def locked(path: Path, *given: Any, **named: Any) -> Any:
        if path.stem == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path, *given, **named)

    monkeypatch.setattr(Path, "open", locked)
    assert [one.name for one in additions(tmp_path)] == ["good"]
    assert "The LoRA locked cannot be read" in caplog.text
    with pytest.raises(Unfit, match="The LoRA locked cannot be read"):
        addition(tmp_path, "locked")

    def barred(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path)) if path == tmp_path else AssertionError(listed)

    monkeypatch.setattr(Path, "iterdir", barred)
    assert additions(tmp_path) == []
    assert "the folder of LoRAs is left out" in caplog.text


def test_a_folder_of_several_weights_says_which(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "many").mkdir(exist_ok=True)
        save_file({"a": torch.zeros(1)}, tmp_path / "many" / f"{name}.safetensors")
    with pytest.raises(Unfit, match="several files of weights"):
        addition(tmp_path, "many")
    save_file({"a": torch.zeros(1)}, tmp_path / "many" / "pytorch_lora_weights.safetensors")
    assert addition(tmp_path, "many").path.name == "pytorch_lora_weights.safetensors"
    (tmp_path / "empty").mkdir()
    assert [one.name for one in additions(tmp_path)] == ["many"]
    assert additions(None) == additions(tmp_path / "missing") == []


def test_a_models_loras_are_in_the_data_folder(
    folders: Make, opened: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make
) -> None:
    write(tmp_path / "data" / "loras" / "one.safetensors", opened("sd"), 1)
    family: Any = load(str(folders("sd")), tmp_path / "data")
    assert [lora.name for lora in family.loras()] == ["one"]
    assert family.lora_folder == tmp_path / "data" / "loras"
    assert by_engine(family, asked(recipe, opened("sd"), model=family.name, loras=family.loras()), job, finish)
