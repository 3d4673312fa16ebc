"""Fixtures of the engine for tests of several rooms: an affine network, the embedded model, small folders, jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine.batching.engine import Engine, JobFailure, LatentsDone
from engine.contract import BillingKey, Concept, Dtype, GuidanceKind, Job, Lora, Recipe, Sampler
from engine.models.families.embedded import load_embedded
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.family import Conditioning
from engine.sampling import Plan, plan

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Affine:
    """A family with an affine network: it is fast, its results are known exactly, and it counts its forwards."""

    name = "affine"
    revision = "r1"
    guidance = 2.0
    device = torch.device("cpu")
    size = 32
    multiple = 8
    max_pixels = 64 * 64
    tokens = 4
    upscale_factor = 1
    upscaler = ""
    guides: GuidanceKind = "rows"
    interval = (0.0, 1.0)
    samplers: tuple[Sampler, ...] = ("ddpm", "ddim", "euler", "dpmpp_2m")

    def __init__(self, scheduler_config: dict[str, Any], failing_text: str = "", memory: int = 10_000) -> None:
        self.scheduler_config = scheduler_config
        self.memory = memory  # rows that fit
        self.memory_of: dict[int, int] = {}  # the same, by the number of latent columns
        self.shapes: list[int] = []
        self._failing_text = failing_text

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return 4, height // 8, width // 8

    def plan(self, sampler: Sampler, steps: int, eta: float, width: int, height: int) -> Plan:
        return plan(self.scheduler_config, sampler, steps, eta)

    def encode_text(self, text: str) -> torch.Tensor:
        return self._embed(text)

    def encode_conditioning(self, text: str, recipe: Recipe, *, negative: bool = False) -> Conditioning:
        return (self._embed(text),)

    def _embed(self, text: str) -> torch.Tensor:
        value = float("nan") if text == self._failing_text and text else (sum(map(ord, text)) % 97) / 97
        return torch.full((4, 2), value)

    def denoise(
        self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, dtype: Dtype, loras: tuple[Lora, ...] = ()
    ) -> torch.Tensor:
        if len(x) > self.memory_of.get(x.shape[-1], self.memory):
            raise torch.OutOfMemoryError("the test's memory is full")
        self.shapes.append(len(x))
        return 0.3 * x + t.view(-1, 1, 1, 1) / 2000 + conditioning[0][:, 0, 0].view(-1, 1, 1, 1)

    def decode(self, latents: torch.Tensor) -> Image.Image:
        pixels = ((latents[:3].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        return Image.fromarray(pixels.contiguous().numpy()).resize((32, 32))

    def finish(self, latents: torch.Tensor) -> Image.Image:
        return self.decode(latents)

    def encode_image(self, picture: Image.Image) -> torch.Tensor:
        small = torch.tensor(list(picture.resize((4, 4)).tobytes()), dtype=torch.float32).view(4, 4, 3).permute(2, 0, 1)
        return torch.cat([small / 127.5 - 1, small[:1] / 255])


SCHEDULE: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
}


@pytest.fixture
def affine() -> Affine:
    return Affine(SCHEDULE)


@pytest.fixture(scope="session")
def embedded() -> StableDiffusion:
    return load_embedded()


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1.x folder with random weights: CLIP, epsilon prediction, "leading" spacing, very small."""
    folder = tmp_path_factory.mktemp("small-sd")
    save_small_pipeline("sd", folder)
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a small random Compact network, as spandrel builds it, and returns its path."""
    from spandrel.architectures.Compact import Compact

    def make(scale: int = 4, convs: int = 2, seed: int = 0, **fields: Any) -> Path:
        torch.manual_seed(seed)
        net = Compact(num_feat=8, num_conv=convs, upscale=scale, **fields)
        path = tmp_path_factory.mktemp("upscaler") / f"tiny{scale}.safetensors"
        save_file({name: value.half() for name, value in net.state_dict().items()}, path)
        return path

    return make


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """Makes a recipe for the affine family; keyword arguments override its fields."""

    def make(*texts: str, **fields: Any) -> Recipe:
        concepts = fields.pop("concepts", tuple(Concept(text) for text in texts or ("a red cat",)))
        defaults: dict[str, Any] = {
            "model": "affine",
            "sampler": "ddpm",
            "steps": 10,
            "seed": 7,
            "guidance": 2.0,
            "width": 32,
            "height": 32,
            "count": 1,
            "dtype": "float32",
        }
        return Recipe(concepts=concepts, **(defaults | fields))

    return make


@pytest.fixture
def build_recipe(recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """Makes a recipe of the embedded model with a pinned batch shape, so that it alone decides every bit."""

    def make(text: str = "a red cat", **fields: Any) -> Recipe:
        defaults: dict[str, Any] = {"model": "embedded", "guidance": 3.5, "width": 64, "height": 64, "bucket": 2}
        return recipe(text, **(defaults | fields))

    return make


@pytest.fixture
def job() -> Callable[..., Job]:
    """Makes a job of `user` with the next id."""
    numbers: Iterator[int] = iter(range(1, 1000))

    def make(task: Any, user: str = "ann", weight: float = 1.0, **fields: Any) -> Job:
        number = next(numbers)
        identity = "01" + "".join(ALPHABET[number >> shift & 31] for shift in range(115, -5, -5))
        share = BillingKey(tier="t", guild="g", user=user, weight=weight)
        return Job(id=identity, task=task, billing_key=share, cost=1.0, deadline=2e9, **fields)

    return make


@pytest.fixture
def finish() -> Callable[..., dict[tuple[str, int], torch.Tensor]]:
    """Steps an engine until it is idle; returns latents by (job, image). A failed job fails the test."""

    def run(engine: Engine, max_steps: int = 5000) -> dict[tuple[str, int], torch.Tensor]:
        latents: dict[tuple[str, int], torch.Tensor] = {}
        for _ in range(max_steps):
            if engine.is_idle:
                return latents
            for event in engine.step():
                assert not isinstance(event, JobFailure), event
                if isinstance(event, LatentsDone):
                    latents[event.job, event.image] = event.latents
        raise AssertionError("the engine does not finish")

    return run
