"""Picture conditions: pictures beside the prompt (control, reference, inpainting), as a model's networks take them.

An image has a `PictureCondition` for each of its pictures. A forward has `PictureRows` for each slot: those of its rows
that have a picture there, whatever images they belong to.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, Self, cast, runtime_checkable

import torch
from PIL import Image

from engine.contract import ControlModel, Dtype, JobRejected, Preprocessor, Recipe

SlotKind = Literal["control", "adapter", "reference", "inpaint"]
OpenPicture = Callable[[str], Image.Image]  # returns the picture (RGB) of a SHA-256; raises `JobRejected`


class PictureSlot(NamedTuple):
    """What a picture is for, and by which network. Rows of a forward with equal slots run together.

    `number` tells pictures of one image apart that are for the same network.
    """

    kind: SlotKind
    name: str = ""
    revision: str = ""
    number: int = 0


@dataclass(frozen=True, eq=False)
class PictureCondition:
    """One picture of an image. `tensors` have no dimension of rows, and are on the device.

    `unconditional_tensors` take their place in the row of the empty or negative text; None: the same. It holds between
    `start` and `stop`, fractions of the steps. `network`: the one that the slot names, which stays in memory with it.
    """

    slot: PictureSlot
    tensors: tuple[torch.Tensor, ...]
    scale: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    unconditional_tensors: tuple[torch.Tensor, ...] | None = None
    network: object = None

    def is_active(self, step: int, steps: int) -> bool:
        """Return whether it holds at this step of `steps`, counted as diffusers' control pipelines do."""
        return self.scale != 0 and not (step / steps < self.start or (step + 1) / steps > self.stop)


PictureConditions = tuple[PictureCondition, ...]


@dataclass(frozen=True, eq=False)
class PictureRows:
    """The rows of one forward that have a picture in `slot`: their numbers, tensors `[n, …]` and scales `[n]`.

    `is_whole`: they are all rows of the forward, in sequence. `common_scale`: of all these rows; None: they differ.
    """

    slot: PictureSlot
    rows: torch.Tensor
    tensors: tuple[torch.Tensor, ...]
    scales: torch.Tensor
    is_whole: bool
    common_scale: float | None
    network: object = None

    def select(self, batch: torch.Tensor) -> torch.Tensor:
        """Return these rows of a forward's tensor `[rows, …]`."""
        return batch if self.is_whole else batch[self.rows]

    def spread(self, values: torch.Tensor, row_count: int) -> torch.Tensor:
        """Return these rows' values as `[row_count, …]`, with zeros in the other rows."""
        if self.is_whole:
            return values
        return values.new_zeros(row_count, *values.shape[1:]).index_copy(0, self.rows, values)

    def scale(self, values: torch.Tensor) -> torch.Tensor:
        """Return these rows' values `[rows, …]` times their scales, in their number format, rounded once."""
        if self.common_scale is not None:
            return values if self.common_scale == 1.0 else values * self.common_scale
        return (values * self.scales.view(-1, *(1,) * (values.dim() - 1))).to(values.dtype)

    def fill(self, row_count: int) -> PictureRows:
        """Return the same for all rows of the forward: the others get zeros, and a scale of 0."""
        return PictureRows(
            self.slot,
            torch.arange(row_count, device=self.rows.device),
            tuple(self.spread(tensor, row_count) for tensor in self.tensors),
            self.spread(self.scales, row_count),
            True,
            None,
            self.network,
        )


Additions = Mapping[str, tuple[torch.Tensor, ...]]  # further inputs of a network, by their name in its forward
NO_INPUTS: Additions = MappingProxyType({})


class ForwardInputs(NamedTuple):
    """The inputs of a forward: latents `[rows, …]` and conditions in `dtype`, timesteps `[rows]`."""

    x: torch.Tensor
    t: torch.Tensor
    conditioning: tuple[torch.Tensor, ...]
    dtype: Dtype


class PictureConditioner(Protocol):
    """Prepares a recipe's pictures of `kinds`, and turns those of a forward's rows into additional inputs."""

    kinds: tuple[SlotKind, ...]

    def with_family(self, family: Any) -> Self:
        """Return the same for a copy of its family with another autoencoder."""
        return self

    def use_data_folder(self, data: Path) -> None:
        """From now on, find networks in the worker's data folder."""

    def list_networks(self) -> tuple[ControlModel, ...]:
        """Return the networks that fit the model."""
        return ()

    def list_preprocessors(self) -> tuple[Preprocessor, ...]:
        """Return the preprocessors that may make its pictures."""
        return ()

    @abstractmethod
    def needs_pictures(self, recipe: Recipe) -> bool:
        """Return whether the recipe has such pictures."""
        ...

    @abstractmethod
    def check_pictures(self, recipe: Recipe) -> None:
        """Raise `JobRejected` where it cannot take them; load nothing."""
        ...

    def count_bytes(self, recipe: Recipe, *, with_kept: bool = True) -> int:
        """Return the bytes of the recipe's networks, `with_kept`: and of those in memory. Loads nothing."""
        return 0

    def list_shared_bytes(self, recipe: Recipe, *, with_kept: bool = True) -> Mapping[str, int]:
        """Return the part of these bytes whose networks other models share, by a key for each network."""
        return {}

    def load_networks(self, recipe: Recipe) -> None:
        """Load the networks that they need, in the recipe's number format. It may run on any thread."""

    @abstractmethod
    def prepare_pictures(self, recipe: Recipe, open_picture: OpenPicture) -> PictureConditions:
        """Return them as conditions. Raises `JobRejected`."""
        ...

    @abstractmethod
    def make_additions(self, inputs: ForwardInputs, pictures: Sequence[PictureRows]) -> Additions:
        """Return the additional inputs of a forward with these pictures, each `[rows, …]` for all of its rows."""
        ...

    def release_others(self, recipe: Recipe) -> None:
        """Drop the networks that the recipe does not use. Raises `JobRejected`."""

    def release(self) -> None:
        """Drop all networks."""


