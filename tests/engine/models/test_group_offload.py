"""Offloaded layers and text encoders: the unmodified pipeline's latents, and the engine's promises."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.fixtures.jobs import make_job
from benchmarks.fixtures.reference_pipeline import call_pipeline
from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine import models
from engine.batching.engine import Engine, LatentsDone
from engine.contract import Concept, JobRejected, Lora, Recipe
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.family import Family
from engine.models.network import pipeline_offload
from engine.models.network.pipeline_offload import (
    FOLDER_NAME,
    LayerOffload,
    copy_without_offload,
    find_offload,
    is_offloaded,
    measure_layers,
    offload_layers,
    remove_stale_folders,
)
from engine.process.memory_requests import Offload
from shared.worker_harness import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
CPU = torch.device("cpu")
Load = Callable[..., Any]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x)


class Network(nn.Module):
    """Sixteen blocks, a layer outside them, and two embeddings with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(16))
        self.out = nn.Linear(64, 8)
        self.embedding = nn.Embedding(8, 64)
        self.tied = nn.Embedding(8, 64)
        self.tied.weight = self.embedding.weight
        self.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids) + self.tied(ids)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


IDS = torch.arange(8)[None]


def count_bytes_in_memory(module: nn.Module) -> int:
    """Count the memory of all weights, each storage once."""
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in module.parameters()}
    return sum(storages.values())


def test_offloaded_layers_compute_the_same_and_take_no_memory_between_forwards(tmp_path: Path) -> None:
    network = Network()
    expected = network(IDS)
    whole_bytes = count_bytes_in_memory(network)
    offload_layers(network, CPU, tmp_path)
    for is_inference in (True, False, True):
        with torch.inference_mode(is_inference), torch.no_grad():
            assert torch.equal(network(IDS), expected)
        assert count_bytes_in_memory(network) < whole_bytes / 50
    assert is_offloaded(network)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_files_are_removed_with_their_module_also_on_an_event_loop(tmp_path: Path) -> None:
    """The garbage collector runs anywhere, and a blocking call on a loop is an error in these tests."""
    network = Network()
    await asyncio.to_thread(offload_layers, network, CPU, tmp_path)
    (folder,) = (tmp_path / FOLDER_NAME).iterdir()
    assert list(folder.glob("*.safetensors"))
    await asyncio.to_thread(remove_stale_folders, tmp_path)
    assert list((tmp_path / FOLDER_NAME).iterdir()) == [folder]
    del network
    # again and again: the thread that offloaded it may hold it a moment longer
    await wait_until(lambda: (gc.collect(), not list((tmp_path / FOLDER_NAME).iterdir()))[1])


