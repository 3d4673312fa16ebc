"""Control pictures of transformers (Flux, Stable Diffusion 3): samples of ControlNets, added after each block."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import torch
from PIL import Image

from engine.models.autoencoder.autoencoder import get_shift
from engine.models.control.control_collection import ControlCollection
from engine.models.control.control_conditioner import ControlConditioner, make_collection, sum_spread
from engine.models.control.control_network import ControlNetwork, TransformerControlNet
from engine.models.pictures.conditioner import Additions, ForwardInputs
from engine.models.pictures.picture_conditions import PictureRows
from engine.models.preprocessing.preprocessors import Preprocessors

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
