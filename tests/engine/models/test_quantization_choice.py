"""Which quantisation `auto` chooses within a budget, what a worker can store, and how an operator asks. No model."""

from __future__ import annotations

import pytest
import torch

from engine.contract import JobRejected, Quantization
from engine.models import quantization
from engine.models.quantization import (
    Matrix,
    PartQuantization,
    SizedQuantization,
    choose_quantizations,
    count_matrix_bytes,
    find_matrix,
    list_candidates,
)
from engine.process.memory_requests import QuantizationRequests, parse_quantization, split_model_request
from engine.process.setting_sources import SettingError
from engine.process.settings import load_settings

CPU = torch.device("cpu")


def sized(*sizes: int) -> list[SizedQuantization]:
    kinds: tuple[Quantization, ...] = ("none", "int8", "int4")
    return [SizedQuantization(PartQuantization(kind), size) for kind, size in zip(kinds, sizes, strict=False)]


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (100, ["none", "none"]),  # both fit in full
        (70, ["int8", "none"]),  # the larger is stored in fewer bits first
        (55, ["int8", "int8"]),
        (40, ["int4", "int8"]),
        (32, ["int4", "int4"]),
        (31, ["int4", "none"]),  # they never fit together: the best with which each fits alone
        (5, ["int4", "int4"]),  # none fits; loading refuses it with a sentence
    ],
)
def test_auto_chooses_the_best_that_fits_beside_the_others(budget: int, chosen: list[str]) -> None:
    models = [sized(60, 35, 20), sized(30, 16, 12)]
    if budget == 31:
        models[1] = sized(30, 16, 13)
    assert [each.quantization.network for each in choose_quantizations(models, budget)] == chosen


def test_candidates_are_best_first_and_follow_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_obstacle", lambda quantization, device: "")
    both = list_candidates(QuantizationRequests(), CPU)
    assert [(each.network, each.text) for each in both] == list(quantization.AUTO_STEPS)
    named = list_candidates(QuantizationRequests("int8"), CPU)
    assert [(each.network, each.text) for each in named] == [("int8", "none"), ("int8", "int8"), ("int8", "int4")]
    assert list_candidates(QuantizationRequests("none"), CPU) == (PartQuantization(),)
    assert list_candidates(QuantizationRequests("int4", "none"), CPU) == (PartQuantization("int4"),)
    assert {each.network for each in list_candidates(QuantizationRequests(), CPU, "gguf")} == {"gguf"}
    assert list_candidates(QuantizationRequests(), CPU, "float8")[1] == PartQuantization("float8")


def test_auto_leaves_out_what_this_worker_lacks_and_a_named_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.models.quantization.find_spec", lambda name: None)
    assert list_candidates(QuantizationRequests(), CPU) == (PartQuantization(),)
    with pytest.raises(JobRejected, match=r"^Weights cannot be stored as int8 here: the package torchao is not instal"):
        list_candidates(QuantizationRequests("int8"), CPU)


@pytest.mark.parametrize(
    ("quantization", "size"),
    [("none", 2 * 32768), ("int8", 32768 + 5 * 256), ("float8", 32768 + 4 * 256), ("int4", 16384 + 4 * 512)],
)
def test_the_bytes_of_a_matrix_count_its_scales(quantization: Quantization, size: int) -> None:
    assert count_matrix_bytes(Matrix("to_q.weight", 256, 128), quantization, CPU, 2) == size


def test_only_matrices_of_linear_layers_are_quantised() -> None:
    assert find_matrix("blocks.0.to_q.weight", (4, 8)) == Matrix("blocks.0.to_q.weight", 4, 8)
    for name, shape in (
        ("text_model.embeddings.token_embedding.weight", (100, 8)),
        ("shared.weight", (100, 8)),
        ("norm.weight", (8,)),
        ("conv_in.weight", (8, 4, 3, 3)),
        ("to_q.bias", (8,)),
    ):
        assert find_matrix(name, shape) is None, name
    narrow = Matrix("proj.weight", 15, 60)
    assert count_matrix_bytes(narrow, "int4", CPU, 2) == 2 * 15 * 60, "it stays as it is"


def test_a_model_may_have_a_request_of_its_own() -> None:
    requests = QuantizationRequests("auto", "int8")
    assert split_model_request("models/sdxl=fp8", requests) == ("models/sdxl", QuantizationRequests("float8", "int8"))
    for name in ("models/sdxl", "a=b", "=int8", "run=3/model"):
        assert split_model_request(name, requests) == (name, requests)


def test_requests_come_from_options_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().quantization_requests == QuantizationRequests()
    monkeypatch.setenv("DARKROOM_QUANTIZE", "FP8")
    assert load_settings().quantization_requests == QuantizationRequests("float8")
    both = load_settings(quantize="int8", quantize_text="none")
    assert both.quantization_requests == QuantizationRequests("int8", "none")
    settings = load_settings(nats="nats://127.0.0.1:1", quantize_text="int4")
    assert settings.quantization_requests == QuantizationRequests("float8", "int4")
    assert parse_quantization(" nf4 ") == "nf4"
    with pytest.raises(SettingError, match=r"^--quantize is not valid: auto, none, int8, int4, fp8 or nf4 is"):
        load_settings(quantize="int3")
    monkeypatch.setenv("DARKROOM_QUANTIZE", "int3")
    with pytest.raises(
        SettingError, match=r"^DARKROOM_QUANTIZE is not valid: auto, none, int8, int4, fp8 or nf4 is needed\.$"
    ):
        load_settings(nats="nats://127.0.0.1:1")
