"""What the engine asks of a model: the one contract between sampling and networks. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image

from engine.job import Dtype, Guides, Lora, Recipe, Sampler
from engine.plan import Plan

TORCH: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL = 128  # pixels of native side: a model no larger is decoded for its previews, and its finals are super-resolved

# What the network reads beside latents and timesteps, for one text or, stacked, for the rows of a batch: token states
# first, then whatever the model takes besides (a pooled text, sizes in pixels, a mask). The model decides what and how
# many; their shapes are part of the batch key.
Conditions = tuple[torch.Tensor, ...]


class Family(Protocol):
    """One loaded model. The engine's thread calls everything but what makes or reads pictures, which is the lane's."""

    name: str
    revision: str  # changes with the weights: calibrations and recipes are bound to it
    device: torch.device
    samplers: tuple[Sampler, ...]
    size: int  # native side in pixels
    multiple: int  # sides are multiples of this
    tokens: int  # how many the text encoder reads
    guides: Guides
    guidance: float  # default
    interval: tuple[float, float]  # default: the fractions of the steps between which guidance holds
    enlargement: int  # how many times as wide and high as its recipe a finished picture is; 1: as it says
    upscaler: str  # the name of what does that; empty where nothing does

    @property
    def max_pixels(self) -> int: ...

    def plan(self, sampler: Sampler, steps: int, eta: float, width: int, height: int) -> Plan:
        """The sampler's table for a picture of this size in pixels. Raises ValueError with a sentence."""
        ...

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of a picture of this size in pixels."""
        ...

    def condition(self, text: str, recipe: Recipe, *, negative: bool = False) -> Conditions:
        """One text of a recipe, in one fixed shape, float32 on the device; one at a time, cached."""
        ...

    def denoise(
        self, x: torch.Tensor, t: torch.Tensor, texts: Conditions, dtype: Dtype, loras: tuple[Lora, ...] = ()
    ) -> torch.Tensor:
        """The network's output, float32, for inputs `[rows, …]`, timesteps `[rows]` and conditions `[rows, …]`."""
        ...

    def decode(self, latents: torch.Tensor) -> Image.Image:
        """The picture of latents `[channels, height, width]`, one pixel for each of the recipe."""
        ...

    def finish(self, latents: torch.Tensor) -> Image.Image:
        """The finished picture of latents: decoded, then enlarged where `enlargement` says so and the result fits."""
        ...

    def encode_image(self, picture: Image.Image) -> torch.Tensor:
        """Latents `[channels, height, width]` of a picture: the autoencoder's mean."""
        ...


@runtime_checkable
class Formatted(Protocol):
    """A family that says in which number formats it is worth timing: a large network is only there in one."""

    @property
    def dtypes(self) -> tuple[Dtype, ...]: ...


@runtime_checkable
class HeldOnce(Protocol):
    """A family that may be in memory in one number format at a time: `held_once` says whether it is."""

    @property
    def held_once(self) -> bool: ...

    def holds(self, dtype: Dtype) -> bool:
        """Whether it can draw in this one without loading anything."""
        ...

    def net(self, dtype: Dtype) -> object:
        """The network in this one; opens the model anew where it has to."""
        ...


def is_here(family: Family) -> bool:
    """Whether its weights are in memory: those of a large model are not while it is opened in another number format."""
    return not (isinstance(family, HeldOnce) and family.held_once) or any(family.holds(dtype) for dtype in TORCH)


@runtime_checkable
class HasNetwork(Protocol):
    """A family that has its network ready for a number format once it was asked for it."""

    def net(self, dtype: Dtype) -> object: ...


@runtime_checkable
class Rehearsed(Protocol):
    """A family whose forward for timing is one of its native size, whatever it is given."""

    rehearsed: bool


@runtime_checkable
class Accustomed(Protocol):
    """A family that may have steps and a sampler of its own, which are then the default."""

    usual: tuple[int, Sampler] | None


@runtime_checkable
class TakesLoras(Protocol):
    """A family to whose networks a job may add (Hu et al. 2021)."""

    def loras(self) -> tuple[Lora, ...]:
        """Those that fit, as strong as they were made."""
        ...

    def with_loras(self, recipe: Recipe) -> Recipe:
        """A recipe with LoRAs, each with its revision and ready to be run. Raises `Unfit`."""
        ...

    def for_good(self, recipe: Recipe) -> Any:
        """A pipeline with a recipe's LoRAs in it, which nobody switches over to others. Raises `Unfit`."""
        ...


@runtime_checkable
class Spells(Protocol):
    """A family that reads the words for its pipeline's own call: once for all images, weighed, and long texts whole."""

    def spelt(self, recipe: Recipe) -> dict[str, Any]:
        """Arguments of that call in place of a recipe's words."""
        ...


class Worded(Family, Protocol):
    """A family whose only condition is its words' token states, so that one can reckon with them."""

    scheduler_config: Mapping[str, Any]

    def encode(self, text: str) -> torch.Tensor:
        """Token states `[tokens, features]`, float32 on the device; one text at a time in one fixed shape, cached."""
        ...
