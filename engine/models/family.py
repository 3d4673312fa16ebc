"""`Family`, the interface between sampling and models, and its optional extensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from PIL import Image

from engine.contract import (
    ControlModel,
    Dtype,
    GuidanceKind,
    JobRejected,
    Lora,
    ModelPart,
    Preprocessor,
    Recipe,
    Sampler,
)
from engine.models.picture_conditions import OpenPicture, PictureConditions, PictureRows
from engine.process.memory_requests import Offload
from engine.sampling import Plan

if TYPE_CHECKING:
    from engine.models.judge import PromptJudge

TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SMALL_MODEL_SIZE = 128  # native side in pixels; up to it, previews are decoded and final pictures upscaled

# Network inputs beside latents and timesteps, for one text or stacked for a batch's rows. Token states come first, then
# other inputs of the model (a pooled text, sizes in pixels, a mask). Their shapes are part of the batch key.
Conditioning = tuple[torch.Tensor, ...]


class Family(Protocol):
    """One loaded model. The engine's thread calls all of it, but the decode worker makes and encodes pictures."""

    name: str
    revision: str  # changes with the weights: calibrations and recipes are bound to it
    device: torch.device
    samplers: tuple[Sampler, ...]
    size: int  # native side in pixels
    multiple: int  # sides are multiples of this
    tokens: int  # the most that the text encoder reads
    guides: GuidanceKind
    guidance: float  # default
    interval: tuple[float, float]  # default: the fractions of the steps between which guidance holds
    upscale_factor: int  # the finished picture's sides are the recipe's times this
    upscaler: str  # name of the upscaler; empty where there is none

    @property
    def max_pixels(self) -> int: ...

    def plan(self, sampler: Sampler, steps: int, eta: float, width: int, height: int) -> Plan:
        """Return the sampler's plan for a picture of this size in pixels. Raises ValueError with a sentence."""
        ...

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of a picture of this size in pixels."""
        ...

    def encode_conditioning(self, text: str, recipe: Recipe, *, negative: bool = False) -> Conditioning:
        """Encode one text of a recipe, in one fixed shape, float32 on the device; one at a time, cached."""
        ...

    def denoise(
        self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, dtype: Dtype, loras: tuple[Lora, ...] = ()
    ) -> torch.Tensor:
        """Return the network's output, float32, for `[rows, …]` latents, `[rows]` timesteps, `[rows, …]` conditions."""
        ...

    def decode(self, latents: torch.Tensor) -> Image.Image:
        """Decode latents `[channels, height, width]` at the recipe's size."""
        ...

    def finish(self, latents: torch.Tensor) -> Image.Image:
        """Decode latents `[channels, height, width]`; upscale by `upscale_factor` where the result is not too large."""
        ...

    def encode_image(self, picture: Image.Image) -> torch.Tensor:
        """Return latents `[channels, height, width]` of a picture: the autoencoder's mean."""
        ...


@runtime_checkable
class HasFormats(Protocol):
    """A family that lists the number formats worth timing: a large network exists in only one."""

    @property
    def dtypes(self) -> tuple[Dtype, ...]: ...


@runtime_checkable
class HasSingleFormat(Protocol):
    """A family that may be in memory in one number format at a time; `is_single_format` says whether it is."""

    @property
    def is_single_format(self) -> bool: ...

    def has_format(self, dtype: Dtype) -> bool:
        """Whether it can run in this format without loading."""
        ...

    def get_network(self, dtype: Dtype) -> object:
        """Return the network in this format; reload the model if needed."""
        ...


def is_loaded(family: Family) -> bool:
    """Whether the weights are in memory: while a large model is reloaded in another format they are not."""
    return not (isinstance(family, HasSingleFormat) and family.is_single_format) or any(
        family.has_format(dtype) for dtype in TORCH_DTYPES
    )


@runtime_checkable
class HasNetwork(Protocol):
    """A family that can prepare its network for a number format."""

    def get_network(self, dtype: Dtype) -> object: ...


@runtime_checkable
class TimedAtNativeSize(Protocol):
    """A family whose timing forward always has its native size."""

    timed_at_native_size: bool


@runtime_checkable
class CanBeOffloaded(Protocol):
    """A family that says what of it is off the device between its forwards; this changes its speed, and no pixel."""

    offload: Offload


@runtime_checkable
class HasDefaultSampling(Protocol):
    """A family that may have default steps and a default sampler."""

    default_sampling: tuple[int, Sampler] | None


@runtime_checkable
class TakesLoras(Protocol):
    """A family whose networks accept LoRAs (Hu et al. 2021)."""

    def list_loras(self) -> tuple[Lora, ...]:
        """Return the LoRAs that fit, each at weight 1."""
        ...

    def with_loras(self, recipe: Recipe) -> Recipe:
        """Return the recipe with each LoRA's revision, and load the LoRAs. Raises `JobRejected`."""
        ...

    def make_lora_pipeline(self, recipe: Recipe) -> Any:
        """Return a pipeline with the recipe's LoRAs, which is never switched to others. Raises `JobRejected`."""
        ...


