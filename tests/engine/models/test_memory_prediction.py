"""Memory that files' headers predict, and what the weights of a loaded model take, for every small pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.fixtures.small_pipelines import PIPELINE_BUILDERS, save_small_pipeline
from benchmarks.fixtures.wide_pipelines import build_medium_pipeline
from benchmarks.models.memory_run import sample_weight_bytes
from benchmarks.models.random_weights import ensure_model_folder
from engine import models
from engine.calibration.measurement import probe_recipe
from engine.contract import Dtype, JobRejected
from engine.models.files.model_source import ModelSource
from engine.models.generic_family import GenericFamily
from engine.models.loading.memory_estimate import InspectedModel, estimate_bytes, estimate_weights
from engine.models.loading.pipeline_loader import LARGE_PARAMETERS, FormatChooser, inspect_folder
from engine.models.network.pipeline_offload import is_offloaded
from engine.models.quantization import PartQuantization, SizedQuantization, choose_quantizations
from engine.pipelines.network_call import NETWORK_NAMES
from engine.process.memory_requests import OFFLOADS, QuantizationRequests

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
CPU = torch.device("cpu")


def count_weight_bytes(family: Any) -> int:
    """Count the memory of all that a model's files hold, network copies included, each storage once."""
    parts: list[Any] = [part for part in family.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    if isinstance(family, GenericFamily):
        networks = [part for name, part in family.pipeline.components.items() if name in NETWORK_NAMES]
        parts += [family.make_forward("", net, dtype, ()).net for net in networks for dtype in family.dtypes]
    else:
        parts += [family.get_network(dtype) for dtype in family.dtypes]
    weights = [weight for part in parts for weight in part.state_dict().values()]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in weights}.values())


@pytest.mark.sampled
@pytest.mark.parametrize("kind", PIPELINE_BUILDERS)
@pytest.mark.parametrize("is_large", [True, False], ids=["large", "small"])
def test_the_weights_take_what_their_headers_predict(kind: str, is_large: bool, tmp_path: Path) -> None:
    save_small_pipeline(kind, tmp_path / kind)
    largest = max(part.parameters for part in inspect_folder(tmp_path / kind, kind))
    large_threshold = largest - 1 if is_large else LARGE_PARAMETERS
    predicted = estimate_bytes(ModelSource(kind, tmp_path / kind), FormatChooser(CPU, large_threshold))
    family = models.load_model(str(tmp_path / kind), tmp_path, large_threshold=large_threshold)
    assert 0.9 < predicted / count_weight_bytes(family) < 1.1


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A Flux of 200 MB."""
    folder = tmp_path_factory.mktemp("medium") / "flux"
    return ModelSource("flux", ensure_model_folder(folder, lambda: build_medium_pipeline("flux")))


@torch.inference_mode()
def test_offloaded_layers_take_what_is_predicted(medium: ModelSource, tmp_path: Path) -> None:
    chooser = FormatChooser(CPU, 1_000_000)
    weights = estimate_weights(medium, chooser)
    family: Any = models.load_model(str(medium.path), tmp_path, large_threshold=1_000_000, offload="layers")
    network = family.get_network(family.dtypes[0])
    assert is_offloaded(network)
    x = torch.randn(1, *family.latent_shape(64, 64))
    recipe = probe_recipe(family)
    conditioning = tuple(part[None] for part in family.encode_conditioning("a cat", recipe))
    with sample_weight_bytes([network]) as samples:
        family.denoise(x, torch.tensor([500.0]), conditioning, family.dtypes[0])
    assert 0.9 < weights.network_group / max(samples) < 1.1
    assert max(samples) < weights.network / 2
    assert weights.count_device_bytes("layers") < weights.count_device_bytes("none") / 2


def test_auto_offloads_a_large_model_only_where_it_must(medium: ModelSource, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    inspected = InspectedModel.from_source(medium)
    chooser = FormatChooser(CPU, 1_000_000)
    whole = inspected.count_bytes(chooser)
    full = (SizedQuantization(PartQuantization(), whole),)
    assert inspected.choose_load(chooser, full, "auto", whole).offload == "none"
    choice = inspected.choose_load(chooser, full, "auto", whole - 1)
    assert (choice.offload, choice.size < whole) == ("layers", True)
    assert len(caplog.messages) == 2
    assert "its network and text encoders kept off the device" in caplog.messages[1]
    assert inspected.choose_load(chooser, full, "none", whole - 1).size == whole
    assert inspected.choose_load(FormatChooser(CPU, 10**9), full, "auto", 1).offload == "none", "a small one"


def test_a_named_offload_counts_before_weights_are_stored_in_fewer_bits(
    medium: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor, layers of quantised weights cannot be offloaded."""
    inspected = InspectedModel.from_source(medium)
    chooser = FormatChooser(CPU, 1_000_000)
    auto = QuantizationRequests()
    layers = inspected.list_quantizations(chooser, auto, "layers")
    whole, quantised, *_ = inspected.list_quantizations(chooser, auto)
    budget = max(layers[0].size, quantised.size)
    assert budget < whole.size
    chosen = inspected.choose_load(chooser, choose_quantizations([layers], budget), "layers", budget)
    assert (chosen.offload, chosen.quantization, chosen.size) == ("layers", PartQuantization(), layers[0].size)
    int8 = inspected.list_quantizations(chooser, QuantizationRequests("int8"), "layers")
    with pytest.raises(JobRejected, match="Layers of int8 weights cannot be offloaded"):
        inspected.choose_load(chooser, int8, "layers", whole.size)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    on_gpu = FormatChooser(torch.device("cuda"), 1_000_000)
    full, *_ = inspected.list_quantizations(on_gpu, auto, "text")
    assert full.size == inspected.weigh(on_gpu).count_device_bytes("text") < inspected.count_bytes(on_gpu)


def test_the_sizes_of_other_formats_count_what_is_offloaded(medium: ModelSource) -> None:
    inspected = InspectedModel.from_source(medium)
    chooser = FormatChooser(CPU, 1_000_000)
    whole, layers = (inspected.count_bytes_by_format(chooser, offload) for offload in OFFLOADS[::2])
    formats: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
    assert set(whole) == set(layers) == set(formats)
    assert all(layers[dtype] < whole[dtype] / 2 for dtype in formats)
    assert layers["float32"] == pytest.approx(2 * layers["bfloat16"], rel=0.01)


def test_unreadable_weights_are_refused_in_one_sentence(medium: ModelSource, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    with pytest.raises(JobRejected, match="has no model_index"):
        estimate_weights(ModelSource("broken", tmp_path / "broken"), FormatChooser(CPU))