@pytest.mark.slow
def test_files_are_removed_at_exit(tmp_path: Path) -> None:
    program = "\n".join(
        [
            "import sys, pathlib, torch",
            "from engine.models.network.pipeline_offload import offload_layers",
            "network = torch.nn.Sequential(torch.nn.Linear(8, 8))",
            "offload_layers(network, torch.device('cpu'), pathlib.Path(sys.argv[1]))",
            "assert list(pathlib.Path(sys.argv[1]).rglob('*.safetensors'))",
        ]
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert not list((tmp_path / FOLDER_NAME).iterdir())


def test_a_lock_says_which_folders_are_in_use_and_no_process_number(tmp_path: Path) -> None:
    """In a container each worker has the number 1, the killed one and its successor."""
    for number in (1, os.getpid(), os.getppid()):
        (tmp_path / FOLDER_NAME / f"{number}-0").mkdir(parents=True)
    network = Network()
    expected = network(IDS)
    offload_layers(network, CPU, tmp_path)
    remove_stale_folders(tmp_path)
    assert len(list((tmp_path / FOLDER_NAME).iterdir())) == 1
    assert torch.equal(network(IDS), expected)


def test_a_copy_has_no_hooks_shares_the_memory_and_leaves_the_original_offloaded(tmp_path: Path) -> None:
    network = Network()
    expected = network(IDS)
    offload_layers(network, CPU, tmp_path)
    network(IDS)
    plain = copy_without_offload(network)
    assert find_offload(plain) is None
    assert torch.equal(plain(IDS), expected)
    plain.blocks[0].linear.weight = nn.Parameter(torch.zeros(64, 64))
    assert not torch.equal(plain(IDS), expected), "it runs its own layers"
    assert torch.equal(network(IDS), expected)
    assert count_bytes_in_memory(network) < count_bytes_in_memory(plain) / 50


def test_a_forward_that_fails_midway_leaves_the_next_one_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    expected = network(IDS)
    offload_layers(network, CPU, tmp_path)

    def fail(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "linear", fail)
        with pytest.raises(torch.OutOfMemoryError):
            network(IDS)
    assert torch.equal(network(IDS), expected)


def test_layers_need_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(pipeline_offload.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(JobRejected, match=r"need \d+ kB of disk, and 1 kB are free"):
        offload_layers(Network(), CPU, tmp_path)
    assert not list((tmp_path / FOLDER_NAME).iterdir())


def test_a_gpu_gets_streams_and_pinned_memory_and_a_processor_files() -> None:
    on_gpu = LayerOffload(torch.device("cuda"), Path("d"), None, is_by_block=True).make_arguments()
    assert (on_gpu["use_stream"], on_gpu["record_stream"], on_gpu["num_blocks_per_group"]) == (True, True, 1)
    assert "offload_to_disk_path" not in on_gpu
    on_processor = LayerOffload(CPU, Path("d"), Path("d/1-0"), is_by_block=False).make_arguments()
    assert (on_processor["offload_type"], on_processor["offload_to_disk_path"]) == ("leaf_level", "d/1-0")


def test_small_blocks_go_together_and_large_ones_layer_by_layer() -> None:
    many = measure_layers((f"blocks.{n}.attention.weight", 100) for n in range(20))
    assert (many.total, many.largest_block, many.has_small_blocks) == (2000, 100, True)
    assert (many.count_at_once(is_streamed=True), many.count_at_once(is_streamed=False)) == (200, 100)
    few = measure_layers(
        (f"down_blocks.{n}.resnets.{m}.conv.{part}", 50)
        for n in range(2)
        for m in range(20)
        for part in ("weight", "bias")
    )
    assert (few.largest_block, few.largest_layer, few.has_small_blocks) == (2000, 100, False)
    assert (few.count_at_once(is_streamed=True), few.count_at_once(is_streamed=False)) == (200, 100)
    assert measure_layers([("conv.weight", 10)]).count_at_once(is_streamed=True) == 10


@pytest.fixture(scope="module")
def load_small(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Load a small pipeline: as a family with what is offloaded, or unmodified."""
    folder = tmp_path_factory.mktemp("small")

    def load(kind: str, offload: Offload | None, **options: Any) -> Any:
        if not (folder / kind).exists():
            save_small_pipeline(kind, folder / kind)
        if offload is not None:
            return models.load_model(str(folder / kind), folder, offload=offload, **options)
        pipeline = import_module("diffusers").DiffusionPipeline.from_pretrained(folder / kind)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


def build_recipe(family: Family, **fields: Any) -> Recipe:
    defaults: dict[str, Any] = {
        "concepts": (Concept("a cat"),),
        "model": family.name,
        "sampler": "euler",
        "steps": 3,
        "seed": 3,
        "guidance": 4.0,
        "width": 64,
        "height": 64,
        "dtype": "float32",
        "guidance_kind": family.guides,
        "count": 1,
    }
    return Recipe(**(defaults | fields))


def draw(family: Family, recipe: Recipe) -> torch.Tensor:
    engine = Engine({family.name: family})
    engine.add(make_job(recipe))
    try:
        while not engine.is_idle:
            for event in engine.step():
                assert isinstance(event, LatentsDone) or hasattr(event, "step"), event
                if isinstance(event, LatentsDone):
                    return event.latents
    finally:
        engine.close()
    raise AssertionError("no latents")


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["sdxl", "flux", "sd3", "zimage"])
@pytest.mark.parametrize("large_threshold", [0, None], ids=["large", "small"])
def test_latents_with_offloaded_layers_equal_the_pipelines(
    load_small: Load, kind: str, large_threshold: int | None
) -> None:
    """The oracle has the same option, by diffusers' own call."""
    family = load_small(kind, "layers", large_threshold=large_threshold)
    pipeline = load_small(kind, None)
    assert isinstance(family, DiffusersFamily)
    dtype = family.dtypes[0]
    if large_threshold == 0:
        family.get_network("float32")  # loads it again
        dtype = "float32"
    assert is_offloaded(family.get_network(dtype))
    network = getattr(pipeline, family.network_name)
    network.enable_group_offload(CPU, CPU, "leaf_level")
    recipe = build_recipe(family)
    expected = call_pipeline(pipeline, family, recipe)[0]
    difference = float((draw(family, recipe) - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    assert difference <= 1e-4


def test_a_cancelled_job_leaves_within_a_step(load_small: Load) -> None:
    family = load_small("sdxl", "layers", large_threshold=0)
    recipe = build_recipe(family, dtype=family.dtypes[0])
    undisturbed = draw(family, recipe)
    engine = Engine({family.name: family})
    first = make_job(build_recipe(family, dtype=family.dtypes[0], seed=9, steps=5), 1)
    second = make_job(recipe, 2)
    engine.add(first)
    engine.add(second)
    engine.step()
    assert engine.cancel(first.id) == 1
    events = list[Any]()
    while not engine.is_idle:
        events += engine.step()
    assert {event.job for event in events} == {second.id}
    (latents,) = [event.latents for event in events if isinstance(event, LatentsDone)]
    assert float((latents - undisturbed).abs().max()) < 0.1, "bfloat16, in another batch"


def test_out_of_memory_between_offloaded_layers_halves_the_batch(load_small: Load) -> None:
    family = load_small("sdxl", "layers", large_threshold=None)
    recipes = [build_recipe(family, seed=seed) for seed in (1, 2)]
    expected = [draw(family, each) for each in recipes]
    network = family.get_network("float32")
    row_counts = list[int]()

    def fail_on_many_rows(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        row_counts.append(len(inputs[0]))
        if row_counts[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")

    hook = network.mid_block.register_forward_pre_hook(fail_on_many_rows)
    engine = Engine({family.name: family})
    try:
        jobs = [make_job(each, number) for number, each in enumerate(recipes)]
        for each in jobs:
            engine.add(each)
        latents = dict[str, torch.Tensor]()
        while not engine.is_idle:
            latents |= {event.job: event.latents for event in engine.step() if isinstance(event, LatentsDone)}
    finally:
        hook.remove()
    assert row_counts[:3] == [4, 2, 2]
    assert max(row_counts[1:]) == 2
    for each, whole in zip(jobs, expected, strict=True):
        assert float((latents[each.id] - whole).abs().max()) <= 1e-4


@pytest.mark.parametrize("kind", ["auraflow", "lumina2"])
def test_a_whole_pipeline_draws_the_same_with_offloaded_layers(load_small: Load, kind: str) -> None:
    plain = load_small(kind, "none")
    offloaded = load_small(kind, "layers")
    recipe = build_recipe(plain, sampler=plain.samplers[0], steps=2)
    assert is_offloaded(offloaded.pipeline.text_encoder)
    assert float((draw(offloaded, recipe) - draw(plain, recipe)).abs().max()) <= 1e-4


def test_a_lora_works_with_offloaded_layers_and_leaves_them_offloaded(load_small: Load, tmp_path: Path) -> None:
    plain = load_small("sdxl", "none")
    offloaded = load_small("sdxl", "layers")
    network = plain.get_network("float32")
    generator = torch.Generator().manual_seed(1)
    matrices = dict[str, torch.Tensor]()
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith((".to_q", ".to_v")):
            matrices[f"unet.{name}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=generator) * 0.3
            matrices[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=generator) * 0.3
    save_file(matrices, tmp_path / "style.safetensors")
    for family in (plain, offloaded):
        family.lora_folder = tmp_path
    recipe = build_recipe(plain, loras=(Lora("style", 0.7),))
    without_lora = draw(offloaded, build_recipe(offloaded))
    expected = draw(plain, recipe)
    assert float((draw(offloaded, recipe) - expected).abs().max()) <= 1e-4
    assert float((without_lora - expected).abs().max()) > 1e-3
    assert torch.equal(draw(offloaded, build_recipe(offloaded)), without_lora)
    assert is_offloaded(offloaded.get_network("float32"))
