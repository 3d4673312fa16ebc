"""The path for GPUs, as far as a processor can test it: it never changes pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine import models
from engine.calibration.measurement import probe_recipe
from engine.device.memory import choose_device, copy_to_device
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.network.forward_runner import GraphCache
from engine.models.network.pipeline_offload import is_offloaded, offload_to_cpu
from engine.process.memory_requests import OFFLOADS
from engine.process.settings import load_settings
from engine.worker.main import load_all_models


def test_an_offloaded_module_is_on_the_device_only_during_its_forward() -> None:
    called_devices: list[str] = []

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, is_failing: bool) -> torch.Tensor:
            called_devices.append(self.weight.device.type)
            if is_failing:
                raise RuntimeError("it failed")
            return torch.zeros(1)

    encoder = Encoder()
    # "meta" is the one other device that every machine has; weights don't come back from it.
    offload_to_cpu(encoder, torch.device("meta"))
    assert encoder.weight.device.type == "cpu"
    with pytest.raises(NotImplementedError, match="meta"):
        encoder(False)
    assert called_devices == ["meta"]


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3"])
def test_offloaded_text_encoders_give_the_same_conditioning(kind: str, tmp_path: Path) -> None:
    save_small_pipeline(kind, tmp_path / kind)
    plain_family, offloaded_family = (
        models.load_model(str(tmp_path / kind), tmp_path, offload=offload) for offload in OFFLOADS[::2]
    )
    assert isinstance(offloaded_family, DiffusersFamily)
    assert is_offloaded(offloaded_family.pipeline.text_encoder)
    offloaded_family.forward_runner.enable_cuda_graphs()  # this does nothing on a processor
    for one, other in zip(
        *(each.encode_conditioning("cat", probe_recipe(each)) for each in (plain_family, offloaded_family)), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_a_worker_accepts_graphs_and_offload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_small_pipeline("sd", tmp_path / "small")
    monkeypatch.setenv("DARKROOM_CUDA_GRAPHS", "1")
    settings = load_settings(
        nats="nats://127.0.0.1:1", models=(str(tmp_path / "small"),), data=tmp_path, device="cpu", offload="text"
    )
    assert (settings.cuda_graphs, settings.offload) == (True, "text")
    ready = load_all_models(settings)
    assert [family.dtype for _, family in ready.models]


def test_a_shape_that_is_rare_is_not_recorded() -> None:
    graphs = GraphCache()
    calls = list[int]()

    def predict(inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        calls.append(len(inputs))
        return inputs[0] + 1

    for shape in ("a", "b", "a"):
        assert torch.equal(graphs.run(shape, (torch.zeros(2),), predict), torch.ones(2))
    assert calls == [1, 1, 1]


@pytest.mark.slow
def test_a_repeated_forward_gives_the_same_result_on_this_device() -> None:
    """It comes from a recorded graph on a GPU, from packed weights on a processor."""
    device = choose_device()
    family = models.load_model("embedded", Path(), device=device)
    x = torch.randn(4, *family.latent_shape(family.size, family.size), device=device)
    texts = tuple(part.expand(4, *part.shape) for part in family.encode_conditioning("cat", probe_recipe(family)))
    times = torch.full((4,), 500.0, device=device)
    plain_output = family.denoise(x, times, texts, "bfloat16")
    assert isinstance(family, DiffusersFamily)
    family.forward_runner.enable_cuda_graphs()
    for _ in range(5):
        assert torch.equal(family.denoise(x, times, texts, "bfloat16"), plain_output)


def test_a_transfer_to_the_device_keeps_the_values() -> None:
    assert torch.equal(copy_to_device(torch.arange(3), torch.device("cpu")), torch.arange(3))