@runtime_checkable
class TakesEmbeddings(Protocol):
    """A family whose prompts may name textual inversions (Gal et al. 2022)."""

    def list_embeddings(self) -> tuple[ModelPart, ...]:
        """Return the textual inversions that fit."""
        ...

    def with_embeddings(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the revision of each textual inversion. Raises `JobRejected`."""
        ...


@runtime_checkable
class TakesAutoencoders(Protocol):
    """A family whose autoencoder may be replaced for a recipe."""

    def list_autoencoders(self) -> tuple[ModelPart, ...]:
        """Return the autoencoders that fit."""
        ...

    def count_autoencoder_bytes(self, part: ModelPart | None, *, with_kept: bool = True) -> int:
        """Return the bytes of this added autoencoder, `with_kept`: and of those in memory. Raises `JobRejected`."""
        ...

    def release_other_autoencoders(self, part: ModelPart | None) -> None:
        """Drop the added autoencoders in memory but this one."""
        ...

    def with_autoencoder(self, part: ModelPart) -> Family:
        """Return the model with this autoencoder, loaded at its first use. Raises `JobRejected`."""
        ...


def with_autoencoder(family: Family, recipe: Recipe) -> Family:
    """Return the family as it encodes and decodes the recipe's pictures. Raises `JobRejected`."""
    if recipe.autoencoder is None:
        return family
    if not isinstance(family, TakesAutoencoders):
        raise JobRejected(f"{family.name} takes no other autoencoder.", "model")
    return family.with_autoencoder(recipe.autoencoder)


@runtime_checkable
class SkipsTextLayers(Protocol):
    """A family whose text encoder may skip its last layers; `max_clip_skip`: at most how many."""

    max_clip_skip: int


@runtime_checkable
class TakesPictures(Protocol):
    """A family whose networks may take pictures beside the prompt."""

    def list_controls(self) -> tuple[ControlModel, ...]:
        """Return the control networks that fit."""
        ...

    def list_references(self) -> tuple[ControlModel, ...]:
        """Return the reference adapters that fit."""
        ...

    def list_preprocessors(self) -> tuple[Preprocessor, ...]:
        """Return what can make its control images."""
        ...

    def needs_pictures(self, recipe: Recipe) -> bool:
        """Return whether a recipe has pictures for the networks."""
        ...

    def check_pictures(self, recipe: Recipe) -> None:
        """Raise `JobRejected` where a picture's network is missing, unfit or of another revision; load nothing."""
        ...

    def count_picture_bytes(self, recipe: Recipe, *, with_kept: bool = True) -> int:
        """Return the bytes of the recipe's networks, `with_kept`: and of those in memory. Loads nothing."""
        ...

    def list_shared_bytes(self, recipe: Recipe, *, with_kept: bool = True) -> Mapping[str, int]:
        """Return the part of these bytes whose networks other models share, by a key for each network."""
        ...

    def release_other_networks(self, recipe: Recipe) -> None:
        """Drop the networks for pictures that the recipe does not use. Raises `JobRejected`."""
        ...

    def load_picture_networks(self, recipe: Recipe) -> None:
        """Load the networks that the recipe's pictures need, in its number format. Raises `JobRejected`."""
        ...

    def prepare_pictures(self, recipe: Recipe, open_picture: OpenPicture) -> PictureConditions:
        """Return the recipe's pictures as the networks take them. Raises `JobRejected`.

        It runs networks, so call it only in the decode worker's thread.
        """
        ...

    def denoise(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        conditioning: Conditioning,
        dtype: Dtype,
        loras: tuple[Lora, ...] = (),
        pictures: tuple[PictureRows, ...] = (),
    ) -> torch.Tensor:
        """Return the network's output `[rows, …]` as `Family.denoise` does, with the pictures of some rows."""
        ...


def denoise(
    family: Family,
    x: torch.Tensor,
    t: torch.Tensor,
    conditioning: Conditioning,
    dtype: Dtype,
    loras: tuple[Lora, ...],
    pictures: tuple[PictureRows, ...],
) -> torch.Tensor:
    """Return the network's output, with pictures where a row has any."""
    if not pictures:
        return family.denoise(x, t, conditioning, dtype, loras)
    return cast(TakesPictures, family).denoise(x, t, conditioning, dtype, loras, pictures)  # it prepared them


@runtime_checkable
class HasJudge(Protocol):
    """A family that may have a judge, which says how near pictures are to a prompt."""

    judge: PromptJudge | None


def find_judge(family: Family) -> PromptJudge | None:
    return family.judge if isinstance(family, HasJudge) else None


@runtime_checkable
class EncodesPrompts(Protocol):
    """A family that encodes prompts for its pipeline's own call: once for all images, with weights and long texts."""

    def encode_prompt_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return that call's arguments for a recipe's prompts."""
        ...


class TokenConditioned(Family, Protocol):
    """A family whose only condition is token states, so that one can calculate with them."""

    scheduler_config: Mapping[str, Any]

    def encode_text(self, text: str) -> torch.Tensor:
        """Return token states `[tokens, features]`, float32 on the device; one text a call, fixed shape, cached."""
        ...


@runtime_checkable
class NormalizesGuidance(Protocol):
    """A family whose pipeline scales the guided prediction to the norm of the prompt's own prediction."""

    def measure_norm(self, prediction: torch.Tensor) -> torch.Tensor:
        """Return the norms of predictions `[images, channels, height, width]`, in a shape that multiplies them."""
        ...
