"""Calls of unmodified pipelines, put together by rows, give what each pipeline gives by itself, in fewer forwards."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch

from engine.bench.small_models import KINDS
from engine.strands.call import Call, Forward, Reader, joined, split
from engine.strands.gather import Gathering
from engine.strands.shell import Moved, shell_of
from engine.strands.strand import Asked, Ended, Strand

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' schedulers
diffusers: Any = import_module("diffusers")


@cache
def small(kind: str) -> Any:
    torch.manual_seed(0)
    pipeline = KINDS[kind]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


SIDES = {"sd": 32, "sdxl": 64, "sd3": 64, "flux": 64, "zimage": 64, "sana": 64, "pixart": 64, "lumina2": 64}


def order(kind: str, words: str, seed: int, steps: int, **more: Any) -> dict[str, Any]:
    side = SIDES[kind]
    known: dict[str, Any] = {"prompt": words, "num_inference_steps": steps, "height": side, "width": side}
    if kind == "pixart":
        known["use_resolution_binning"] = False
    if kind in ("pixart", "sana"):
        known["clean_caption"] = False
    if kind == "sana":
        known["use_resolution_binning"] = False
    generator = torch.Generator().manual_seed(seed)
    return {**known, "generator": generator, "output_type": "pt", **more}


def real(name: str, net: Any) -> Forward:
    return Forward(net)


def gathered(
    jobs: list[tuple[Any, dict[str, Any]]], gathering: Gathering, bucket: int | None = None
) -> tuple[list[torch.Tensor], list[list[Moved]], int]:
    """Runs all pipelines side by side: their pictures, what their samplers told, and how many calls they made."""
    told: list[list[Moved]] = [[] for _ in jobs]

    def strand(number: int, pipeline: Any, known: dict[str, Any]) -> Strand[Call, Any, torch.Tensor]:
        def work(here: Strand[Call, Any, torch.Tensor]) -> torch.Tensor:
            return shell_of(pipeline, here.ask, told[number].append, real)(**known).images[0]

        return Strand(work)

    strands = [strand(number, *job) for number, job in enumerate(jobs)]
    asked = 0
    while waiting := [(each, rest.question) for each in strands if isinstance(rest := each.rest(30), Asked)]:
        with torch.no_grad():
            outputs = gathering.run([call for _, call in waiting], 64, bucket)
        asked += len(waiting)
        for (each, _), output in zip(waiting, outputs, strict=True):
            each.answer(output)
    ends = [each.rest() for each in strands]
    pictures = []
    for each, end in zip(strands, ends, strict=True):
        assert each.join(5)
        assert isinstance(end, Ended)
        if end.error is not None:
            raise end.error
        assert end.result is not None
        pictures.append(end.result)
    return pictures, told, asked


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [each for each in set(threading.enumerate()) - before if each.name.startswith("strand")]
    assert left == []


@pytest.mark.parametrize("kind", sorted(SIDES))
def test_pipelines_share_forwards_and_give_the_same_pictures(kind: str) -> None:
    pipeline, gathering = small(kind), Gathering()
    orders = [("cat", 1, 4), ("dog", 2, 6), ("sea", 3, 5)]
    own = [pipeline(**order(kind, *each)).images[0] for each in orders]
    pictures, _, asked = gathered([(pipeline, order(kind, *each)) for each in orders], gathering)
    for picture, expected in zip(pictures, own, strict=True):
        torch.testing.assert_close(picture, expected, rtol=0, atol=1e-5)
    print(kind, "max", max(float((a - b).abs().max()) for a, b in zip(pictures, own, strict=True)),
          "calls", asked, "forwards", gathering.forwards)  # fmt: skip
    again = Gathering()
    again._tried = gathering._tried
    _, _, asked = gathered([(pipeline, order(kind, *each)) for each in orders], again)
    assert again.forwards <= asked / 2, f"{again.forwards} forwards for {asked} calls"


class Summed(torch.nn.Module):
    """Rows through a small network, with positions that are one for all; `mixing` looks at other rows, wrongly."""

    def __init__(self, mixing: bool = False, fails: bool = False) -> None:
        super().__init__()
        self.mixing, self.fails = mixing, fails
        self.seen: list[int] = []

    def forward(
        self, sample: torch.Tensor, timestep: Any, ids: Any = None, more: Any = None, residuals: Any = (),
        return_dict: bool = True,
    ) -> Any:  # fmt: skip
        self.seen.append(len(sample))
        if self.fails and len(sample) > 2:
            raise ValueError("only two")
        t = torch.as_tensor(timestep, dtype=torch.float32).expand(len(sample)).view(-1, 1)
        out = 2 * sample + t + (0 if ids is None else ids.sum()) + sum(residuals)
        out = out + (more["added"] if more else 0) + (sample.mean() if self.mixing else 0)
        return {"sample": out, "list": list(out)} if return_dict else (out, None, list(out))


def calls(net: Summed, *each: tuple[Any, Any, dict[str, Any]]) -> list[Call]:
    return [Reader(Forward(net)).read((sample, t), more) for sample, t, more in each]


def rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def some(kind: str, count: int, seed: int) -> tuple[Any, Any, dict[str, Any]]:
    more: dict[str, dict[str, Any]] = {
        "plain": {},
        "tuple": {"return_dict": False},
        "nested": {"more": {"added": rows(count, seed + 50)}, "residuals": (rows(count, seed + 60), rows(count, 70))},
        "shared": {"ids": torch.arange(5.0)},
    }
    return rows(count, seed), 10 * seed if seed % 2 else torch.tensor(10 * seed), more[kind]


@pytest.mark.parametrize("kind", ["plain", "tuple", "nested", "shared"])
def test_calls_of_one_and_two_rows_go_together_and_each_gets_its_own(kind: str) -> None:
    net, gathering = Summed(), Gathering()
    made = calls(net, *(some(kind, count, seed) for count, seed in ((1, 1), (2, 3), (1, 5))))
    gathering.run(made, 32)
    net.seen.clear()
    outputs = gathering.run(made, 32)
    assert net.seen == [4]
    for output, call in zip(outputs, made, strict=True):
        expected = call.forward(*call.arguments)
        parts, others = (each.values() if isinstance(each, dict) else each for each in (output, expected))
        for part, other in zip(parts, others, strict=True):
            assert type(part) is type(other)
            torch.testing.assert_close(part, other)


def test_what_is_one_for_all_must_be_equal() -> None:
    net = Summed()
    one, same, other = calls(
        net,
        *((rows(2, seed), 7, {"ids": torch.arange(5.0) + plus}) for seed, plus in ((1, 0), (2, 0), (3, 1))),
    )
    assert one.signature == same.signature
    assert one.signature != other.signature
    flag = calls(net, (rows(2, 1), 7, {"return_dict": False}))[0]
    wide = Reader(Forward(net)).read((torch.zeros(2, 4), 7), {})
    assert len({one.signature, other.signature, flag.signature, wide.signature}) == 4


@pytest.mark.parametrize("net", [Summed(mixing=True), Summed(fails=True)])
def test_a_network_whose_rows_are_not_their_own_gets_its_calls_one_by_one(net: Summed) -> None:
    gathering = Gathering()
    made = calls(net, *(some("plain", 2, seed) for seed in (1, 3, 5)))
    gathering.run(made, 32)
    net.seen.clear()
    outputs = gathering.run(made, 32)
    assert net.seen == [2, 2, 2]
    for output, call in zip(outputs, made, strict=True):
        torch.testing.assert_close(output["sample"], call.forward(*call.arguments)["sample"])


def test_an_error_of_one_call_is_raised_and_memory_is_not_taken_for_distrust() -> None:
    class Full(torch.nn.Module):
        def forward(self, sample: torch.Tensor, timestep: Any) -> Any:
            if len(sample) > 2:
                raise torch.OutOfMemoryError("full")
            return (sample,)

    net, gathering = Full(), Gathering()
    made = [Reader(Forward(net)).read((rows(2, seed), seed), {}) for seed in (1, 2)]
    with pytest.raises(torch.OutOfMemoryError):
        gathering.run(made, 32)
    assert len(gathering.run(made, 2)) == 2


def test_a_bucket_is_always_full_and_no_forward_is_wider_than_asked() -> None:
    net, gathering = Summed(), Gathering()
    made = calls(net, *(some("plain", 2, seed) for seed in (1, 3, 5)))
    gathering.run(made, 32, 4)
    net.seen.clear()
    gathering.run(made, 32, 4)
    assert net.seen == [4, 4]
    net.seen.clear()
    gathering.run(made, 5)
    assert max(net.seen) == 4


def test_a_list_of_tensors_is_rows() -> None:
    class Listed(torch.nn.Module):
        def forward(self, x: list[torch.Tensor], t: torch.Tensor) -> Any:
            return ([each * t[n] for n, each in enumerate(x)],)

    net = Listed()
    made = [
        Reader(Forward(net)).read(([rows(2, seed)[0], rows(2, seed)[1]], torch.tensor([seed, seed + 1])), {})
        for seed in (1, 2)
    ]
    args, _ = joined(made)
    assert [len(part) for part in args] == [4, 4]
    first, second = split(net.forward(*args), [2, 2], 4)
    torch.testing.assert_close(second[0][1], 3 * rows(2, 2)[1])
    assert len(first[0]) == 2


def test_other_number_formats_are_computed_and_given_back() -> None:
    net = torch.nn.Linear(3, 3).to(torch.bfloat16)
    out = Forward(net, torch.bfloat16)((rows(2, 1),), {})
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, net(rows(2, 1).to(torch.bfloat16)).float())


def test_a_network_that_nobody_else_holds_is_freed() -> None:
    net, gathering = Summed(), Gathering()
    gathering.run(calls(net, *(some("plain", 2, seed) for seed in (1, 3))), 32)
    assert gathering._tried
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None
    fresh = Summed()
    gathering.run(calls(fresh, *(some("plain", 2, seed) for seed in (1, 3))), 32)
    assert fresh.seen == [2, 2, 4]  # it is tried for itself
