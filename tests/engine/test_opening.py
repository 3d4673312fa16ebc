"""What `--model` takes: folders and single files. Whatever is not in order is one sentence, and runs nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.families import casting, load
from engine.families.family import TORCH
from engine.families.formats import Choice, preferred_dtype
from engine.families.opening import open_folder
from engine.families.source import Source, find
from engine.families.stable_diffusion import StableDiffusion
from engine.families.weighing import weigh, weigh_embedded, weigh_in
from engine.job import Dtype
from engine.measurement import probe
from engine.unfit import Unfit
from tests.engine.original_layout import write

SMALL = Choice(torch.device("cpu"))
WEIGHTS = "diffusion_pytorch_model.safetensors"


def opened(path: Path | str, data: Path, large: int | None = None) -> StableDiffusion:
    family = load(str(path), data, large=large)
    assert isinstance(family, StableDiffusion)
    return family


def predicted(family: StableDiffusion, dtype: Dtype = "float32") -> torch.Tensor:
    x = torch.linspace(-1, 1, 4 * 16 * 16).view(1, 4, 16, 16)
    return family.denoise(x, torch.tensor([500.0]), (family.encode("a cat")[None],), dtype)


def psnr(one: Image.Image, other: Image.Image) -> float:
    a, b = (np.asarray(each, dtype=np.float64) for each in (one, other))
    return float("inf") if (a == b).all() else 20 * np.log10(255) - 10 * np.log10(((a - b) ** 2).mean())


@pytest.fixture
def copied(small_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_folder, tmp_path / "model")


def indexed(folder: Path, **changed: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def sharded(folder: Path) -> None:
    """Cuts the network's weights into two files that an index names."""
    whole = load_file(folder / "unet" / WEIGHTS)
    (folder / "unet" / WEIGHTS).unlink()
    names = sorted(whole)
    files = {f"diffusion_pytorch_model-0000{at + 1}-of-00002.safetensors": names[at::2] for at in (0, 1)}
    for file, keys in files.items():
        save_file({key: whole[key] for key in keys}, folder / "unet" / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {key: file for file, keys in files.items() for key in keys}}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


# One file


def test_a_single_file_draws_what_its_folder_draws(small_folder: Path, tmp_path: Path) -> None:
    write(small_folder, tmp_path / "old school.safetensors")
    one, other = opened(tmp_path / "old school.safetensors", tmp_path), opened(small_folder, tmp_path)
    assert one.name == "old-school"
    assert torch.equal(one.encode("a cat"), other.encode("a cat"))
    for part in ("unet", "vae", "text_encoder"):
        mine, theirs = (getattr(each.pipeline, part).state_dict() for each in (one, other))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    torch.testing.assert_close(predicted(one), predicted(other))  # how weights lie in memory may decide the last bits


