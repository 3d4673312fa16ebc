"""The path for GPUs, as far as a processor can test it: it never changes pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from engine import families
from engine.bench.small_models import build
from engine.config import load
from engine.device import best
from engine.families.pipelined import Pipelined
from engine.families.recorded import Graphs
from engine.families.visiting import visits
from engine.measurement import probe
from engine.serving import load_models
from engine.transfer import onto


def test_an_offloaded_module_is_on_the_device_only_during_its_forward() -> None:
    devices: list[str] = []

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, fails: bool) -> torch.Tensor:
            devices.append(self.weight.device.type)
            if fails:
                raise RuntimeError("it failed")
            return torch.zeros(1)

    encoder = Encoder()
    # "meta" is the one other device that every machine has; weights don't come back from it.
    visits(encoder, torch.device("meta"))
    assert encoder.weight.device.type == "cpu"
    with pytest.raises(NotImplementedError, match="meta"):
        encoder(False)
    assert devices == ["meta"]


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3"])
def test_offloaded_text_encoders_give_the_same_conditioning(kind: str, tmp_path: Path) -> None:
    build(kind, tmp_path / kind)
    plain, offloaded = (families.load_folder(str(tmp_path / kind), kind) for _ in range(2))
    assert isinstance(offloaded, Pipelined)
    offloaded.offload()
    offloaded.forwards.record()  # this does nothing on a processor
    for one, other in zip(*(each.condition("cat", probe(each)) for each in (plain, offloaded)), strict=True):
        assert torch.equal(one, other)


def test_a_worker_accepts_graphs_and_offload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("sd", tmp_path / "small")
    monkeypatch.setenv("DARKROOM_GRAPHS", "1")
    settings = load(
        nats="nats://127.0.0.1:1", models=(str(tmp_path / "small"),), data=tmp_path, device="cpu", offload=True
    )
    assert (settings.graphs, settings.offload) == (True, True)
    ready = load_models(settings)
    assert [family.dtype for _, family in ready.models]


def test_a_shape_that_is_rare_is_not_recorded() -> None:
    graphs, calls = Graphs(), list[int]()

    def predict(inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        calls.append(len(inputs))
        return inputs[0] + 1

    for shape in ("a", "b", "a"):
        assert torch.equal(graphs.run(shape, (torch.zeros(2),), predict), torch.ones(2))
    assert calls == [1, 1, 1]


def test_a_repeated_forward_gives_the_same_result_on_this_device() -> None:
    """It comes from a recorded graph on a GPU, from packed weights on a processor."""
    device = best()
    family = families.load("embedded", Path(), device=device)
    x = torch.randn(4, *family.latent_shape(family.size, family.size), device=device)
    texts = tuple(part.expand(4, *part.shape) for part in family.condition("cat", probe(family)))
    times = torch.full((4,), 500.0, device=device)
    plain = family.denoise(x, times, texts, "bfloat16")
    assert isinstance(family, Pipelined)
    family.forwards.record()
    for _ in range(5):
        assert torch.equal(family.denoise(x, times, texts, "bfloat16"), plain)


def test_a_transfer_to_the_device_keeps_the_values() -> None:
    assert torch.equal(onto(torch.arange(3), torch.device("cpu")), torch.arange(3))
