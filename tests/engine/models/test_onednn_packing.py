"""Packed weights give the plain network's bits in every number format and batch shape, never a wrong picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from engine.calibration.measurement import probe_recipe
from engine.contract import Dtype
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.network import forward_runner
from engine.models.network.forward_runner import PackedCopies, can_pack

pytestmark = pytest.mark.skipif(not can_pack(nn.Linear(1, 1)), reason="this build of torch has no oneDNN operators")


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_packed_forward_gives_the_same_bits(embedded: StableDiffusion, rows: int, dtype: Dtype) -> None:
    generator = torch.Generator().manual_seed(rows)
    texts = tuple(
        part.expand(rows, *part.shape) for part in embedded.encode_conditioning("cat", probe_recipe(embedded))
    )
    packs = PackedCopies()
    net = embedded.get_network(dtype)
    for height in (16, 24):
        x = torch.randn(rows, 8, height, 16, generator=generator).to(next(net.parameters()).dtype)
        t = torch.linspace(20, 900, rows)

        @torch.inference_mode()
        def predict(network: Any, x: torch.Tensor = x, t: torch.Tensor = t) -> torch.Tensor:
            return network(x, t, encoder_hidden_states=texts[0].to(x.dtype), return_dict=False)[0]

        expected = predict(net)
        for _ in range(forward_runner.FORWARDS_BEFORE_PACKING + 1):
            assert torch.equal(packs.run(net, (dtype, height), predict), expected)
    if dtype == "bfloat16":
        assert all(each is not net for each in packs._copies.values())
        kinds = {type(each).__name__ for packed in packs._copies.values() for each in packed.modules()}
        assert {"_PackedConvolution", "_PackedLinear", "_PackedTransposedConvolution"} <= kinds


class DerivedLinear(nn.Linear):
    """A subclass of the plain layer: packing must not replace it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


def test_a_subclass_of_a_layer_is_not_packed() -> None:
    net = nn.Sequential(nn.Linear(4, 4), DerivedLinear(4, 4)).bfloat16()
    x = torch.ones(2, 4).bfloat16()
    packs = PackedCopies()
    with torch.inference_mode():
        expected = net(x)
        for _ in range(4):
            assert torch.equal(packs.run(net, "shape", lambda network: network(x)), expected)