def test_a_single_file_is_found_by_its_name_and_changes_its_revision(small_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "old.safetensors"
    write(small_folder, path)
    source = find("old", tmp_path)
    assert (source.path, source.name) == (path, "old")
    before = source.fingerprint()
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert source.fingerprint() != before
    assert weigh(source, SMALL) == weigh(Source("folder", small_folder), SMALL)


def test_without_configurations_beside_it_they_are_asked_of_the_hub(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(small_folder, tmp_path / "old.safetensors", configs=False)
    asked: list[str] = []

    def away(repository: str, **_: Any) -> str:
        asked.append(repository)
        raise OSError("the hub is away")

    monkeypatch.setattr("engine.families.checkpoint.snapshot_download", away)
    with pytest.raises(Unfit, match="needs its configurations, in a folder old beside the file"):
        load(str(tmp_path / "old.safetensors"), tmp_path)
    assert asked == ["stable-diffusion-v1-5/stable-diffusion-v1-5"]


def test_a_file_of_something_else_is_refused(small_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    shutil.copytree(small_folder, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(Unfit, match="The file of the model other lacks a part"):
        load(str(path), tmp_path)
    path.write_bytes(b"rubbish")
    with pytest.raises(Unfit, match="cannot be read: its file is no safetensors"):
        load(str(path), tmp_path)


# Names


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".pth", ".bin", ".CKPT"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(Unfit, match="is a pickle, which can run code when it is opened"):
        load(str(path), tmp_path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("./nowhere", "There is no model at ./nowhere"),
        ("/no/such/folder", "There is no model at /no/such/folder"),
        ("gone.safetensors", "There is no model at gone.safetensors"),
        ("gone.ckpt", "There is no model at gone.ckpt"),
        ("..\\up", "There is no model at"),
        ("a\0b", "is no name of a model"),
        ("what is this?", "is no name of a model"),
        ("-rf", "is no name of a model"),
        ("x" * 5000, "no model|no name"),
        ("", "is no name of a model"),
    ],
)
def test_names_of_nothing(tmp_path: Path, name: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.families.source._downloaded", _no_hub)
    with pytest.raises(Unfit, match=sentence) as refused:
        find(name, tmp_path / "data")
    assert len(str(refused.value)) < 500


def _no_hub(source: str) -> Path:
    raise Unfit(f"There is no model {source[:20]}.", "model")


def test_a_file_that_is_neither_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a model")
    with pytest.raises(Unfit, match=r"notes\.txt is neither a folder nor a file of safetensors"):
        find(str(tmp_path / "notes.txt"), tmp_path)


# Folders


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"_class_name": "MyPipeline"}, "is of a kind that diffusers does not know"),
        ({"_class_name": "os"}, "is of a kind that diffusers does not know"),
        ({"_class_name": ["pipeline", "Mine"]}, "brings its own code, which is not run"),
        ({"_class_name": 7}, "does not say which pipeline it is"),
        ({"unet": ["my_unet", "MyUNet"]}, "The unet of the model model is my_unet.MyUNet, which diffusers"),
        ({"unet": ["os", "system"]}, "is os.system, which is not part of diffusers or transformers"),
        (
            {"unet": ["diffusers", "NoSuchNet"]},
            "is diffusers.NoSuchNet, which is not part of diffusers or transformers",
        ),
        ({"unet": ["diffusers"]}, "which is not part of diffusers or transformers"),
        ({"extra": ["diffusers", "DiffusionPipeline"]}, "The extra of the model model is a DiffusionPipeline, which"),
        ({"extra": ["transformers", "AutoModel"]}, "The extra of the model model is a AutoModel, which"),
        ({"../up": ["diffusers", "AutoencoderKL"]}, "a part called '../up', which is no name of a part"),
        ({"..": ["diffusers", "AutoencoderKL"]}, "a part called '..', which is no name of a part"),
    ],
)
def test_an_index_that_names_foreign_code_is_refused_before_anything_runs(
    copied: Path, tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    indexed(copied, **changed)
    for module in ("my_unet.py", "pipeline.py", "unet/my_unet.py"):
        (copied / module).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(Unfit, match=sentence):
        load(str(copied), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_configuration_with_custom_code_runs_none(copied: Path, tmp_path: Path) -> None:
    config = copied / "text_encoder" / "config.json"
    mine = {"AutoModel": "mine.Mine", "AutoConfig": "mine.Config"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": mine}))
    (copied / "text_encoder" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    assert opened(copied, tmp_path).encode("a cat").shape == (16, 32)
    assert not (tmp_path / "ran").exists()


def test_weights_in_several_files(copied: Path, small_folder: Path, tmp_path: Path) -> None:
    sharded(copied)
    assert torch.equal(predicted(opened(copied, tmp_path)), predicted(opened(small_folder, tmp_path)))
    assert weigh(Source("m", copied), SMALL) == weigh(Source("m", small_folder), SMALL)


def test_a_missing_file_of_several(copied: Path, tmp_path: Path) -> None:
    sharded(copied)
    (copied / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(Unfit, match=r"lacks diffusion_pytorch_model-00002-of-00002\.safetensors, a file of"):
        load(str(copied), tmp_path)


@pytest.mark.parametrize(
    "content", ['{"weight_map": {"a": "../../vae/x.safetensors"}}', "{}", "[", '{"weight_map": 3}']
)
def test_a_list_of_files_that_leads_elsewhere_or_is_spoilt(copied: Path, tmp_path: Path, content: str) -> None:
    (copied / "unet" / f"{WEIGHTS}.index.json").write_text(content)
    with pytest.raises(Unfit, match=r"The model lacks \.\./|The list of the weights of the model's unet"):
        load(str(copied), tmp_path)


@pytest.mark.parametrize("files", [{"a": "x.bin"}, {}])
def test_every_list_of_files_is_looked_at(copied: Path, tmp_path: Path, files: dict[str, str]) -> None:
    (copied / "unet" / "a.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": WEIGHTS}}))
    (copied / "unet" / "x.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (copied / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(Unfit, match=r"The model lacks x\.bin, a file of|of the model's unet names no file"):
        load(str(copied), tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '"text"', "\xff"])
def test_an_index_that_is_none_is_one_sentence_also_for_its_revision(
    copied: Path, tmp_path: Path, content: str
) -> None:
    (copied / "model_index.json").write_text(content, encoding="latin-1")
    for look in (lambda: Source("m", copied).fingerprint(), lambda: load(str(copied), tmp_path)):
        with pytest.raises(Unfit, match=r"no model_index\.json that can be read|does not say which pipeline"):
            look()


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("text_encoder", {"num_attention_heads": 0}),
        ("text_encoder", {"hidden_size": "wide"}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"block_out_channels": []}),
        ("unet", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_configuration_that_makes_no_network_is_one_sentence(
    copied: Path, tmp_path: Path, part: str, changed: dict[str, Any]
) -> None:
    config = copied / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    with pytest.raises(Unfit, match=f"that can be loaded: its {part} is damaged"):
        load(str(copied), tmp_path)


@pytest.mark.parametrize("where", ["adapter", "config"])
def test_a_part_that_names_other_weights_than_its_own_is_refused(copied: Path, tmp_path: Path, where: str) -> None:
    folder = copied / "text_encoder"
    if where == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter_model.bin"}))
    with pytest.raises(Unfit, match="The text_encoder of the model names weights besides its own"):
        load(str(copied), tmp_path)


def test_a_pickle_among_the_configurations_beside_a_file_is_refused(small_folder: Path, tmp_path: Path) -> None:
    write(small_folder, tmp_path / "old.safetensors")
    (tmp_path / "old" / "text_encoder" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(Unfit, match="The folder text_encoder of the model's configurations holds a pickle"):
        load(str(tmp_path / "old.safetensors"), tmp_path)


def test_weights_that_are_only_there_as_a_variant(copied: Path, small_folder: Path, tmp_path: Path) -> None:
    (copied / "unet" / WEIGHTS).rename(copied / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(predicted(opened(copied, tmp_path)), predicted(opened(small_folder, tmp_path)))


def test_a_part_with_weights_of_another_shape_is_named(copied: Path, tmp_path: Path) -> None:
    weights = load_file(copied / "vae" / WEIGHTS)
    save_file({key: torch.zeros(1) for key in weights}, copied / "vae" / WEIGHTS)
    with pytest.raises(Unfit, match="that can be loaded: its vae is damaged"):
        load(str(copied), tmp_path)


def test_how_far_it_is_grows_part_by_part_and_may_end_the_loading(small_folder: Path) -> None:
    said: list[float] = []
    open_folder(small_folder, "small", SMALL, said.append)
    assert said[0] == 0.0
    assert said[-1] == 1.0
    assert len(said) == 4
    assert said == sorted(set(said))

    def enough(done: float) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_folder(small_folder, "small", SMALL, enough)


def test_what_the_embedded_model_takes(embedded: StableDiffusion) -> None:
    modules = [each for each in embedded.pipeline.components.values() if isinstance(each, torch.nn.Module)]
    bytes_ = sum(each.numel() * 4 for module in modules for each in module.parameters())
    network = 2 * sum(each.numel() for each in embedded.pipeline.unet.parameters())
    assert weigh_embedded() == pytest.approx(bytes_ + network, rel=0.02)


# Large models


MOST = 1000  # parameters of a part, above which these tests take a model for a large one


@pytest.fixture
def stored(copied: Path) -> Callable[[str], Path]:
    """The folder with all its weights in this number format."""

    def make(dtype: str) -> Path:
        for path in copied.glob("*/*.safetensors"):
            weights = {key: value.to(getattr(torch, dtype)) for key, value in load_file(path).items()}
            save_file(weights, path, {"format": "pt"})
        return copied

    return make


def formats(family: StableDiffusion) -> set[torch.dtype]:
    parts = (family.pipeline.unet, family.pipeline.vae, family.pipeline.text_encoder)
    return {each.dtype for part in parts for each in part.parameters()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_large_model_is_there_once_whole_in_one_number_format(
    stored: Callable[[str], Path], tmp_path: Path, dtype: str
) -> None:
    family = opened(stored(dtype), tmp_path, MOST)
    held = preferred_dtype(torch.device("cpu"), "float32")
    assert family.dtypes == (held,)
    assert formats(family) == {TORCH[held]}
    assert family.net(held) is family.pipeline.unet
    assert type(family.pipeline.unet) is import_module("diffusers").UNet2DConditionModel
    assert torch.get_default_dtype() == torch.float32
    assert family.encode("a cat").dtype == torch.float32
    assert predicted(family, held).isfinite().all()


def test_a_small_model_is_float32_with_a_copy_of_its_network(small_folder: Path, tmp_path: Path) -> None:
    family = opened(small_folder, tmp_path)
    assert family.dtypes == ("float32", "bfloat16")
    assert formats(family) == {torch.float32}
    assert not family.held_once


@pytest.mark.parametrize("single", [False, True])
def test_a_large_model_is_opened_anew_whole_for_another_number_format(
    small_folder: Path, tmp_path: Path, single: bool
) -> None:
    path = small_folder
    if single:
        write(small_folder, path := tmp_path / "old.safetensors")
    family, plain = opened(path, tmp_path, MOST), opened(small_folder, tmp_path)
    recipe = probe(plain)
    assert recipe.dtype == "float32"
    first, picture = family.net("bfloat16"), Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 20).convert("RGB")
    assert family.holds("bfloat16")
    assert formats(family) == {torch.bfloat16}
    half = family.encode("a cat")
    [states] = family.condition("a cat", recipe)
    assert family.holds("float32")
    assert not family.holds("bfloat16")
    assert formats(family) == {torch.float32}
    assert family.net("float32") is family.pipeline.unet is not first
    torch.testing.assert_close(states, plain.condition("a cat", recipe)[0])
    torch.testing.assert_close(family.encode("a cat"), plain.encode("a cat"))
    assert not torch.equal(family.encode("a cat"), half)
    torch.testing.assert_close(predicted(family), predicted(plain))
    latents = family.encode_image(picture)
    torch.testing.assert_close(latents, plain.encode_image(picture))
    assert psnr(family.decode(latents), plain.decode(latents)) > 60


def test_a_large_model_is_the_same_when_its_number_format_comes_back(small_folder: Path, tmp_path: Path) -> None:
    family = opened(small_folder, tmp_path, MOST)
    before = predicted(family, "bfloat16"), family.decode(torch.ones(4, 16, 16)).tobytes()
    family.net("float32")
    family.net("bfloat16")
    assert torch.equal(predicted(family, "bfloat16"), before[0])
    assert family.decode(torch.ones(4, 16, 16)).tobytes() == before[1]


def test_in_half_the_bits_a_picture_is_nearly_the_same(small_folder: Path, tmp_path: Path) -> None:
    half, plain = opened(small_folder, tmp_path, MOST), opened(small_folder, tmp_path)
    half.net("bfloat16")
    picture = Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 20).convert("RGB")
    latents = plain.encode_image(picture)
    assert half.encode_image(picture).dtype == torch.float32
    torch.testing.assert_close(half.encode_image(picture), latents, rtol=0.05, atol=0.05)
    assert psnr(half.decode(latents), plain.decode(latents)) > 35


def test_float16_that_would_overflow_is_decoded_in_float32_and_keeps_its_weights(
    small_folder: Path, tmp_path: Path
) -> None:
    family, plain = opened(small_folder, tmp_path, MOST), opened(small_folder, tmp_path)
    family.net("float16")
    vae = family.pipeline.vae
    assert vae.config.force_upcast
    with torch.no_grad():
        for each in (family.pipeline.vae, plain.pipeline.vae):  # what follows leaves no room in float16
            each.decoder.conv_in.weight.mul_(3e4)
            each.decoder.conv_in.bias.mul_(3e4)
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    latents = torch.full((4, 16, 16), 3.0)
    assert psnr(family.decode(latents), plain.decode(latents)) > 40
    assert {each.dtype for each in vae.parameters()} == {torch.float16}
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())


def test_torchs_own_number_format_is_left_alone_while_others_draw_by_it(
    stored: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, changed, change = stored("bfloat16"), list[torch.dtype](), torch.set_default_dtype
    monkeypatch.setattr(torch, "set_default_dtype", lambda dtype: (changed.append(dtype), change(dtype)))
    assert formats(opened(folder, tmp_path, MOST)) == {TORCH[preferred_dtype(torch.device("cpu"), "bfloat16")]}
    assert set(changed) <= {torch.float32}


def test_what_a_large_model_takes_is_its_parameters_in_its_number_format(small_folder: Path, tmp_path: Path) -> None:
    source, choice = find(str(small_folder), tmp_path), Choice(torch.device("cpu"), MOST)
    family = opened(small_folder, tmp_path, MOST)
    modules = [each for each in family.pipeline.components.values() if isinstance(each, torch.nn.Module)]
    sizes = weigh_in(source, choice)
    for dtype in ("float32", "bfloat16"):
        family.net(dtype)
        modules = [each for each in family.pipeline.components.values() if isinstance(each, torch.nn.Module)]
        held = sum(each.nbytes for module in modules for each in module.parameters())
        assert sizes[dtype] == pytest.approx(held, rel=0.01)
    assert weigh(source, choice) == sizes[family.dtypes[0]]
    assert weigh_in(source, Choice(torch.device("cpu"))) == {}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", ["folder", "shards", "file"])
def test_files_in_another_number_format_are_read_a_slice_at_a_time_to_the_same_weights(
    stored: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, shape: str
) -> None:
    path = stored(dtype)
    if shape == "file":
        write(path, path := tmp_path / "old.safetensors")
    if shape == "shards":
        sharded(path)
    known = (
        import_module("diffusers").StableDiffusionPipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
        if shape != "file"
        else None
    )
    monkeypatch.setattr(casting, "SLICE", 5000)
    family = opened(path, tmp_path, MOST)
    family.net("bfloat16")
    for part in ("unet", "vae", "text_encoder"):
        if known is not None:
            mine, theirs = (getattr(each, part).state_dict() for each in (family.pipeline, known))
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert formats(family) == {torch.bfloat16}
    assert predicted(family, "bfloat16").isfinite().all()
