"""Control pictures, from a recipe to conditions, and those of a U-Net's forward to its residuals and features."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from PIL import Image, ImageOps

from engine.contract import ControlModel, Preprocessor, Recipe
from engine.models.autoencoder.autoencoder import get_shift
from engine.models.control_networks import (
    ControlCollection,
    ControlFile,
    ControlNet,
    ControlNetwork,
    TargetNetwork,
    TransformerControlNet,
)
from engine.models.family import Conditioning
from engine.models.files.added_kind import CONTROL_FOLDER, PREPROCESSOR_FOLDER
from engine.models.picture_conditions import (
    Additions,
    ForwardInputs,
    OpenPicture,
    PictureCondition,
    PictureConditions,
    PictureRows,
    PictureSlot,
    SlotKind,
)
from engine.models.preprocessors import Preprocessors

NameTexts = Callable[[Conditioning], Mapping[str, Any]]


class ControlConditioner(ABC):
    """Finds and loads control networks, and prepares their pictures.

    Both halves of guidance get the control, as in diffusers' pipelines without their guess mode.
    """

    kinds: tuple[SlotKind, ...] = ("control", "adapter")

    def __init__(self, collection: ControlCollection, preprocessors: Preprocessors) -> None:
        self.collection = collection
        self.preprocessors = preprocessors

    def use_data_folder(self, data: Path) -> None:
        self.collection.folder = data / CONTROL_FOLDER
        self.preprocessors.folder = data / PREPROCESSOR_FOLDER

    def list_networks(self) -> tuple[ControlModel, ...]:
        return self.collection.list_compatible()

    def list_preprocessors(self) -> tuple[Preprocessor, ...]:
        return self.preprocessors.list_available()

    def needs_pictures(self, recipe: Recipe) -> bool:
        return bool(recipe.controls)

    def check_pictures(self, recipe: Recipe) -> None:
        for control in recipe.controls:
            self.collection.find(control)
            self.preprocessors.check(control.preprocessor)

    def count_bytes(self, recipe: Recipe, *, with_kept: bool = True) -> int:
        shared_bytes = sum(self.list_shared_bytes(recipe, with_kept=with_kept).values())
        return shared_bytes + self.collection.count_bytes(self._find_files(recipe), recipe.dtype, with_kept=with_kept)

    def list_shared_bytes(self, recipe: Recipe, *, with_kept: bool = True) -> Mapping[str, int]:
        names: list[Preprocessor] = [each.preprocessor for each in recipe.controls]
        return self.preprocessors.list_bytes(names, with_kept=with_kept)

    def load_networks(self, recipe: Recipe) -> None:
        for control in recipe.controls:
            self.collection.load(self.collection.find(control), recipe.dtype)

    def prepare_pictures(self, recipe: Recipe, open_picture: OpenPicture) -> PictureConditions:
        numbers = Counter[str]()
        conditions = list[PictureCondition]()
        for control in recipe.controls:
            file = self.collection.find(control)
            network = self.collection.load(file, recipe.dtype)
            picture = _fit(open_picture(control.picture), recipe)
            control_image = _fit(self.preprocessors.run(control.preprocessor, picture), recipe)
            slot = PictureSlot(network.kind, file.name, file.revision, numbers[file.revision])
            numbers[file.revision] += 1
            tensors = self._encode(network, control_image)
            conditions.append(
                PictureCondition(slot, tensors, control.scale, control.start, control.stop, network=network)
            )
        return tuple(conditions)

    def release_others(self, recipe: Recipe) -> None:
        self.collection.release_others(self._find_files(recipe), recipe.dtype)
        self.preprocessors.release_others([each.preprocessor for each in recipe.controls])

    def release(self) -> None:
        self.collection.release()
        self.preprocessors.release()

    def _find_files(self, recipe: Recipe) -> list[ControlFile]:
        return [self.collection.find(each) for each in recipe.controls]

    def _encode(self, network: ControlNetwork, control_image: Image.Image) -> tuple[torch.Tensor, ...]:
        """Return what a forward needs of a control image."""
        return network.encode_picture(control_image)

    @abstractmethod
    def make_additions(self, inputs: ForwardInputs, pictures: Sequence[PictureRows]) -> Additions: ...


class UNetControlConditioner(ControlConditioner):
    """`name_texts` names the texts of a forward as a ControlNet's forward takes them."""

    def __init__(self, collection: ControlCollection, preprocessors: Preprocessors, name_texts: NameTexts) -> None:
        super().__init__(collection, preprocessors)
        self._name_texts = name_texts

    def make_additions(self, inputs: ForwardInputs, pictures: Sequence[PictureRows]) -> Additions:
        additions: dict[str, tuple[torch.Tensor, ...]] = {}
        if controls := [each for each in pictures if each.slot.kind == "control"]:
            *down, middle = sum_spread(controls, [self._run(inputs, each) for each in controls], len(inputs.x))
            additions |= {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": (middle,)}
        if adapters := [each for each in pictures if each.slot.kind == "adapter"]:
            features = sum_spread(adapters, [each.tensors for each in adapters], len(inputs.x))
            additions["down_intrablock_additional_residuals"] = tuple(features)
        return additions

    def _run(self, inputs: ForwardInputs, picture: PictureRows) -> Sequence[torch.Tensor]:
        """Run a ControlNet for the rows that have its picture."""
        network = cast(ControlNet, picture.network)
        texts = self._name_texts(tuple(picture.select(part) for part in inputs.conditioning))
        return network.compute_residuals(picture.select(inputs.x), picture.select(inputs.t), picture.tensors[0], texts)


def make_unet_conditioner(pipeline: Any, device: torch.device, name_texts: NameTexts) -> UNetControlConditioner:
    """Return the conditioner of a pipeline with a U-Net."""
    return UNetControlConditioner(make_collection(pipeline, pipeline.unet, device), Preprocessors(device), name_texts)


def make_collection(pipeline: Any, network: Any, device: torch.device) -> ControlCollection:
    """Return the control networks for a pipeline's network."""
    channels = int(pipeline.vae.config.latent_channels)
    factor = int(pipeline.vae_scale_factor)
    return ControlCollection(TargetNetwork(type(network).__name__, network.config, channels, factor), device)


def name_unet_inputs(additions: Additions) -> dict[str, Any]:
    """Return control additions as the arguments of a U-Net's forward, which empties the list of features."""
    arguments: dict[str, Any] = {}
    if "down_block_additional_residuals" in additions:
        arguments["down_block_additional_residuals"] = additions["down_block_additional_residuals"]
        arguments["mid_block_additional_residual"] = additions["mid_block_additional_residual"][0]
    if "down_intrablock_additional_residuals" in additions:
        arguments["down_intrablock_additional_residuals"] = list(additions["down_intrablock_additional_residuals"])
    return arguments


def sum_spread(
    pictures: Sequence[PictureRows], values: Sequence[Sequence[torch.Tensor]], row_count: int
) -> list[torch.Tensor]:
    """Return the sums of all pictures' scaled values, each `[row_count, …]`."""
    totals: list[torch.Tensor] = []
    for picture, tensors in zip(pictures, values, strict=True):
        spread = [picture.spread(picture.scale(tensor), row_count) for tensor in tensors]
        sums = [total + each for total, each in zip(totals, spread, strict=False)]
        totals = [*sums, *(totals if len(totals) > len(spread) else spread)[len(sums) :]]
    return totals


def _fit(picture: Image.Image, recipe: Recipe) -> Image.Image:
    """Return the picture (RGB) at the recipe's size, its middle where the shapes differ."""
    size = recipe.width, recipe.height
    picture = picture.convert("RGB")
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


EncodeImage = Callable[[Image.Image], torch.Tensor]  # returns the latents of a picture
NameInputs = Callable[[ForwardInputs], Mapping[str, Any]]  # returns the inputs by their names in the network's forward
Samples = Sequence[torch.Tensor]


class TransformerControlConditioner(ControlConditioner):
    """A ControlNet reads the latents of its control image: the autoencoder's mean, as for init images."""

    def __init__(
        self,
        collection: ControlCollection,
        preprocessors: Preprocessors,
        encode_image: EncodeImage,
        name_inputs: NameInputs,
    ) -> None:
        super().__init__(collection, preprocessors)
        self._encode_image = encode_image
        self._name_inputs = name_inputs

    def with_family(self, family: Any) -> Self:
        """Return the same for a copy of its family with another autoencoder."""
        conditioner = copy.copy(self)
        conditioner._encode_image = family.encode_image
        return conditioner

    def _encode(self, network: ControlNetwork, control_image: Image.Image) -> tuple[torch.Tensor, ...]:
        transformer = cast(TransformerControlNet, network)
        return (self._prepare_latents(self._encode_image(control_image), transformer).to(transformer.dtype),)

    def make_additions(self, inputs: ForwardInputs, pictures: Sequence[PictureRows]) -> Additions:
        samples = [self._run(inputs, each) for each in pictures]
        additions: dict[str, tuple[torch.Tensor, ...]] = {}
        for name, block_count in self._block_counts.items():
            having = [number for number, each in enumerate(samples) if each.get(name)]
            if having:
                values = _align([samples[number][name] for number in having], block_count)
                rows = [pictures[number] for number in having]
                additions[name] = tuple(sum_spread(rows, values, len(inputs.x)))
        return additions

    def _select(self, inputs: ForwardInputs, picture: PictureRows) -> dict[str, Any]:
        """Return the inputs of the rows that have a picture, and the picture's latents, by name."""
        rows = ForwardInputs(
            picture.select(inputs.x),
            picture.select(inputs.t),
            tuple(picture.select(part) for part in inputs.conditioning),
            inputs.dtype,
        )
        return {**self._name_inputs(rows), "controlnet_cond": picture.tensors[0], "return_dict": False}

    @property
    @abstractmethod
    def _block_counts(self) -> Mapping[str, int]:
        """The number of blocks that take samples, by the samples' name in the network's forward."""

    @abstractmethod
    def _prepare_latents(self, latents: torch.Tensor, network: TransformerControlNet) -> torch.Tensor:
        """Return the latents of a control image as its network takes them, without a dimension of rows."""

    @abstractmethod
    def _run(self, inputs: ForwardInputs, picture: PictureRows) -> Mapping[str, Samples]:
        """Run a ControlNet for the rows that have its picture."""


class FluxControlConditioner(TransformerControlConditioner):
    """`pack` turns latents `[1, channels, height, width]` into tokens `[1, tokens, features]`."""

    def __init__(
        self,
        collection: ControlCollection,
        preprocessors: Preprocessors,
        encode_image: EncodeImage,
        name_inputs: NameInputs,
        pack: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__(collection, preprocessors, encode_image, name_inputs)
        self._pack = pack

    @property
    def _block_counts(self) -> Mapping[str, int]:
        config = self.collection.target.config
        return {
            "controlnet_block_samples": config["num_layers"],
            "controlnet_single_block_samples": config["num_single_layers"],
        }

    def _prepare_latents(self, latents: torch.Tensor, network: TransformerControlNet) -> torch.Tensor:
        return self._pack(latents[None])[0]

    def _run(self, inputs: ForwardInputs, picture: PictureRows) -> Mapping[str, Samples]:
        network = cast(TransformerControlNet, picture.network).network
        arguments = self._select(inputs, picture)
        if not network.config.guidance_embeds:
            arguments["guidance"] = None
        blocks, single_blocks = network(**arguments)
        return {"controlnet_block_samples": blocks or (), "controlnet_single_block_samples": single_blocks or ()}


class SD3ControlConditioner(TransformerControlConditioner):
    """`shift`: of the model's latents. InstantX's ControlNets were trained without it, and without pooled texts."""

    def __init__(
        self,
        collection: ControlCollection,
        preprocessors: Preprocessors,
        encode_image: EncodeImage,
        name_inputs: NameInputs,
        shift: float,
    ) -> None:
        super().__init__(collection, preprocessors, encode_image, name_inputs)
        self._shift = shift

    @property
    def _block_counts(self) -> Mapping[str, int]:
        return {"block_controlnet_hidden_states": self.collection.target.config["num_layers"]}

    def _prepare_latents(self, latents: torch.Tensor, network: TransformerControlNet) -> torch.Tensor:
        return latents + self._shift if network.network.config.force_zeros_for_pooled_projection else latents

    def _run(self, inputs: ForwardInputs, picture: PictureRows) -> Mapping[str, Samples]:
        network = cast(TransformerControlNet, picture.network).network
        arguments = self._select(inputs, picture)
        if network.config.force_zeros_for_pooled_projection:
            arguments["pooled_projections"] = torch.zeros_like(arguments["pooled_projections"])
        return {"block_controlnet_hidden_states": network(**arguments)[0]}


def make_flux_conditioner(
    pipeline: Any,
    device: torch.device,
    encode_image: EncodeImage,
    name_inputs: NameInputs,
    pack: Callable[[torch.Tensor], torch.Tensor],
) -> FluxControlConditioner:
    collection = make_collection(pipeline, pipeline.transformer, device)
    return FluxControlConditioner(collection, Preprocessors(device), encode_image, name_inputs, pack)


def make_sd3_conditioner(
    pipeline: Any, device: torch.device, encode_image: EncodeImage, name_inputs: NameInputs
) -> SD3ControlConditioner:
    collection = make_collection(pipeline, pipeline.transformer, device)
    config = pipeline.vae.config
    shift = get_shift(config) * float(config.scaling_factor)
    return SD3ControlConditioner(collection, Preprocessors(device), encode_image, name_inputs, shift)


def _align(samples: Sequence[Samples], block_count: int) -> Sequence[Samples]:
    """Return samples of one number each: a sample for each block where the ControlNets have different depths."""
    if len({len(each) for each in samples}) == 1:
        return samples
    return [[each[number * len(each) // block_count] for number in range(block_count)] for each in samples]
