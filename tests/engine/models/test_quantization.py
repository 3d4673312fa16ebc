"""Quantised models: the oracle is the unmodified pipeline, loaded with the same quantisation of the same weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.fixtures.jobs import make_job
from benchmarks.fixtures.reference_pipeline import call_pipeline, load_quantized_pipeline
from benchmarks.fixtures.wide_pipelines import save_pipeline
from benchmarks.models.memory_run import count_stored_bytes
from engine import models
from engine.batching.engine import Engine
from engine.batching.job_images import reason_to_decline
from engine.calibration.calibration import Calibration, calibration_key
from engine.contract import JobRejected, Quantization
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.files.model_source import ModelSource, find_model, fingerprint_folder
from engine.models.loading.memory_estimate import InspectedModel
from engine.models.loading.pipeline_loader import FormatChooser
from engine.models.quantization import PartQuantization
from engine.process.memory_requests import QuantizationRequests
from engine.process.settings import load_settings
from engine.worker.doctor import Finding, check_model
from engine.worker.main import discover_models, load_all_models
from shared.small_families import build_recipe, by_engine, error, write_family_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
]

Make = Callable[..., Any]
CPU = torch.device("cpu")
ON_PROCESSOR: tuple[Quantization, ...] = ("int8", "float8", "int4")
CALIBRATION = Calibration("float32", 4, 10, "euler", 1.0, 1.0, 1.0, {1: 1.0}, {"float32": 1.0})


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds the model of a kind once and returns its folder."""
    built: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in built:
            built[kind] = tmp_path_factory.mktemp("wide") / kind
            save_pipeline(kind, built[kind])
        return built[kind]

    return folder


def load_family(folder: Path, quantization: PartQuantization, data: Path | None = None) -> DiffusersFamily:
    family = models.load_model(str(folder), data or folder.parent, quantization=quantization)
    assert isinstance(family, DiffusersFamily)
    family.get_network("float32")  # parity needs the same arithmetic, and the pipeline keeps its latents in its format
    return family


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("kind", "network", "text"),
    [
        ("wide_sdxl", "int8", "none"),
        ("wide_sdxl", "int4", "int8"),
        ("wide_flux", "int8", "int4"),
        ("wide_flux", "float8", "float8"),
    ],
)
def test_latents_equal_those_of_the_pipeline_with_the_same_quantisation(
    wide_folder: Make, recipe: Make, job: Make, finish: Make, kind: str, network: Quantization, text: Quantization
) -> None:
    folder = wide_folder(kind)
    quantization = PartQuantization(network, text)
    family = load_family(folder, quantization)
    plain_family = load_family(folder, PartQuantization())
    one = build_recipe(recipe, family, count=2)
    actual = by_engine(family, one, job, finish)
    expected = call_pipeline(load_quantized_pipeline(folder, quantization), family, one)
    for image, other in zip(actual, expected, strict=True):
        assert error(image, other) <= 1e-4
    plain = by_engine(plain_family, build_recipe(recipe, plain_family, count=2), job, finish)
    assert error(actual[0], plain[0]) > 1e-3, "else nothing was quantised"
    assert family.revision == plain_family.revision or text != "none"


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["wide_flux", "wide_sdxl", "sd", "sd3", "zimage", "sana"])
def test_the_predicted_bytes_are_those_of_the_loaded_weights(tmp_path: Path, kind: str) -> None:
    save_pipeline(kind, tmp_path / kind)
    inspected = InspectedModel.from_source(ModelSource(kind, tmp_path / kind))
    for quantization in (PartQuantization(), *(PartQuantization(each, "int8") for each in ON_PROCESSOR)):
        family = models.load_model(str(tmp_path / kind), tmp_path, quantization=quantization, large_threshold=0)
        assert isinstance(family, DiffusersFamily)
        predicted = inspected.count_bytes(FormatChooser(CPU, 0, quantization))
        assert 0.9 <= predicted / count_stored_bytes(family.pipeline) <= 1.1, quantization


@pytest.mark.slow
def test_a_lora_on_a_quantised_network_acts_as_in_the_pipeline(
    wide_folder: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make
) -> None:
    folder = wide_folder("wide_sdxl")
    quantization = PartQuantization("int8", "none")
    family = load_family(folder, quantization, tmp_path)
    path = write_family_lora(tmp_path / "loras" / "style.safetensors", family, 1, texts=("text_encoder",))
    assert [lora.name for lora in family.list_loras()] == ["style"]
    size = count_stored_bytes(family.pipeline)
    one = build_recipe(recipe, family, loras=tuple(family.list_loras()))
    actual = by_engine(family, one, job, finish)[0]
    pipeline = load_quantized_pipeline(folder, quantization)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    assert error(actual, call_pipeline(pipeline, family, one)[0]) <= 1e-4
    assert error(actual, by_engine(family, build_recipe(recipe, family), job, finish)[0]) > 1e-3
    assert count_stored_bytes(family.pipeline) == size, "the quantised weights stay as they are"


