"""`PictureConditioner`: one kind of pictures for a family, from the recipe to the inputs of a forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from engine.contract import ControlModel, Dtype, Preprocessor, Recipe
from engine.models.pictures.picture_conditions import OpenPicture, PictureConditions, PictureRows, SlotKind

Additions = Mapping[str, tuple[torch.Tensor, ...]]  # further inputs of a network, by their name in its forward


class ForwardInputs(NamedTuple):
    """The inputs of a forward: latents `[rows, …]` and conditions in `dtype`, timesteps `[rows]`."""

    x: torch.Tensor
    t: torch.Tensor
    conditioning: tuple[torch.Tensor, ...]
    dtype: Dtype


@runtime_checkable
class UsesAutoencoder(Protocol):
    """A conditioner that encodes pictures with its family's autoencoder."""

    def with_family(self, family: Any) -> PictureConditioner:
        """Return the same for a copy of its family with another autoencoder."""
        ...


class PictureConditioner(Protocol):
    """Prepares a recipe's pictures of `kinds`, and turns those of a forward's rows into additional inputs."""

    kinds: tuple[SlotKind, ...]

    def use_data_folder(self, data: Path) -> None:
        """From now on, find networks in the worker's data folder."""
        ...

    def list_networks(self) -> tuple[ControlModel, ...]:
        """Return the networks that fit the model."""
        ...

    def list_preprocessors(self) -> tuple[Preprocessor, ...]:
        """Return the preprocessors that may make its pictures."""
        ...

    def needs_pictures(self, recipe: Recipe) -> bool:
        """Return whether the recipe has such pictures."""
        ...

    def check_pictures(self, recipe: Recipe) -> None:
        """Raise `JobRejected` where it cannot take them; load nothing."""
        ...

    def count_bytes(self, recipe: Recipe, *, with_kept: bool = True) -> int:
        """Return the bytes of the recipe's networks, `with_kept`: and of those in memory. Loads nothing."""
        ...

    def list_shared_bytes(self, recipe: Recipe, *, with_kept: bool = True) -> Mapping[str, int]:
        """Return the part of these bytes whose networks other models share, by a key for each network."""
        ...

    def load_networks(self, recipe: Recipe) -> None:
        """Load the networks that they need, in the recipe's number format. It may run on any thread."""
        ...

    def prepare_pictures(self, recipe: Recipe, open_picture: OpenPicture) -> PictureConditions:
        """Return them as conditions. Raises `JobRejected`."""
        ...

    def make_additions(self, inputs: ForwardInputs, pictures: Sequence[PictureRows]) -> Additions:
        """Return the additional inputs of a forward with these pictures, for all of its rows."""
        ...

    def release_others(self, recipe: Recipe) -> None:
        """Drop the networks that the recipe does not use. Raises `JobRejected`."""
        ...

    def release(self) -> None:
        """Drop all networks."""
        ...
