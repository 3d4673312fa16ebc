"""Folders whose parts are quantised already: the oracle is the unmodified pipeline, loaded from the same folder."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.fixtures.reference_pipeline import call_pipeline
from benchmarks.fixtures.wide_pipelines import save_pipeline
from benchmarks.models.memory_run import count_stored_bytes
from engine import models
from engine.contract import JobRejected
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.files.model_source import ModelSource
from engine.models.loading.memory_estimate import InspectedModel
from engine.models.loading.pipeline_loader import FormatChooser, load_training_pipeline
from engine.models.quantization import PartQuantization, find_matrix, find_stored_quantization
from engine.process.memory_requests import QuantizationRequests
from shared.small_families import build_recipe, by_engine, error

diffusers: Any = import_module("diffusers")
transformers: Any = import_module("transformers")
torchao: Any = import_module("torchao.quantization")
Make = Callable[..., Any]
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own


def store_quantized(folder: Path, part: str, part_class: str, config: Any) -> None:
    """Replace a part of a folder by what its library saves of it, quantised by torchao."""
    library = diffusers if hasattr(diffusers, part_class) else transformers
    module = getattr(library, part_class).from_pretrained(
        folder / part, dtype=torch.bfloat16, quantization_config=library.TorchAoConfig(config)
    )
    shutil.rmtree(folder / part)
    module.save_pretrained(folder / part)


@pytest.fixture(scope="module")
def int8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flux whose transformer and T5 are stored in int8."""
    folder = tmp_path_factory.mktemp("stored") / "int8"
    save_pipeline("wide_flux", folder)
    config = torchao.Int8WeightOnlyConfig(set_inductor_config=False)
    store_quantized(folder, "transformer", "FluxTransformer2DModel", config)
    store_quantized(folder, "text_encoder_2", "T5EncoderModel", config)
    return folder


def load_family(folder: Path) -> DiffusersFamily:
    family = models.load_model(str(folder), folder.parent)
    assert isinstance(family, DiffusersFamily)
    family.get_network("float32")  # parity needs the same arithmetic
    return family


def test_stored_int8_draws_what_the_pipeline_of_the_folder_draws(
    int8_folder: Path, recipe: Make, job: Make, finish: Make
) -> None:
    family = load_family(int8_folder)
    assert family.quantization == "int8", "a recipe names it"
    one = build_recipe(recipe, family)
    pipeline = diffusers.FluxPipeline.from_pretrained(int8_folder, dtype=torch.float32)
    assert type(family.pipeline.text_encoder_2.encoder.block[0].layer[0].SelfAttention.q.weight) is torchao.Int8Tensor
    assert error(by_engine(family, one, job, finish)[0], call_pipeline(pipeline, family, one)[0]) <= 1e-4


def test_stored_float8_computes_in_another_format_than_it_was_saved_in(
    tmp_path: Path, recipe: Make, job: Make, finish: Make
) -> None:
    save_pipeline("wide_flux", tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "float8")
    config = torchao.Float8WeightOnlyConfig(set_inductor_config=False)
    store_quantized(tmp_path / "float8", "transformer", "FluxTransformer2DModel", config)
    family = load_family(tmp_path / "float8")
    plain = load_family(tmp_path / "plain")
    assert family.quantization == "float8"
    actual = by_engine(family, build_recipe(recipe, family), job, finish)[0]
    expected = by_engine(plain, build_recipe(recipe, plain), job, finish)[0]
    assert 1e-4 < error(actual, expected) < 0.2


def test_the_memory_of_stored_weights_is_predicted_from_headers(int8_folder: Path) -> None:
    inspected = InspectedModel.from_source(ModelSource("int8", int8_folder))
    predicted = inspected.count_bytes(FormatChooser(CPU))
    family = models.load_model(str(int8_folder), int8_folder.parent)
    assert isinstance(family, DiffusersFamily)
    assert 0.95 <= predicted / count_stored_bytes(family.pipeline) <= 1.05
    network = next(part for part in inspected.parts if part.name == "transformer")
    model_class = diffusers.FluxTransformer2DModel
    plain = model_class.from_config(model_class.load_config(int8_folder / "transformer"))
    assert network.parameters == pytest.approx(sum(each.numel() for each in plain.parameters()), rel=0.01)


def test_stored_weights_are_not_trained(int8_folder: Path) -> None:
    with pytest.raises(JobRejected, match="of the model int8 is quantised already, which cannot be trained here"):
        load_training_pipeline(int8_folder, "int8")