class CountingForwards(nn.Module):
    """Counts its forwards, so every forward has another result."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(x) + self.calls


def test_a_packed_copy_with_another_result_is_not_used() -> None:
    net = CountingForwards()
    x = torch.ones(2, 4)
    packs = PackedCopies()
    with torch.inference_mode():
        for _ in range(4):
            packs.run(net, "shape", lambda network: network(x))
    assert list(packs._copies.values()) == [net]
    assert net.calls == 4  # the copy ran once on its own


def test_the_copies_are_bounded_and_share_the_parameters() -> None:
    net = nn.Sequential(nn.Linear(8, 8)).bfloat16()
    packs = PackedCopies(max_bytes=300)
    with torch.inference_mode():
        for rows in (1, 2, 3):
            for _ in range(forward_runner.FORWARDS_BEFORE_PACKING):
                packs.run(net, rows, lambda network, rows=rows: network(torch.ones(rows, 8).bfloat16()))
    assert list(packs._copies) == [2, 3]
    assert all(copy is not net and copy[0].weight is net[0].weight for copy in packs._copies.values())


class Counting(nn.Module):
    """Counts its forwards. It is no layer that can be packed."""

    read_count = 0

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        Counting.read_count += 1
        return text.square()


class TextNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.read = Counting()

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.read(text)


def test_a_repeated_text_is_processed_once() -> None:
    net = TextNetwork().bfloat16()
    packs = PackedCopies()
    texts = [torch.randn(2, 4).bfloat16() for _ in range(2)]
    with torch.inference_mode():

        def step(text: torch.Tensor) -> int:
            x = torch.randn(2, 4).bfloat16()
            before = Counting.read_count
            output = packs.run(net, "shape", lambda network: network(x, text), (text,))
            new_reads = Counting.read_count - before
            assert torch.equal(output, net(x, text))
            return new_reads

        for _ in range(forward_runner.FORWARDS_BEFORE_PACKING):
            step(texts[0])
        assert [step(text) for text in (texts[0], texts[0], texts[1], texts[1], texts[0])] == [0, 0, 1, 0, 1]


class RowCounter(nn.Module):
    """Counts the rows that it reads."""

    def __init__(self, *, mixes_rows: bool = False) -> None:
        super().__init__()
        self.mixes_rows = mixes_rows
        self.counts = list[int]()

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        self.counts.append(len(text))
        return text + text.mean() if self.mixes_rows else text.square()


@pytest.mark.parametrize("mixes_rows", [False, True])
def test_only_the_rows_with_another_text_are_read_anew(mixes_rows: bool) -> None:
    """A module whose rows depend on each other reads them all, always."""
    plain = RowCounter(mixes_rows=mixes_rows)
    counter = RowCounter(mixes_rows=mixes_rows)
    cached = forward_runner._CachedModule(counter, forward_runner._TextChanges())
    first = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    second = first.clone()
    third = first.clone()
    fourth = first.clone()
    other_batch = first[:5].clone()
    second[2] += 1
    third[2] += 1
    third[4] += 1
    fourth[:4] += 2
    read = list[list[int]]()
    for text in (first, first, second, third, third, fourth, other_batch, first):
        counter.counts.clear()
        assert torch.equal(cached(text), plain(text))
        read.append(list(counter.counts))
    checks = [6, 1] if mixes_rows else [6, 1, 1, 1, 1, 1, 1]
    changed = [6] if mixes_rows else [1]
    assert read == [[6], [], [*checks, *changed], changed, [], [6], [5], [6]]


def test_an_equal_text_in_another_tensor_is_not_read_again() -> None:
    counter = RowCounter()
    cached = forward_runner._CachedModule(counter, forward_runner._TextChanges())
    text = torch.ones(4, 2, 2)
    assert torch.equal(cached(text), cached(text.clone()))
    assert counter.counts == [4]
    assert torch.equal(cached(torch.full((3,), 2.0)), torch.full((3,), 4.0)), "an input without rows"


class OneShape(nn.Module):
    """Refuses every other batch, as an operator of oneDNN may."""

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        if len(text) != 4:
            raise RuntimeError("another shape")
        return text + 1


def test_a_module_that_refuses_single_rows_reads_the_whole_batch() -> None:
    cached = forward_runner._CachedModule(OneShape(), forward_runner._TextChanges())
    text = torch.zeros(4, 2, 2)
    changed = text.clone()
    changed[1] = 5
    assert torch.equal(cached(text), text + 1)
    assert torch.equal(cached(changed), changed + 1)


@pytest.mark.sampled
@pytest.mark.parametrize("changed_rows", [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,), (0, 7)])
def test_a_steered_row_gives_the_bits_of_the_whole_batch(
    embedded: StableDiffusion, changed_rows: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(3)
    net = embedded.get_network("bfloat16")
    x = torch.randn(8, 8, 16, 16, generator=generator).bfloat16()
    t = torch.linspace(20, 900, 8)
    words = ("red", "blue", "old", "sad", "big", "wet", "sly", "odd")
    first = torch.stack([embedded.encode_text(f"a {word} cat") for word in words])
    second = first.clone()
    for row in changed_rows:
        second[row] = embedded.encode_text("a dog")
    packs = PackedCopies()
    texts = [first.bfloat16(), second.bfloat16()]

    @torch.inference_mode()
    def run(text: torch.Tensor) -> torch.Tensor:
        return packs.run(
            net, "shape", lambda each: each(x, t, encoder_hidden_states=text, return_dict=False)[0], (text,)
        )

    expected = [net(x, t, encoder_hidden_states=text, return_dict=False)[0] for text in texts]
    for number in (0, 0, 0, 1, 1, 0, 1):
        assert torch.equal(run(texts[number]), expected[number])


def test_the_next_step_reuses_the_batched_texts_of_the_last(embedded: StableDiffusion) -> None:
    texts = embedded.encode_conditioning("cat", probe_recipe(embedded))
    batched_conditioning = embedded.forward_runner.cast_conditioning(texts, torch.bfloat16)
    assert embedded.forward_runner.cast_conditioning(texts, torch.bfloat16)[0] is batched_conditioning[0]
    assert embedded.forward_runner.cast_conditioning(texts, torch.float32)[0].dtype == torch.float32
    cast_again = embedded.forward_runner.cast_conditioning((texts[0].clone(),), torch.bfloat16)[0]
    assert cast_again is not batched_conditioning[0]
    assert torch.equal(cast_again, batched_conditioning[0])


def test_a_large_network_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_runner, "MAX_PARAMETERS", 10)
    assert not can_pack(nn.Linear(8, 8))
