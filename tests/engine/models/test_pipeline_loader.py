"""`--model` takes folders and single files. A faulty model gives a one-sentence error and runs no code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.report.measures import psnr
from engine.calibration.measurement import probe_recipe
from engine.contract import Dtype, JobRejected
from engine.models import load_model
from engine.models.autoencoder.large_decoder import LargeDecoder
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.family import TORCH_DTYPES
from engine.models.files import tensor_reader
from engine.models.files.model_source import ModelSource, find_model
from engine.models.files.pipeline_parts import Part
from engine.models.loading import pipeline_loader
from engine.models.loading.memory_estimate import InspectedModel, estimate_bytes, estimate_embedded_bytes
from engine.models.loading.pipeline_loader import FormatChooser, choose_single_format, load_folder_pipeline
from engine.process.model_settings import WEIGHTS_FOLDER
from shared.ldm_checkpoint import write_ldm_checkpoint

SMALL = FormatChooser(torch.device("cpu"))
WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_family(path: Path | str, data: Path, large: int | None = None) -> StableDiffusion:
    family = load_model(str(path), data, large_threshold=large)
    assert isinstance(family, StableDiffusion)
    return family


def predict(family: StableDiffusion, dtype: Dtype = "float32") -> torch.Tensor:
    x = torch.linspace(-1, 1, 4 * 16 * 16).view(1, 4, 16, 16)
    return family.denoise(x, torch.tensor([500.0]), (family.encode_text("a cat")[None],), dtype)


@pytest.fixture
def model_copy(small_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_folder, tmp_path / "model")


def update_index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def split_into_shards(folder: Path) -> None:
    """Splits the network's weights into two files named by an index."""
    weights = load_file(folder / "unet" / WEIGHTS)
    (folder / "unet" / WEIGHTS).unlink()
    names = sorted(weights)
    files = {
        f"diffusion_pytorch_model-0000{shard_index + 1}-of-00002.safetensors": names[shard_index::2]
        for shard_index in (0, 1)
    }
    for file, keys in files.items():
        save_file({key: weights[key] for key in keys}, folder / "unet" / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {key: file for file, keys in files.items() for key in keys}}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


# One file


def test_a_single_file_predicts_the_same_as_its_folder(small_folder: Path, tmp_path: Path) -> None:
    write_ldm_checkpoint(small_folder, tmp_path / "old school.safetensors")
    one = load_family(tmp_path / "old school.safetensors", tmp_path)
    other = load_family(small_folder, tmp_path)
    assert one.name == "old-school"
    assert torch.equal(one.encode_text("a cat"), other.encode_text("a cat"))
    for part in ("unet", "vae", "text_encoder"):
        actual, expected = (getattr(each.pipeline, part).state_dict() for each in (one, other))
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in actual)
    torch.testing.assert_close(predict(one), predict(other))  # memory layout may change the last bits


