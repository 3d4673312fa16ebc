"""Measures one way of holding a model in memory, in its own process: predicted and measured bytes, steps, latents.

python -m benchmarks.models.memory_run RUN_SPEC.json

It reads a file like `engine_run`, with what is offloaded. It prints one line of JSON, and writes the latents.
"""

from __future__ import annotations

import gc
import json
import mmap
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.fixtures.jobs import make_job, make_recipe
from benchmarks.models.diffusers_run import print_output_line, read_memory, synchronize_gpu
from engine import models
from engine.batching.engine import Engine, JobFailure, LatentsDone
from engine.contract import Dtype, Recipe
from engine.device.memory import choose_device
from engine.models.family import HasFormats
from engine.models.files.model_source import find_model
from engine.models.loading.memory_estimate import estimate_weights
from engine.models.loading.pipeline_loader import LARGE_PARAMETERS, FormatChooser
from engine.process.system import trim_heap

SAMPLED_OPERATORS = ("linear", "addmm", "mm", "conv2d", "convolution", "embedding")  # those that read large weights


def main(run_spec: dict[str, Any]) -> None:
    device = choose_device()
    offload = run_spec["offload"]
    chooser = FormatChooser(device, 0 if run_spec["is_large"] else LARGE_PARAMETERS)
    data_folder = Path(run_spec["data"])
    # it also imports the parts' classes, which are no weights
    weights = estimate_weights(find_model(run_spec["folder"], data_folder), chooser)
    base = read_settled_memory()
    threshold = chooser.large_threshold
    family = models.load_model(
        run_spec["folder"], data_folder, device=device, offload=offload, large_threshold=threshold
    )
    dtype = family.dtypes[0] if isinstance(family, HasFormats) else "float32"
    reset_peak_memory()
    latents, step_seconds = draw_latents(family, make_run_recipe(run_spec, family, dtype))
    peak = read_memory()
    picture = family.finish(latents)
    if offload == "none":
        read_weights(family)
    rest = read_settled_memory()
    with sample_weight_bytes(_list_networks(family)) as samples:
        draw_latents(family, make_run_recipe(run_spec, family, dtype))
    save_file({"latents": latents.float().cpu().contiguous()}, run_spec["latents"])
    print_output_line(
        predicted=weights.count_device_bytes(offload),
        predicted_group=weights.network_group,
        largest_group=max(samples, default=0),
        base=base,
        rest=rest,
        peak=peak,
        step=step_seconds,
        dtype=dtype,
        picture=picture.size,
    )


def reset_peak_memory() -> None:
    """Let `read_memory` report the peak from now on."""
    trim_heap()
    Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


class _WeightSampler(TorchDispatchMode):
    """Records the bytes of weights that are in memory at each operation that reads some."""

    def __init__(self, networks: list[torch.nn.Module]) -> None:
        super().__init__()
        self.samples = list[int]()
        self._weights = [weight for network in networks for weight in network.parameters()]
        self._device = choose_device()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in SAMPLED_OPERATORS:
            present = (each.untyped_storage() for each in self._weights if each.device.type == self._device.type)
            self.samples.append(sum({each.data_ptr(): each.nbytes() for each in present}.values()))
        return func(*args, **(kwargs or {}))


@contextmanager
def sample_weight_bytes(networks: list[torch.nn.Module]) -> Generator[list[int]]:
    """Yield a list that gets the bytes of these networks' weights on the device, at each operation meanwhile."""
    sampler = _WeightSampler(networks)
    with sampler:
        yield sampler.samples


def _list_networks(family: Any) -> list[torch.nn.Module]:
    if hasattr(family, "network_name"):
        return [family.get_network(family.dtypes[0])]
    return [part for name, part in family.pipeline.components.items() if name in ("unet", "transformer")]


def read_weights(family: Any) -> None:
    """Read the weights page by page: a prompt reads few rows of an embedding, and other prompts the rest of it."""
    for part in family.pipeline.components.values():
        for weight in part.parameters() if isinstance(part, torch.nn.Module) else ():
            if weight.is_contiguous() and weight.device.type == "cpu":
                weight.detach().view(-1)[:: max(1, mmap.PAGESIZE // weight.element_size())].float().sum()


def read_settled_memory() -> dict[str, float]:
    """Return the memory without what was freed."""
    gc.collect()
    trim_heap()
    return read_memory()


def draw_latents(family: Any, recipe: Recipe) -> tuple[torch.Tensor, float | None]:
    """Return the latents, and the mean seconds of a step after the first."""
    engine = Engine({family.name: family})
    step_ends = list[float]()
    try:
        engine.add(make_job(recipe))
        while not engine.is_idle:
            for event in engine.step():
                if isinstance(event, JobFailure):
                    raise RuntimeError(event.reason)
                if isinstance(event, LatentsDone):
                    synchronize_gpu()
                    step_ends.append(time.perf_counter())
                    count = len(step_ends) - 1
                    return event.latents, (step_ends[-1] - step_ends[0]) / count if count else None
            synchronize_gpu()
            step_ends.append(time.perf_counter())
    finally:
        engine.close()
    raise RuntimeError("the engine ended without latents")


def make_run_recipe(run_spec: dict[str, Any], family: Any, dtype: Dtype) -> Recipe:
    """Return the recipe of one picture."""
    return make_recipe(
        family,
        run_spec["prompt"],
        sampler=run_spec["sampler"] or family.samplers[0],
        steps=run_spec["steps"],
        seed=1,
        guidance=run_spec["guidance"],
        width=run_spec["side"],
        height=run_spec["side"],
        dtype=dtype,
    )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(json.loads(Path(sys.argv[1]).read_text()))


def count_stored_bytes(pipeline: Any) -> int:
    """Return the bytes of all weights of a pipeline; tensors that share memory count once."""
    modules = [each for each in pipeline.components.values() if isinstance(each, nn.Module)]
    tensors = (plain for each in modules for weight in each.parameters() for plain in _list_plain_tensors(weight))
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def _list_plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensors of which a quantised weight is made; a plain one is its own."""
    flatten: Any = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in cast(list[str], flatten()[0]):
        yield from _list_plain_tensors(cast(torch.Tensor, getattr(tensor, name)))