def test_another_quantisation_is_ignored_with_a_sentence(int8_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    inspected = InspectedModel.from_source(ModelSource("stored", int8_folder))
    with caplog.at_level(logging.WARNING):
        [only] = inspected.list_quantizations(FormatChooser(CPU), QuantizationRequests("int4", "none"))
    assert only.quantization == PartQuantization("int8", "none")
    assert "the transformer of stored stays in int8, as its files have it: int4 is ignored" in caplog.text
    assert "the text_encoder_2 of stored stays in int8, as its files have it: none is ignored" in caplog.text
    caplog.clear()
    candidates = inspected.list_quantizations(FormatChooser(CPU, 0), QuantizationRequests())
    assert {each.quantization.network for each in candidates} == {"int8"}
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        inspected.list_quantizations(FormatChooser(CPU), QuantizationRequests("int8", "int8"))
    assert not caplog.records


@pytest.mark.parametrize(
    ("quantization", "config"),
    [
        ("nf4", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
        ("llm_int8", {"load_in_8bit": True, "llm_int8_threshold": 6.0}),
    ],
)
def test_weights_of_bitsandbytes_need_the_library_or_a_gpu(
    int8_folder: Path, tmp_path: Path, quantization: str, config: dict[str, object]
) -> None:
    folder = shutil.copytree(int8_folder, tmp_path / "stored")
    path = folder / "transformer" / "config.json"
    stored = {"quant_method": "bitsandbytes"} | config
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": stored}))
    reason = f"transformer of the model is quantised already, as {quantization} by bitsandbytes, and cannot be opened"
    inspected = InspectedModel.from_source(ModelSource("stored", folder))
    with pytest.raises(JobRejected, match=reason):
        inspected.list_quantizations(FormatChooser(CPU), QuantizationRequests())
    with pytest.raises(JobRejected, match=reason):
        models.load_model(str(folder), tmp_path)


def test_the_memory_of_llm_int8_is_that_of_its_bytes_and_scales(tmp_path: Path) -> None:
    """The layout is that of bitsandbytes' `Linear8bitLt.state_dict`: a row's scale, and a format of no use here."""
    save_pipeline("wide_flux", tmp_path)
    part = tmp_path / "transformer"
    (path,) = part.glob("*.safetensors")
    plain = load_file(path)
    matrices = [name for name, tensor in plain.items() if find_matrix(name, tensor.shape) is not None]
    stored = {name: tensor for name, tensor in plain.items() if name not in matrices}
    for name in matrices:
        base = name.removesuffix("weight")
        stored |= {name: plain[name].to(torch.int8), f"{base}SCB": torch.ones(len(plain[name]))}
        stored[f"{base}weight_format"] = torch.tensor(0, dtype=torch.uint8)
    save_file(stored, path)
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (part / "config.json").write_text(
        json.dumps(json.loads((part / "config.json").read_text()) | {"quantization_config": config})
    )
    network = next(
        each for each in InspectedModel.from_source(ModelSource("m", tmp_path)).parts if each.name == part.name
    )
    assert (network.fixed_quantization, network.parameters) == (
        "llm_int8",
        sum(each.numel() for each in plain.values()),
    )
    others = 2 * sum(tensor.numel() for name, tensor in plain.items() if name not in matrices)
    scales = sum(4 * len(plain[name]) + 1 for name in matrices)
    formats = FormatChooser(CPU, quantization=PartQuantization("llm_int8")).make_single_formats(
        "bfloat16", "", [network]
    )
    assert formats.count_bytes([network]) == sum(plain[name].numel() for name in matrices) + scales + others


def torchao_config(kind: object, **fields: object) -> dict[str, object]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_data": {}} | fields}}


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "sdnq"},
        {"quant_method": "bitsandbytes"},
        ["torchao"],
        "int8",
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        {"quant_method": "torchao", "quant_type": "int8_weight_only"},
        torchao_config("Int4WeightOnlyConfig"),
        torchao_config(["Int8WeightOnlyConfig"]),
        torchao_config("quantize_"),
        torchao_config("Int8WeightOnlyConfig", _data={"granularity": {"_type": "quantize_", "_data": {}}}),
    ],
)
def test_other_ways_are_not_opened(config: object) -> None:
    assert find_stored_quantization(config) is None


def test_a_configuration_as_torchao_writes_it_is_known() -> None:
    granularity = {"_type": "PerRow", "_data": {"dim": -1}, "_version": 1}
    found = find_stored_quantization(torchao_config("Int8WeightOnlyConfig", _data={"granularity": granularity}))
    assert found is not None
    assert (found.quantization, found.library) == ("int8", "torchao")