def write_gguf(folder: Path, path: Path) -> None:
    """Writes the folder's network as GGUF, with its matrices in Q8_0 where their rows are blocks of 32."""
    gguf = import_module("gguf")
    network = import_module("diffusers").FluxTransformer2DModel.from_pretrained(folder / "transformer")
    writer = gguf.GGUFWriter(path, "flux")
    for name, weight in network.state_dict().items():
        kind = gguf.GGMLQuantizationType.Q8_0 if weight.dim() == 2 and weight.shape[1] % 32 == 0 else None
        values = weight.float().numpy()
        writer.add_tensor(name, values if kind is None else gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def flux_without_network(wide_folder: Make, tmp_path: Path) -> Path:
    """A folder `net` whose network has only a configuration: the weights come from a file beside it."""
    folder = tmp_path / "models" / "net"
    shutil.copytree(wide_folder("wide_flux"), folder)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    return folder


def test_a_gguf_network_draws_what_it_draws_in_the_pipeline(
    wide_folder: Make, flux_without_network: Path, tmp_path: Path, recipe: Make, job: Make, finish: Make
) -> None:
    diffusers = import_module("diffusers")
    folder = wide_folder("wide_flux")
    path = tmp_path / "models" / "net.gguf"
    write_gguf(folder, path)
    source = find_model("net", tmp_path)
    assert source.path == path
    inspected = InspectedModel.from_source(source)
    chosen = inspected.list_quantizations(FormatChooser(CPU, 0), QuantizationRequests())[0]
    assert chosen.quantization == PartQuantization("gguf")
    family = load_family(path, chosen.quantization)
    predicted = inspected.count_bytes(FormatChooser(CPU, 0, chosen.quantization).with_quantization(chosen.quantization))
    transformer = diffusers.FluxTransformer2DModel.from_single_file(
        str(path),
        config=str(folder),
        subfolder="transformer",
        dtype=torch.float32,
        quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
    )
    one = build_recipe(recipe, family)
    expected = call_pipeline(load_quantized_pipeline(folder, PartQuantization(), transformer=transformer), family, one)
    assert error(by_engine(family, one, job, finish)[0], expected[0]) <= 1e-4
    assert family.quantization == "gguf"
    family.get_network(family.dtypes[0])
    assert 0.9 <= predicted / count_stored_bytes(family.pipeline) <= 1.1


def test_a_network_file_in_float8_stays_so_without_a_loss(
    wide_folder: Make, flux_without_network: Path, tmp_path: Path, recipe: Make, job: Make, finish: Make
) -> None:
    diffusers = import_module("diffusers")
    folder = wide_folder("wide_flux")
    path = tmp_path / "models" / "net.safetensors"
    transformer = diffusers.FluxTransformer2DModel.from_pretrained(folder / "transformer")
    save_file({name: weight.to(torch.float8_e4m3fn) for name, weight in transformer.state_dict().items()}, path)
    transformer.load_state_dict(
        {name: weight.to(torch.float8_e4m3fn).float() for name, weight in transformer.state_dict().items()}
    )
    inspected = InspectedModel.from_source(find_model("net", tmp_path))
    latents = dict[str, torch.Tensor]()
    kinds: tuple[Quantization, ...] = ("none", "float8")
    for network in kinds:
        family = load_family(path, PartQuantization(network))
        latents[network] = by_engine(family, one := build_recipe(recipe, family), job, finish)[0]
        expected = call_pipeline(
            load_quantized_pipeline(folder, PartQuantization(), transformer=transformer), family, one
        )
        assert error(latents[network], expected[0]) <= 1e-4
        predicted = inspected.count_bytes_by_format(FormatChooser(CPU, 0, PartQuantization(network)))["float32"]
        assert 0.9 <= predicted / count_stored_bytes(family.pipeline) <= 1.1, network
    assert torch.equal(latents["none"], latents["float8"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"GGUF" + bytes(10), "its file is no GGUF"),
        (b"GGUF" + (3).to_bytes(4, "little") + (2**40).to_bytes(8, "little") * 2, "its file is no GGUF"),
        (b"GGUF" + (3).to_bytes(4, "little") + (9).to_bytes(8, "little") * 2, "its file is no GGUF"),
        (b"not at all a model file", "its file is no GGUF"),
    ],
)
def test_a_damaged_gguf_file_is_refused_in_one_sentence(
    flux_without_network: Path, tmp_path: Path, content: bytes, sentence: str
) -> None:
    (tmp_path / "models" / "net.gguf").write_bytes(content)
    with pytest.raises(JobRejected, match=sentence):
        InspectedModel.from_source(find_model("net", tmp_path))


