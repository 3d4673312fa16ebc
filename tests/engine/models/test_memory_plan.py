"""The choice of quantisation and offload by predicted bytes. It loads nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract import Quantization
from engine.models.loading.memory_estimate import MemoryChoice, WeightBytes, choose_memory, list_offloads
from engine.models.quantization import PartQuantization
from engine.process.memory_requests import OFFLOADS, Offload

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
    assert choice.device_bytes <= budget * GB


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
    assert choice == MemoryChoice(NF4, "text", 7 * GB + GB // 5, False)
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