Predict = Callable[[Any, tuple[torch.Tensor, ...]], torch.Tensor]


@runtime_checkable
class TakesPictures(Protocol):
    """A family whose networks may take pictures beside the prompt, by its `conditioners`.

    `required`: what it cannot draw without; empty: it can.
    """

    name: str
    conditioners: tuple[PictureConditioner, ...] = ()
    required: Literal["", "mask", "picture"] = ""

    def list_controls(self) -> tuple[ControlModel, ...]:
        """Return the control networks that fit."""
        return self._list_networks("control")

    def list_references(self) -> tuple[ControlModel, ...]:
        """Return the reference adapters that fit."""
        return self._list_networks("reference")

    def list_preprocessors(self) -> tuple[Preprocessor, ...]:
        """Return what can make its control images."""
        listed: dict[Preprocessor, None] = {"none": None}
        for conditioner in self.conditioners:
            listed |= dict.fromkeys(conditioner.list_preprocessors())
        return tuple(listed)

    def _list_networks(self, kind: SlotKind) -> tuple[ControlModel, ...]:
        return tuple(model for each in self.conditioners if kind in each.kinds for model in each.list_networks())

    def needs_pictures(self, recipe: Recipe) -> bool:
        """Return whether a recipe has pictures for the networks."""
        return any(each.needs_pictures(recipe) for each in self.conditioners)

    def check_pictures(self, recipe: Recipe) -> None:
        """Raise `JobRejected` where a picture's network is missing, unfit or of another revision; load nothing."""
        kinds = {kind for each in self.conditioners for kind in each.kinds}
        if recipe.controls and "control" not in kinds:
            raise JobRejected(f"{self.name} takes no control pictures.", "model")
        if recipe.references and "reference" not in kinds:
            raise JobRejected(f"{self.name} takes no reference pictures.", "model")
        for conditioner in self.conditioners:
            conditioner.check_pictures(recipe)

    def count_picture_bytes(self, recipe: Recipe, *, with_kept: bool = True) -> int:
        """Return the bytes of the recipe's networks, `with_kept`: and of those in memory. Loads nothing."""
        return sum(each.count_bytes(recipe, with_kept=with_kept) for each in self.conditioners)

    def list_shared_bytes(self, recipe: Recipe, *, with_kept: bool = True) -> Mapping[str, int]:
        """Return the part of these bytes whose networks other models share, by a key for each network."""
        shared: dict[str, int] = {}
        for conditioner in self.conditioners:
            shared |= conditioner.list_shared_bytes(recipe, with_kept=with_kept)
        return shared

    def release_other_networks(self, recipe: Recipe) -> None:
        """Drop the networks for pictures that the recipe does not use. Raises `JobRejected`."""
        for conditioner in self.conditioners:
            conditioner.release_others(recipe)

    def load_picture_networks(self, recipe: Recipe) -> None:
        """Load the networks that the recipe's pictures need, in its number format. Raises `JobRejected`."""
        for conditioner in self.conditioners:
            if conditioner.needs_pictures(recipe):
                conditioner.load_networks(recipe)

    @torch.inference_mode()
    def prepare_pictures(self, recipe: Recipe, open_picture: OpenPicture) -> PictureConditions:
        """Return the recipe's pictures as the networks take them. Raises `JobRejected`.

        It runs networks, so call it only in the decode worker's thread.
        """
        chosen = [each for each in self.conditioners if each.needs_pictures(recipe)]
        return tuple(condition for each in chosen for condition in each.prepare_pictures(recipe, open_picture))

    def _make_additions(self, inputs: ForwardInputs, pictures: tuple[PictureRows, ...]) -> Additions:
        """Return the additional inputs of a forward; they depend on each row's own pictures alone."""
        additions: dict[str, tuple[torch.Tensor, ...]] = {}
        for conditioner in self.conditioners:
            own_pictures = [each for each in pictures if each.slot.kind in conditioner.kinds]
            if own_pictures:
                additions |= conditioner.make_additions(inputs, own_pictures)
        return additions

    def _flatten(
        self, inputs: ForwardInputs, additions: Additions
    ) -> tuple[tuple[torch.Tensor, ...], tuple[tuple[str, int], ...], Predict]:
        """Return all inputs as one sequence, the layout of its additions, and the forward that takes it."""
        count = len(inputs.conditioning)
        layout = tuple((name, len(each)) for name, each in additions.items())

        def predict(net: Any, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
            x, t, *rest = tensors
            remaining = iter(rest[count:])
            named = {name: tuple(next(remaining) for _ in range(length)) for name, length in layout}
            return cast(Any, self)._run_network(net, x, t, tuple(rest[:count]), named)

        added = (tensor for each in additions.values() for tensor in each)
        return (inputs.x, inputs.t, *inputs.conditioning, *added), layout, predict
