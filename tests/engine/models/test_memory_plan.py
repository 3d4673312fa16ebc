"""The choice of quantisation and offload by predicted bytes. It loads nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.contract import JobRejected, Quantization
from engine.models import quantization
from engine.models.loading.memory_estimate import LoadChoice, WeightBytes, choose_memory, list_offloads
from engine.models.quantization import (
    Matrix,
    PartQuantization,
    SizedQuantization,
    choose_quantizations,
    count_matrix_bytes,
    find_matrix,
    list_candidates,
)
from engine.process.memory_requests import (
    OFFLOADS,
    Offload,
    QuantizationRequests,
    parse_quantization,
    split_model_request,
)
from engine.process.setting_sources import SettingError
from engine.process.settings import load_settings

GB = 10**9
# Flux.1-dev in bfloat16, and with its network in fewer bits
FULL = PartQuantization()
INT8 = PartQuantization("int8")
NF4 = PartQuantization("nf4")
FLUX: dict[PartQuantization, WeightBytes] = {
    FULL: WeightBytes(24 * GB, 10 * GB, GB // 5, 2 * GB, GB),
    INT8: WeightBytes(12 * GB, 10 * GB, GB // 5, GB, GB),
    NF4: WeightBytes(6 * GB, 10 * GB, GB // 5, GB // 2, GB),
}


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (40, ("none", "none")),
        (26, ("none", "text")),
        (23, ("int8", "none")),
        (20, ("int8", "text")),
        (8, ("nf4", "text")),
        (5, ("none", "layers")),  # all its layers pass through the device anyway, so in full
        (1.3, ("int8", "layers")),  # not nf4, whose layers cannot be moved
    ],
)
def test_flux_gets_the_best_that_fits(budget: float, expected: tuple[Quantization, Offload]) -> None:
    choice = choose_memory(FLUX, OFFLOADS, int(budget * GB), "cuda")
    assert (choice.quantization, choice.offload) == (PartQuantization(expected[0]), expected[1])
    assert choice.fits
    assert choice.size <= budget * GB


def test_what_the_caller_fixed_is_kept() -> None:
    assert choose_memory({FULL: FLUX[FULL]}, OFFLOADS, 20 * GB, "cuda").offload == "layers"
    assert choose_memory(FLUX, ("none",), 17 * GB, "cuda").quantization == NF4
    assert choose_memory({INT8: FLUX[INT8]}, ("text",), 100 * GB, "cuda").offload == "text"


def test_quantisations_that_differ_only_in_the_text_encoders_are_told_apart() -> None:
    weights = {INT8: FLUX[INT8], PartQuantization("int8", "int8"): WeightBytes(12 * GB, 5 * GB, GB // 5, GB, GB // 2)}
    for budget, expected in zip((23, 18), weights, strict=True):
        assert choose_memory(weights, ("none",), budget * GB, "cuda").quantization == expected


def test_layers_of_nf4_stay_where_they_are() -> None:
    with pytest.raises(ValueError, match="Layers of nf4 weights cannot"):
        choose_memory({NF4: FLUX[NF4]}, ("layers",), 40 * GB, "cuda")
    assert choose_memory(FLUX, OFFLOADS, 5 * GB, "cpu").quantization == FULL


def test_the_smallest_is_named_where_nothing_fits() -> None:
    choice = choose_memory(FLUX, ("none", "text"), GB, "cuda")
    assert choice == LoadChoice(NF4, "text", 7 * GB + GB // 5, False)
    assert choice.describe("flux", GB) == (
        "flux does not fit: even with its network in nf4, it takes about 7.2 GB, and models may take 1 GB"
    )


def test_the_sentence_names_choice_and_bytes() -> None:
    assert choose_memory(FLUX, OFFLOADS, 40 * GB, "cuda").describe("flux", 40 * GB) == (
        "flux is loaded in full, whole on the device: it takes about 34.2 GB, and models may take 40 GB"
    )
    assert choose_memory(FLUX, OFFLOADS, 20 * GB, "cuda").describe("flux", 20 * GB) == (
        "flux is loaded with its network in int8, its text encoders kept off the device: it takes about 13.2 GB, and "
        "models may take 20 GB"
    )


def test_auto_offloads_only_what_helps_there() -> None:
    assert list_offloads("auto", "cuda", is_large=True) == ("none", "text", "layers")
    assert list_offloads("auto", "cpu", is_large=True) == ("none", "layers")
    assert list_offloads("auto", "cuda", is_large=False) == ("none",)
    assert list_offloads("layers", "cpu", is_large=False) == ("layers",)
    assert list_offloads("text", "cpu", is_large=True) == ("none",)


@given(st.integers(1, 50 * GB), st.integers(1, 50 * GB))
def test_more_memory_never_gives_less(one: int, other: int) -> None:
    """More memory never offloads layers that less memory kept, and what fits stays chosen."""
    smaller, larger = (choose_memory(FLUX, OFFLOADS, budget, "cuda") for budget in sorted((one, other)))
    assert smaller.fits <= larger.fits
    if smaller.fits and smaller.offload != "layers":
        assert larger.offload != "layers"


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
