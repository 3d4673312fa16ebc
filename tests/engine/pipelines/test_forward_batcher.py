"""Batched calls of unmodified pipelines give what each pipeline gives alone, in fewer forwards."""

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

from benchmarks.fixtures.small_pipelines import PIPELINE_BUILDERS
from engine.pipelines.forward_batcher import CoroutineThread, ForwardBatcher, Message, ThreadEnd
from engine.pipelines.network_call import (
    CallAnalyzer,
    NetworkCall,
    NetworkForward,
    SamplerProgress,
    clone_pipeline,
    join_calls,
    split_output,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' schedulers
diffusers: Any = import_module("diffusers")


@cache
def make_pipeline(kind: str) -> Any:
    torch.manual_seed(0)
    pipeline = PIPELINE_BUILDERS[kind]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


SIDES = {"sd": 32, "sdxl": 64, "sd3": 64, "flux": 64, "zimage": 64, "sana": 64, "pixart": 64, "lumina2": 64}


def call_arguments(kind: str, words: str, seed: int, steps: int, **changes: Any) -> dict[str, Any]:
    side = SIDES[kind]
    arguments: dict[str, Any] = {"prompt": words, "num_inference_steps": steps, "height": side, "width": side}
    if kind == "pixart":
        arguments["use_resolution_binning"] = False
    if kind in ("pixart", "sana"):
        arguments["clean_caption"] = False
    if kind == "sana":
        arguments["use_resolution_binning"] = False
    generator = torch.Generator().manual_seed(seed)
    return {**arguments, "generator": generator, "output_type": "pt", **changes}


def wrap_network(name: str, net: Any) -> NetworkForward:
    return NetworkForward(net)


def run_together(
    jobs: list[tuple[Any, dict[str, Any]]], batcher: ForwardBatcher, bucket: int | None = None
) -> tuple[list[torch.Tensor], list[list[SamplerProgress]], int]:
    """Runs all pipelines together; returns their pictures, their samplers' progress and the number of calls."""
    progress_by_job: list[list[SamplerProgress]] = [[] for _ in jobs]

    def make_thread(
        number: int, pipeline: Any, arguments: dict[str, Any]
    ) -> CoroutineThread[NetworkCall, Any, torch.Tensor]:
        def work(coroutine_thread: CoroutineThread[NetworkCall, Any, torch.Tensor]) -> torch.Tensor:
            return clone_pipeline(pipeline, coroutine_thread.ask, progress_by_job[number].append, wrap_network)(
                **arguments
            ).images[0]

        return CoroutineThread(work)

    coroutine_threads = [make_thread(number, *job) for number, job in enumerate(jobs)]
    count = 0
    while pending_calls := [
        (each, message.content) for each in coroutine_threads if isinstance(message := each.poll(30), Message)
    ]:
        with torch.no_grad():
            outputs = batcher.run([call for _, call in pending_calls], 64, bucket)
        count += len(pending_calls)
        for (each, _), output in zip(pending_calls, outputs, strict=True):
            each.answer(output)
    results = [each.poll() for each in coroutine_threads]
    pictures = []
    for each, end in zip(coroutine_threads, results, strict=True):
        assert each.join(5)
        assert isinstance(end, ThreadEnd)
        if end.error is not None:
            raise end.error
        assert end.result is not None
        pictures.append(end.result)
    return pictures, progress_by_job, count


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [each for each in set(threading.enumerate()) - before if each.name.startswith("coroutine-thread")]
    assert left == []


@pytest.mark.sampled
@pytest.mark.parametrize("kind", sorted(SIDES))
def test_pipelines_share_forwards_and_give_the_same_pictures(kind: str) -> None:
    pipeline = make_pipeline(kind)
    batcher = ForwardBatcher()
    orders = [("cat", 1, 4), ("dog", 2, 6), ("sea", 3, 5)]
    expected_pictures = [pipeline(**call_arguments(kind, *each)).images[0] for each in orders]
    pictures, _, count = run_together([(pipeline, call_arguments(kind, *each)) for each in orders], batcher)
    for picture, expected in zip(pictures, expected_pictures, strict=True):
        torch.testing.assert_close(picture, expected, rtol=0, atol=1e-5)
    print(
        kind,
        "max",
        max(float((a - b).abs().max()) for a, b in zip(pictures, expected_pictures, strict=True)),
        "calls",
        count,
        "forwards",
        batcher.forwards,
    )
    second_batcher = ForwardBatcher()
    second_batcher._is_joinable = batcher._is_joinable
    _, _, count = run_together([(pipeline, call_arguments(kind, *each)) for each in orders], second_batcher)
    assert second_batcher.forwards <= count / 2, f"{second_batcher.forwards} forwards for {count} calls"


class SummingNetwork(torch.nn.Module):
    """A small network over rows, with positions for all rows. With `mixes_rows` a row wrongly depends on the others."""

    def __init__(self, mixes_rows: bool = False, is_failing: bool = False) -> None:
        super().__init__()
        self.mixes_rows = mixes_rows
        self.is_failing = is_failing
        self.row_counts: list[int] = []

    def forward(
        self,
        sample: torch.Tensor,
        timestep: Any,
        ids: Any = None,
        more: Any = None,
        residuals: Any = (),
        return_dict: bool = True,
    ) -> Any:
        self.row_counts.append(len(sample))
        if self.is_failing and len(sample) > 2:
            raise ValueError("only two")
        t = torch.as_tensor(timestep, dtype=torch.float32).expand(len(sample)).view(-1, 1)
        output = 2 * sample + t + (0 if ids is None else ids.sum()) + sum(residuals)
        output = output + (more["added"] if more else 0) + (sample.mean() if self.mixes_rows else 0)
        return {"sample": output, "list": list(output)} if return_dict else (output, None, list(output))


def read_calls(net: SummingNetwork, *each: tuple[Any, Any, dict[str, Any]]) -> list[NetworkCall]:
    return [CallAnalyzer(NetworkForward(net)).analyze((sample, t), keywords) for sample, t, keywords in each]


def random_rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def make_inputs(kind: str, count: int, seed: int) -> tuple[Any, Any, dict[str, Any]]:
    keywords_by_case: dict[str, dict[str, Any]] = {
        "plain": {},
        "tuple": {"return_dict": False},
        "nested": {
            "more": {"added": random_rows(count, seed + 50)},
            "residuals": (random_rows(count, seed + 60), random_rows(count, 70)),
        },
        "shared": {"ids": torch.arange(5.0)},
    }
    return random_rows(count, seed), 10 * seed if seed % 2 else torch.tensor(10 * seed), keywords_by_case[kind]


@pytest.mark.parametrize("kind", ["plain", "tuple", "nested", "shared"])
def test_calls_of_one_and_two_rows_share_a_forward_and_get_their_own_outputs(kind: str) -> None:
    net = SummingNetwork()
    batcher = ForwardBatcher()
    calls = read_calls(net, *(make_inputs(kind, count, seed) for count, seed in ((1, 1), (2, 3), (1, 5))))
    batcher.run(calls, 32)
    net.row_counts.clear()
    outputs = batcher.run(calls, 32)
    assert net.row_counts == [4]
    for output, call in zip(outputs, calls, strict=True):
        expected = call.forward(*call.arguments)
        parts, expected_parts = (each.values() if isinstance(each, dict) else each for each in (output, expected))
        for part, other in zip(parts, expected_parts, strict=True):
            assert type(part) is type(other)
            torch.testing.assert_close(part, other)


def test_shared_inputs_must_be_equal() -> None:
    net = SummingNetwork()
    one, same_call, other = read_calls(
        net,
        *((random_rows(2, seed), 7, {"ids": torch.arange(5.0) + offset}) for seed, offset in ((1, 0), (2, 0), (3, 1))),
    )
    assert one.signature == same_call.signature
    assert one.signature != other.signature
    flag = read_calls(net, (random_rows(2, 1), 7, {"return_dict": False}))[0]
    wide_call = CallAnalyzer(NetworkForward(net)).analyze((torch.zeros(2, 4), 7), {})
    assert len({one.signature, other.signature, flag.signature, wide_call.signature}) == 4


@pytest.mark.parametrize("net", [SummingNetwork(mixes_rows=True), SummingNetwork(is_failing=True)])
def test_a_network_with_dependent_rows_is_called_one_by_one(net: SummingNetwork) -> None:
    batcher = ForwardBatcher()
    calls = read_calls(net, *(make_inputs("plain", 2, seed) for seed in (1, 3, 5)))
    batcher.run(calls, 32)
    net.row_counts.clear()
    outputs = batcher.run(calls, 32)
    assert net.row_counts == [2, 2, 2]
    for output, call in zip(outputs, calls, strict=True):
        torch.testing.assert_close(output["sample"], call.forward(*call.arguments)["sample"])


def test_out_of_memory_is_raised_and_does_not_stop_batching() -> None:
    class Full(torch.nn.Module):
        def forward(self, sample: torch.Tensor, timestep: Any) -> Any:
            if len(sample) > 2:
                raise torch.OutOfMemoryError("full")
            return (sample,)

    net = Full()
    batcher = ForwardBatcher()
    calls = [CallAnalyzer(NetworkForward(net)).analyze((random_rows(2, seed), seed), {}) for seed in (1, 2)]
    with pytest.raises(torch.OutOfMemoryError):
        batcher.run(calls, 32)
    assert len(batcher.run(calls, 2)) == 2


def test_a_bucket_is_always_full_and_no_forward_exceeds_the_limit() -> None:
    net = SummingNetwork()
    batcher = ForwardBatcher()
    calls = read_calls(net, *(make_inputs("plain", 2, seed) for seed in (1, 3, 5)))
    batcher.run(calls, 32, 4)
    net.row_counts.clear()
    batcher.run(calls, 32, 4)
    assert net.row_counts == [4, 4]
    net.row_counts.clear()
    batcher.run(calls, 5)
    assert max(net.row_counts) == 4


def test_a_list_of_tensors_counts_as_rows() -> None:
    class Listed(torch.nn.Module):
        def forward(self, x: list[torch.Tensor], t: torch.Tensor) -> Any:
            return ([each * t[n] for n, each in enumerate(x)],)

    net = Listed()
    calls = [
        CallAnalyzer(NetworkForward(net)).analyze(
            ([random_rows(2, seed)[0], random_rows(2, seed)[1]], torch.tensor([seed, seed + 1])), {}
        )
        for seed in (1, 2)
    ]
    args, _ = join_calls(calls)
    assert [len(part) for part in args] == [4, 4]
    first, second = split_output(net.forward(*args), [2, 2], 4)
    torch.testing.assert_close(second[0][1], 3 * random_rows(2, 2)[1])
    assert len(first[0]) == 2


def test_another_number_format_is_computed_and_converted_back() -> None:
    net = torch.nn.Linear(3, 3).to(torch.bfloat16)
    output = NetworkForward(net, torch.bfloat16)((random_rows(2, 1),), {})
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, net(random_rows(2, 1).to(torch.bfloat16)).float())


def test_a_network_without_other_references_is_freed() -> None:
    net = SummingNetwork()
    batcher = ForwardBatcher()
    batcher.run(read_calls(net, *(make_inputs("plain", 2, seed) for seed in (1, 3))), 32)
    assert batcher._is_joinable
    network_reference = weakref.ref(net)
    del net
    gc.collect()
    assert network_reference() is None
    new_network = SummingNetwork()
    batcher.run(read_calls(new_network, *(make_inputs("plain", 2, seed) for seed in (1, 3))), 32)
    assert new_network.row_counts == [2, 2, 4]  # the new network is tried anew