def test_a_network_file_alone_says_what_is_missing(wide_folder: Make, tmp_path: Path) -> None:
    write_gguf(wide_folder("wide_flux"), tmp_path / "alone.gguf")
    with pytest.raises(JobRejected, match=r"holds only a network: the rest must lie beside it, in a folder alone,"):
        InspectedModel.from_source(find_model(str(tmp_path / "alone.gguf"), tmp_path))


def test_scaled_float8_weights_are_refused(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(2, 2), "a.scale_weight": torch.ones(1)}, tmp_path / "scaled.safetensors")
    with pytest.raises(JobRejected, match="stores fp8 weights with scales of their own"):
        InspectedModel.from_source(find_model(str(tmp_path / "scaled.safetensors"), tmp_path))


def test_a_worker_declines_recipes_of_another_quantisation(wide_folder: Make, recipe: Make) -> None:
    family = load_family(wide_folder("wide_sdxl"), PartQuantization("int8"))
    profile = CALIBRATION.to_model_profile(family)
    assert (profile.quantization, calibration_key(family).rpartition(" ")[2]) == ("int8", "int8")
    assert reason_to_decline(build_recipe(recipe, family), (profile,)) == ""
    for quantization, wanted in (("none", "unquantised"), ("int4", "in int4")):
        reason = reason_to_decline(build_recipe(recipe, family, quantization=quantization), (profile,))
        assert reason == f"This worker has wide_sdxl in int8, and the recipe asks for it {wanted}."
    with pytest.raises(JobRejected, match="and the recipe asks for it unquantised"):
        Engine({family.name: family}).add(make_job(build_recipe(recipe, family, quantization="none")))


def test_what_cannot_be_had_here_is_refused_in_one_sentence(wide_folder: Make, tmp_path: Path) -> None:
    with pytest.raises(JobRejected, match=r"^Weights cannot be stored as nf4 here: .*\.$"):
        models.load_model(str(wide_folder("wide_sdxl")), tmp_path, quantization=PartQuantization("nf4"))


@pytest.mark.slow
def test_a_worker_chooses_a_quantisation_announces_and_remembers_it(
    wide_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FormatChooser, "is_large", lambda *_: True)
    shutil.copytree(wide_folder("wide_sdxl"), tmp_path / "models" / "wide")
    options: dict[str, Any] = {"nats": "nats://127.0.0.1:1", "data": tmp_path, "device": "cpu"}
    full = discover_models(load_settings(**options, models=("wide",)))[1][0]
    settings = load_settings(**options, models=("wide",), memory=str(full.size - 1))
    with caplog.at_level("INFO"):
        profile = load_all_models(settings).build_offer(settings).models[0]
    assert (profile.quantization, profile.revision) == ("int8", fingerprint_folder(tmp_path / "models" / "wide"))
    assert any("wide is loaded with its network in int8: it takes about" in line for line in caplog.messages)
    (again,) = discover_models(settings)[1]
    assert again.catalog_entry is not None
    assert again.size < full.size
    for words in ({"models": ("wide=int4",)}, {"models": ("wide",), "quantize_text": "int8", "quantize": "int8"}):
        (other,) = discover_models(load_settings(**options, **words))[1]
        assert other.catalog_entry is None
        assert other.size < again.size


def test_the_doctor_says_how_weights_can_be_stored(wide_folder: Make, tmp_path: Path) -> None:
    settings = load_settings(data=tmp_path, quantize="int8", quantize_text="int4")
    lines = list_lines(check_model(settings, str(wide_folder("wide_sdxl"))), "memory")
    assert lines["weights"][1:3] == (True, lines["weights"][2])
    assert re.match(r"can be stored as int8, float8, int4, gguf \(not nf4, since .*bitsandbytes", lines["weights"][2])
    assert lines["memory"][2].endswith("network in int8 and text encoders in int4")
    refused = list_lines(check_model(load_settings(data=tmp_path, quantize="nf4")), "weights")["weights"]
    assert refused[1:] == (False, refused[2], "Choose of: int8, float8, int4, gguf.")


def list_lines(findings: Iterator[Finding], last: str) -> dict[str, Finding]:
    """The doctor's lines by name, to the one called `last`: what follows measures."""
    lines = dict[str, Finding]()
    for line in findings:
        lines[line[0]] = line
        if line[0] == last:
            break
    return lines


def test_a_part_that_is_quantised_already_is_refused(wide_folder: Make, tmp_path: Path) -> None:
    folder = shutil.copytree(wide_folder("wide_flux"), tmp_path / "quantised")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "sdnq"}}))
    with pytest.raises(JobRejected, match=r"The transformer of the model is quantised already, in a way that is not"):
        models.load_model(str(folder), tmp_path)
