"""Lets a family take pictures beside the prompt, by its conditioners."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from engine.contract import ControlModel, Preprocessor, Recipe
from engine.contract.rejection import JobRejected
from engine.models.pictures.conditioner import Additions, ForwardInputs, PictureConditioner
from engine.models.pictures.picture_conditions import OpenPicture, PictureConditions, PictureRows, SlotKind

Predict = Callable[[Any, tuple[torch.Tensor, ...]], torch.Tensor]


class PictureSupport:
    """Implements `engine.models.family.TakesPictures` for a family; `conditioners`: what its networks take.

    `required`: what it cannot draw without; empty: it can.
    """

    name: str
    conditioners: tuple[PictureConditioner, ...] = ()
    required: Literal["", "mask", "picture"] = ""

    def _use_picture_folders(self, data: Path) -> None:
        """Find the networks for pictures in a worker's data folder."""
        for conditioner in self.conditioners:
            conditioner.use_data_folder(data)

    def list_controls(self) -> tuple[ControlModel, ...]:
        return self._list_networks("control")

    def list_references(self) -> tuple[ControlModel, ...]:
        return self._list_networks("reference")

    def list_preprocessors(self) -> tuple[Preprocessor, ...]:
        listed: dict[Preprocessor, None] = {"none": None}
        for conditioner in self.conditioners:
            listed |= dict.fromkeys(conditioner.list_preprocessors())
        return tuple(listed)

    def _list_networks(self, kind: SlotKind) -> tuple[ControlModel, ...]:
        return tuple(model for each in self.conditioners if kind in each.kinds for model in each.list_networks())

    def needs_pictures(self, recipe: Recipe) -> bool:
        return any(each.needs_pictures(recipe) for each in self.conditioners)

    def check_pictures(self, recipe: Recipe) -> None:
        kinds = {kind for each in self.conditioners for kind in each.kinds}
        if recipe.controls and "control" not in kinds:
            raise JobRejected(f"{self.name} takes no control pictures.", "model")
        if recipe.references and "reference" not in kinds:
            raise JobRejected(f"{self.name} takes no reference pictures.", "model")
        for conditioner in self.conditioners:
            conditioner.check_pictures(recipe)

    def count_picture_bytes(self, recipe: Recipe, *, with_kept: bool = True) -> int:
        return sum(each.count_bytes(recipe, with_kept=with_kept) for each in self.conditioners)

    def list_shared_bytes(self, recipe: Recipe, *, with_kept: bool = True) -> Mapping[str, int]:
        shared: dict[str, int] = {}
        for conditioner in self.conditioners:
            shared |= conditioner.list_shared_bytes(recipe, with_kept=with_kept)
        return shared

    def release_other_networks(self, recipe: Recipe) -> None:
        for conditioner in self.conditioners:
            conditioner.release_others(recipe)

    def load_picture_networks(self, recipe: Recipe) -> None:
        for conditioner in self.conditioners:
            if conditioner.needs_pictures(recipe):
                conditioner.load_networks(recipe)

    @torch.inference_mode()
    def prepare_pictures(self, recipe: Recipe, open_picture: OpenPicture) -> PictureConditions:
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
            return self._run_network_with(net, x, t, tuple(rest[:count]), named)

        added = (tensor for each in additions.values() for tensor in each)
        return (inputs.x, inputs.t, *inputs.conditioning, *added), layout, predict

    @abstractmethod
    def _run_network_with(
        self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: tuple[torch.Tensor, ...], additions: Additions
    ) -> torch.Tensor:
        """Run one forward of the network with additional inputs, which its conditioners made."""