def test_a_single_file_is_found_by_name_and_new_content_changes_its_fingerprint(
    small_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "old.safetensors"
    write_ldm_checkpoint(small_folder, path)
    source = find_model("old", tmp_path)
    assert (source.path, source.name) == (path, "old")
    before = source.compute_fingerprint()
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert source.compute_fingerprint() != before
    assert estimate_bytes(source, SMALL) == estimate_bytes(ModelSource("folder", small_folder), SMALL)


def test_a_single_file_without_configurations_asks_the_hub_for_them(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ldm_checkpoint(small_folder, tmp_path / "old.safetensors", configs=False)
    requests: list[str] = []

    def fail_download(repository: str, **_: Any) -> str:
        requests.append(repository)
        raise OSError("the hub is away")

    monkeypatch.setattr("engine.models.loading.single_file.snapshot_download", fail_download)
    with pytest.raises(JobRejected, match="needs its configurations, in a folder old beside the file"):
        load_model(str(tmp_path / "old.safetensors"), tmp_path)
    assert requests == ["stable-diffusion-v1-5/stable-diffusion-v1-5"]


def test_a_single_file_that_is_no_model_is_refused(small_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    shutil.copytree(small_folder, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(JobRejected, match="The file of the model other lacks a part"):
        load_model(str(path), tmp_path)
    path.write_bytes(b"rubbish")
    with pytest.raises(JobRejected, match="cannot be read: its file is no safetensors"):
        load_model(str(path), tmp_path)


# Names


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".pth", ".bin", ".CKPT"])
def test_a_pickle_is_refused_without_opening_it(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(JobRejected, match="is a pickle, which can run code when it is opened"):
        load_model(str(path), tmp_path)


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
def test_names_without_a_model_are_refused(
    tmp_path: Path, name: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.models.files.model_source._download", _fail_download)
    with pytest.raises(JobRejected, match=sentence) as error:
        find_model(name, tmp_path / "data")
    assert len(str(error.value)) < 500


def _fail_download(source: str) -> Path:
    raise JobRejected(f"There is no model {source[:20]}.", "model")


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a model")
    with pytest.raises(JobRejected, match=r"notes\.txt is neither a folder nor a file of safetensors"):
        find_model(str(tmp_path / "notes.txt"), tmp_path)


# Folders


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"_class_name": "MyPipeline"}, "is of a kind that diffusers does not know"),
        ({"_class_name": "os"}, "is of a kind that diffusers does not know"),
        ({"_class_name": ["pipeline", "Mine"]}, "brings its own code, which is not run"),
        ({"_class_name": 7}, "does not say which pipeline it is"),
        ({"unet": ["my_unet", "MyUNet"]}, "The unet of the model model is my_unet.MyUNet, which is not"),
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
def test_an_index_that_names_custom_code_is_refused_before_anything_runs(
    model_copy: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    update_index(model_copy, **changes)
    for module in ("my_unet.py", "pipeline.py", "unet/my_unet.py"):
        (model_copy / module).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(JobRejected, match=sentence):
        load_model(str(model_copy), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_configuration_with_custom_code_runs_no_code(model_copy: Path, tmp_path: Path) -> None:
    config = model_copy / "text_encoder" / "config.json"
    actual = {"AutoModel": "mine.Mine", "AutoConfig": "mine.Config"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": actual}))
    (model_copy / "text_encoder" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    assert load_family(model_copy, tmp_path).encode_text("a cat").shape == (16, 32)
    assert not (tmp_path / "ran").exists()


def test_weights_in_several_files_load_as_one(model_copy: Path, small_folder: Path, tmp_path: Path) -> None:
    split_into_shards(model_copy)
    assert torch.equal(predict(load_family(model_copy, tmp_path)), predict(load_family(small_folder, tmp_path)))
    assert estimate_bytes(ModelSource("m", model_copy), SMALL) == estimate_bytes(ModelSource("m", small_folder), SMALL)


def test_a_missing_shard_is_named(model_copy: Path, tmp_path: Path) -> None:
    split_into_shards(model_copy)
    (model_copy / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(JobRejected, match=r"lacks diffusion_pytorch_model-00002-of-00002\.safetensors, a file of"):
        load_model(str(model_copy), tmp_path)


@pytest.mark.parametrize(
    "content", ['{"weight_map": {"a": "../../vae/x.safetensors"}}', "{}", "[", '{"weight_map": 3}']
)
def test_a_damaged_shard_index_or_one_with_outside_paths_is_refused(
    model_copy: Path, tmp_path: Path, content: str
) -> None:
    (model_copy / "unet" / f"{WEIGHTS}.index.json").write_text(content)
    with pytest.raises(JobRejected, match=r"The model lacks \.\./|The list of the weights of the model's unet"):
        load_model(str(model_copy), tmp_path)


@pytest.mark.parametrize("files", [{"a": "x.bin"}, {}])
def test_every_shard_index_is_checked(model_copy: Path, tmp_path: Path, files: dict[str, str]) -> None:
    (model_copy / "unet" / "a.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": WEIGHTS}}))
    (model_copy / "unet" / "x.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (model_copy / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(JobRejected, match=r"The model lacks x\.bin, a file of|of the model's unet names no file"):
        load_model(str(model_copy), tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '"text"', "\xff"])
def test_an_invalid_index_is_one_sentence_for_loading_and_fingerprint(
    model_copy: Path, tmp_path: Path, content: str
) -> None:
    (model_copy / "model_index.json").write_text(content, encoding="latin-1")
    for look in (
        lambda: ModelSource("m", model_copy).compute_fingerprint(),
        lambda: load_model(str(model_copy), tmp_path),
    ):
        with pytest.raises(JobRejected, match=r"no model_index\.json that can be read|does not say which pipeline"):
            look()


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("text_encoder", {"num_attention_heads": 0}),
        ("text_encoder", {"hidden_size": "wide"}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"block_out_channels": []}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_configuration_that_builds_no_network_is_one_sentence(
    model_copy: Path, tmp_path: Path, part: str, changes: dict[str, Any]
) -> None:
    config = model_copy / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(JobRejected, match=f"that can be loaded: its {part} is damaged"):
        load_model(str(model_copy), tmp_path)


@pytest.mark.parametrize("location", ["adapter", "config"])
def test_a_part_that_names_foreign_weights_is_refused(model_copy: Path, tmp_path: Path, location: str) -> None:
    folder = model_copy / "text_encoder"
    if location == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter_model.bin"}))
    with pytest.raises(JobRejected, match="The text_encoder of the model names weights besides its own"):
        load_model(str(model_copy), tmp_path)


def test_a_pickle_among_the_configurations_beside_a_file_is_refused(small_folder: Path, tmp_path: Path) -> None:
    write_ldm_checkpoint(small_folder, tmp_path / "old.safetensors")
    (tmp_path / "old" / "text_encoder" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(JobRejected, match="The folder text_encoder of the model's configurations holds a pickle"):
        load_model(str(tmp_path / "old.safetensors"), tmp_path)


def test_weights_that_exist_only_as_a_variant_are_loaded(model_copy: Path, small_folder: Path, tmp_path: Path) -> None:
    (model_copy / "unet" / WEIGHTS).rename(model_copy / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(predict(load_family(model_copy, tmp_path)), predict(load_family(small_folder, tmp_path)))


def test_a_part_with_weights_of_another_shape_is_named(model_copy: Path, tmp_path: Path) -> None:
    weights = load_file(model_copy / "vae" / WEIGHTS)
    save_file({key: torch.zeros(1) for key in weights}, model_copy / "vae" / WEIGHTS)
    with pytest.raises(JobRejected, match="that can be loaded: its vae is damaged"):
        load_model(str(model_copy), tmp_path)


def test_loading_progress_grows_by_part_and_its_callback_can_stop_it(small_folder: Path) -> None:
    progress: list[float] = []
    load_folder_pipeline(small_folder, "small", SMALL, progress.append)
    assert progress[0] == 0.0
    assert progress[-1] == 1.0
    assert len(progress) == 4
    assert progress == sorted(set(progress))

    def stop_loading(fraction: float) -> None:
        if fraction > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_folder_pipeline(small_folder, "small", SMALL, stop_loading)


def test_the_memory_estimate_of_the_embedded_model_is_right(embedded: StableDiffusion) -> None:
    modules = [each for each in embedded.pipeline.components.values() if isinstance(each, torch.nn.Module)]
    large_decoder = LargeDecoder.load(WEIGHTS_FOLDER, embedded.pipeline.vae)
    assert isinstance(large_decoder, torch.nn.Module)
    modules.append(large_decoder)
    byte_count = sum(each.numel() * 4 for module in modules for each in module.parameters())
    network = 2 * sum(each.numel() for each in embedded.pipeline.unet.parameters())
    assert estimate_embedded_bytes() == pytest.approx(byte_count + network, rel=0.02)


# Large models


LARGE = 1000  # a part with more parameters makes a model large in these tests


@pytest.fixture
def convert_weights(model_copy: Path) -> Callable[[str], Path]:
    """Converts all weights of the folder to a number format."""

    def make(dtype: str) -> Path:
        for path in model_copy.glob("*/*.safetensors"):
            weights = {key: value.to(getattr(torch, dtype)) for key, value in load_file(path).items()}
            save_file(weights, path, {"format": "pt"})
        return model_copy

    return make


def number_formats(family: StableDiffusion) -> set[torch.dtype]:
    parts = (family.pipeline.unet, family.pipeline.vae, family.pipeline.text_encoder)
    return {each.dtype for part in parts for each in part.parameters()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_large_model_is_held_once_in_one_number_format(
    convert_weights: Callable[[str], Path], tmp_path: Path, dtype: str
) -> None:
    family = load_family(convert_weights(dtype), tmp_path, LARGE)
    chosen_format = choose_single_format(torch.device("cpu"), "float32")
    assert family.dtypes == (chosen_format,)
    assert number_formats(family) == {TORCH_DTYPES[chosen_format]}
    assert family.get_network(chosen_format) is family.pipeline.unet
    assert type(family.pipeline.unet) is import_module("diffusers").UNet2DConditionModel
    assert torch.get_default_dtype() == torch.float32
    assert family.encode_text("a cat").dtype == torch.float32
    assert predict(family, chosen_format).isfinite().all()


def test_a_small_model_is_float32_with_a_bfloat16_copy_of_its_network(small_folder: Path, tmp_path: Path) -> None:
    family = load_family(small_folder, tmp_path)
    assert family.dtypes == ("float32", "bfloat16")
    assert number_formats(family) == {torch.float32}
    assert not family.is_single_format


@pytest.mark.parametrize("single", [False, True])
def test_a_large_model_is_reloaded_for_another_number_format(small_folder: Path, tmp_path: Path, single: bool) -> None:
    path = small_folder
    if single:
        write_ldm_checkpoint(small_folder, path := tmp_path / "old.safetensors")
    family = load_family(path, tmp_path, LARGE)
    plain_family = load_family(small_folder, tmp_path)
    recipe = probe_recipe(plain_family)
    assert recipe.dtype == "float32"
    first = family.get_network("bfloat16")
    picture = Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 20).convert("RGB")
    assert family.has_format("bfloat16")
    assert number_formats(family) == {torch.bfloat16}
    half = family.encode_text("a cat")
    [states] = family.encode_conditioning("a cat", recipe)
    assert family.has_format("float32")
    assert not family.has_format("bfloat16")
    assert number_formats(family) == {torch.float32}
    assert family.get_network("float32") is family.pipeline.unet is not first
    torch.testing.assert_close(states, plain_family.encode_conditioning("a cat", recipe)[0])
    torch.testing.assert_close(family.encode_text("a cat"), plain_family.encode_text("a cat"))
    assert not torch.equal(family.encode_text("a cat"), half)
    torch.testing.assert_close(predict(family), predict(plain_family))
    latents = family.encode_image(picture)
    torch.testing.assert_close(latents, plain_family.encode_image(picture))
    assert psnr(family.decode(latents), plain_family.decode(latents)) > 60


def test_a_large_model_is_identical_when_its_number_format_comes_back(small_folder: Path, tmp_path: Path) -> None:
    family = load_family(small_folder, tmp_path, LARGE)
    before = predict(family, "bfloat16"), family.decode(torch.ones(4, 16, 16)).tobytes()
    family.get_network("float32")
    family.get_network("bfloat16")
    assert torch.equal(predict(family, "bfloat16"), before[0])
    assert family.decode(torch.ones(4, 16, 16)).tobytes() == before[1]


def test_a_large_model_in_bfloat16_decodes_nearly_the_same_picture(small_folder: Path, tmp_path: Path) -> None:
    half = load_family(small_folder, tmp_path, LARGE)
    plain_family = load_family(small_folder, tmp_path)
    half.get_network("bfloat16")
    picture = Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 20).convert("RGB")
    latents = plain_family.encode_image(picture)
    assert half.encode_image(picture).dtype == torch.float32
    torch.testing.assert_close(half.encode_image(picture), latents, rtol=0.05, atol=0.05)
    assert psnr(half.decode(latents), plain_family.decode(latents)) > 35


def test_a_float16_decoder_that_would_overflow_decodes_in_float32(small_folder: Path, tmp_path: Path) -> None:
    family = load_family(small_folder, tmp_path, LARGE)
    plain_family = load_family(small_folder, tmp_path)
    family.get_network("float16")
    vae = family.pipeline.vae
    assert vae.config.force_upcast
    with torch.no_grad():
        for each in (family.pipeline.vae, plain_family.pipeline.vae):  # later layers overflow float16
            each.decoder.conv_in.weight.mul_(3e4)
            each.decoder.conv_in.bias.mul_(3e4)
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    latents = torch.full((4, 16, 16), 3.0)
    assert psnr(family.decode(latents), plain_family.decode(latents)) > 40
    assert {each.dtype for each in vae.parameters()} == {torch.float16}
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())


def test_loading_never_changes_torchs_default_number_format(
    convert_weights: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convert_weights("bfloat16")
    defaults = list[torch.dtype]()
    set_default = torch.set_default_dtype
    monkeypatch.setattr(torch, "set_default_dtype", lambda dtype: (defaults.append(dtype), set_default(dtype)))
    assert number_formats(load_family(folder, tmp_path, LARGE)) == {
        TORCH_DTYPES[choose_single_format(torch.device("cpu"), "bfloat16")]
    }
    assert set(defaults) <= {torch.float32}


def test_the_memory_estimate_of_a_large_model_is_its_parameters_in_its_format(
    small_folder: Path, tmp_path: Path
) -> None:
    source = find_model(str(small_folder), tmp_path)
    choice = FormatChooser(torch.device("cpu"), LARGE)
    family = load_family(small_folder, tmp_path, LARGE)
    modules = [each for each in family.pipeline.components.values() if isinstance(each, torch.nn.Module)]
    inspected = InspectedModel.from_source(source)
    sizes = inspected.count_bytes_by_format(choice)
    for dtype in ("float32", "bfloat16"):
        family.get_network(dtype)
        modules = [each for each in family.pipeline.components.values() if isinstance(each, torch.nn.Module)]
        size = sum(each.nbytes for module in modules for each in module.parameters())
        assert sizes[dtype] == pytest.approx(size, rel=0.01)
    assert estimate_bytes(source, choice) == sizes[family.dtypes[0]]
    assert inspected.count_bytes_by_format(FormatChooser(torch.device("cpu"))) == {}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", ["folder", "shards", "file"])
def test_files_in_another_number_format_are_cast_by_slices_to_the_same_weights(
    convert_weights: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, shape: str
) -> None:
    path = convert_weights(dtype)
    if shape == "file":
        write_ldm_checkpoint(path, path := tmp_path / "old.safetensors")
    if shape == "shards":
        split_into_shards(path)
    oracle = (
        import_module("diffusers").StableDiffusionPipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
        if shape != "file"
        else None
    )
    monkeypatch.setattr(tensor_reader, "SLICE_BYTES", 5000)
    family = load_family(path, tmp_path, LARGE)
    family.get_network("bfloat16")
    for part in ("unet", "vae", "text_encoder"):
        if oracle is not None:
            actual, expected = (getattr(each, part).state_dict() for each in (family.pipeline, oracle))
            assert actual.keys() == expected.keys()
            assert all(torch.equal(actual[key], expected[key]) for key in actual)
    assert number_formats(family) == {torch.bfloat16}
    assert predict(family, "bfloat16").isfinite().all()


def test_what_a_part_freed_goes_back_before_the_next_one_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(pipeline_loader, "trim_heap", lambda: events.append("trim"))
    parts = [Part(name, None, 1, "float32") for name in ("vae", "unet")]
    pipeline_loader.load_parts(parts, lambda part: events.append(part.name), None)
    assert events == ["vae", "trim", "unet", "trim"]
